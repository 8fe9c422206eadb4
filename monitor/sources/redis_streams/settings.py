"""The `redis_stream` section of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from monitor.core.settings import Names, Section


class RedisStreamSettings(Section):
    """The Redis Streams source: an edge box with one Redis and no Kafka."""

    topics: Names = ("images",)
    partitions: PositiveInt = 1
    max_length: PositiveInt = 10_000
    dead_letter_topic: str = "images.dead-letter"
    start: Literal["earliest", "latest"] = "earliest"
    lease_s: PositiveFloat = 10.0
