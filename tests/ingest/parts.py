"""What tests on a Redis stream share."""

from __future__ import annotations

from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.settings import RedisSettings


def one_partition(name: str, redis_url: str) -> Config:
    """A monitor of this name that reads a topic of this name."""
    return Config(
        monitor=name,
        source="redis-stream",
        redis=RedisSettings(url=SecretStr(redis_url)),
        redis_stream=RedisStreamSettings(topics=(name,), partitions=1, dead_letter_topic=f"{name}.dead"),
    )
