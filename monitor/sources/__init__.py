"""Where records come from: one module per broker, behind `monitor.types.Source`. Nothing else knows a broker."""

from __future__ import annotations

from monitor.config import Config
from monitor.types import Source


def open_source(config: Config) -> Source:
    """Connect to the configured source and join its group.

    Raises:
        SourceError: it cannot be reached now; try again.
        FatalSourceError: it will not work with this configuration.
    """
    if config.source == "kafka":
        from monitor.sources.kafka import KafkaSource  # noqa: PLC0415 - load only the client in use

        return KafkaSource(config.kafka)
    from monitor.sources.redis_stream import RedisStreamSource  # noqa: PLC0415

    return RedisStreamSource(config.redis_stream, config.redis)
