"""Where records come from and go to: one module per broker, behind `monitor.sources.protocol.Source` and `Producer`.

Nothing else knows a broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from monitor.sources.protocol import Source

if TYPE_CHECKING:
    from monitor.config.schema import Config


class Producer(Protocol):
    """Writes records to topics. One thread owns an instance and makes every call.

    It connects on first use. After an error it can be used again, and connects anew; whatever was not flushed must be
    sent again.
    """

    def send(
        self,
        topic: str,
        value: bytes,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand one record over; waits where too much is on its way. Records of one key stay in order.

        Args:
            timestamp_ms: None is now.

        Raises:
            SourceError: it cannot be written now, or one before it could not; try again after a while.
            FatalSourceError: we may not write, or it is too large.
        """

    def flush(self) -> None:
        """Return when all that was handed over is acknowledged; raises as `send` does where one is not."""

    def close(self) -> None:
        """Free everything, what is not flushed with it; never raises."""


def open_source(config: Config) -> Source:
    """Connect to the configured source and join its group.

    Raises:
        SourceError: it cannot be reached now; try again.
        FatalSourceError: it will not work with this configuration.
    """
    if config.source == "kafka":
        from monitor.sources.kafka.source import KafkaSource  # noqa: PLC0415 - load only the client in use

        return KafkaSource(config.kafka)
    from monitor.sources.redis_streams.source import RedisStreamSource  # noqa: PLC0415

    return RedisStreamSource(config.redis_stream, config.redis, config.monitor)


def open_producer(config: Config) -> Producer:
    """A producer for the configured source's broker; connects on first use."""
    if config.source == "kafka":
        from monitor.sources.kafka.producer import KafkaRecordProducer  # noqa: PLC0415

        return KafkaRecordProducer(config.kafka)
    from monitor.sources.redis_streams.log import RedisRecordProducer  # noqa: PLC0415

    return RedisRecordProducer(config.redis_stream, config.redis)
