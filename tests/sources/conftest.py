"""A topic on each kind of source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sources.worlds import KafkaWorld, RedisWorld, World


@pytest.fixture(params=[pytest.param("kafka", marks=pytest.mark.kafka), "redis-stream"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A topic of two partitions: once on Kafka, once on Redis Streams."""
    if request.param == "kafka":
        made: World = KafkaWorld(request.getfixturevalue("kafka_broker"))
    else:
        made = RedisWorld(request.getfixturevalue("redis_server"))
    yield made
    made.leave()
