"""One topic on a real broker, and what the tests do with it: the same for Kafka and for Redis Streams."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core.types import Partition, Record
from monitor.sources import open_source
from monitor.sources.kafka.client import connect
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import Polled, Source
from monitor.sources.redis_streams.log import append_call, open_connection
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.sources.redis_streams.source import RedisStreamSource
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.kafka.broker import Cluster

DEADLINE_S = 20.0
POLL_S = 0.05

Headers = Sequence[tuple[str, bytes]]


@dataclass
class World:
    """A topic of two partitions, its dead-letter topic, and the sources opened on them."""

    config: Config
    topic: str
    letters_topic: str
    opened: list[Source] = field(default_factory=list)

    def open(self) -> Source:
        """One more member of the group."""
        self.opened.append(open_source(self.config.source_settings()))
        return self.opened[-1]

    def owner(self) -> Source:
        """A member that owns both partitions, which are not started yet."""
        source = self.open()
        follow_until(source, lambda owned: len(owned) == 2)
        return source

    def write(
        self,
        index: int,
        values: Sequence[bytes],
        key: bytes | None = None,
        headers: Headers = (),
        timestamps_ms: Sequence[int] = (),
    ) -> None:
        """Append to one partition."""
        raise NotImplementedError

    def letters(self) -> list[Record]:
        """All dead letters."""
        raise NotImplementedError

    def leave(self) -> None:
        """Close everything."""
        for source in reversed(self.opened):
            source.close()


class KafkaWorld(World):
    """On a Kafka cluster."""

    def __init__(self, cluster: Cluster, letters_configs: Mapping[str, str] | None = None, **options: Any) -> None:
        self.cluster = cluster
        name = f"images-{uuid.uuid4().hex[:8]}"
        kafka = {
            "bootstrap_servers": cluster.bootstrap_servers,
            "topics": name,
            "group_id": name,
            "dead_letter_topic": f"{name}.dead-letter",
            "session_timeout_s": 6,
            "request_timeout_s": 10,
            "client": {"heartbeat_interval_ms": 200},
        }
        cluster.create_topic(name, 2)
        cluster.create_topic(f"{name}.dead-letter", configs=letters_configs)
        super().__init__(Config(kafka=KafkaSettings.model_validate(kafka | options)), name, f"{name}.dead-letter")
        # by way of our connect(): a bare client leaves sockets behind where a test stops the broker
        options = {"bootstrap_servers": [cluster.bootstrap_servers], "linger_ms": 5, "reconnect_backoff_max_ms": 500}
        self.producer = connect(KafkaProducer, options)

    def write(
        self,
        index: int,
        values: Sequence[bytes],
        key: bytes | None = None,
        headers: Headers = (),
        timestamps_ms: Sequence[int] = (),
    ) -> None:
        stamps = timestamps_ms or itertools.repeat(None, len(values))
        for value, stamp in zip(values, stamps, strict=True):
            self.producer.send(self.topic, value, key, list(headers), partition=index, timestamp_ms=stamp)
        self.producer.flush()

    def letters(self) -> list[Record]:
        return read_topic(self.cluster, self.letters_topic)

    def leave(self) -> None:
        super().leave()
        self.producer.close()


class RedisWorld(World):
    """On Redis Streams."""

    def __init__(self, server: PrivateRedis, **options: Any) -> None:
        name = f"images-{uuid.uuid4().hex[:8]}"
        stream = {"topics": name, "partitions": 2, "dead_letter_topic": f"{name}.dead-letter", "lease_s": 0.5}
        config = Config(
            monitor=name,
            source="redis-stream",
            redis=RedisSettings(url=SecretStr(server.url)),
            redis_stream=RedisStreamSettings.model_validate(stream | options),
        )
        super().__init__(config, name, f"{name}.dead-letter")
        self.connection = open_connection(config.redis)

    def write(
        self,
        index: int,
        values: Sequence[bytes],
        key: bytes | None = None,
        headers: Headers = (),
        timestamps_ms: Sequence[int] = (),
    ) -> None:
        stamps = timestamps_ms or itertools.repeat(None, len(values))
        to, bound = Partition(self.topic, index), self.config.redis_stream.max_length
        self.connection.run_many(
            [append_call(to, bound, value, key, headers, stamp) for value, stamp in zip(values, stamps, strict=True)]
        )

    def letters(self) -> list[Record]:
        letters = RedisStreamSettings(topics=(self.letters_topic,), partitions=1, lease_s=0.5)
        source = RedisStreamSource(letters, self.config.redis, uuid.uuid4().hex)
        follow_until(source, lambda owned: len(owned) == 1)
        source.start(Partition(self.letters_topic, 0), 0)
        records = [record for batch in source.poll(0).records.values() for record in batch]
        source.close()
        return records

    def leave(self) -> None:
        super().leave()
        self.connection.close()


def follow_until(
    source: Source, reached: Callable[[set[Partition]], bool], *others: Source, owned: set[Partition] | None = None
) -> set[Partition]:
    """Poll (the others too) until the partitions of `source` are as wanted; returns them."""
    owned = set() if owned is None else owned
    deadline = time.monotonic() + DEADLINE_S
    while not reached(owned):
        assert time.monotonic() < deadline, f"still owns {sorted(owned)}"
        polled = source.poll(POLL_S)
        owned -= set(polled.revoked)
        owned |= set(polled.assigned)
        for other in others:
            other.poll(POLL_S)
    return owned


def read(source: Source, count: int) -> list[Record]:
    """Poll until that many records came; in the order in which they came, and no more."""
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(records) < count:
        assert time.monotonic() < deadline, f"only {len(records)} of {count} records"
        records += flat(source.poll(POLL_S))
    assert len(records) == count
    return records


def flat(polled: Polled) -> list[Record]:
    """All records of a poll."""
    return [record for batch in polled.records.values() for record in batch]


def read_topic(cluster: Cluster, topic: str) -> list[Record]:
    """Everything in partition 0 of a Kafka topic."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, group_id=None)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end = consumer.end_offsets([partition])[partition]
    consumer.seek(partition, 0)
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while consumer.position(partition) < end:
        assert time.monotonic() < deadline
        for item in consumer.poll(100).get(partition, ()):
            place = Partition(item.topic, item.partition)
            records.append(Record(place, item.offset, item.timestamp, item.key, item.value, tuple(item.headers)))
    consumer.close()
    return records
