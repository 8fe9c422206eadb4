"""A topic on each kind of source, and an authority that gives tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sources.issuer import Issuer
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


@pytest.fixture
def issuer(request: pytest.FixtureRequest) -> Iterator[Issuer]:
    """Its tokens live an hour, or as many seconds as the test says."""
    made = Issuer(getattr(request, "param", 3600.0))
    yield made
    made.close()
