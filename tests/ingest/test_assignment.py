"""Partitions that are stopped, lost and taken over: on a real Redis, and a real source whose group has two members."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core.types import Cursor, Partition
from monitor.ingest.assignment import Assignment, AssignmentPolicy
from monitor.ingest.settings import DeadLetterSettings
from monitor.notify.self_alerts import SelfAlerts
from monitor.sources import open_source
from monitor.sources.protocol import Polled, Source
from monitor.sources.redis_streams.log import append_call, open_connection
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.ingest.parts import one_partition

WINDOW = 10
_names = itertools.count()


def claimed(store: Store, settings: Config, partitions: int) -> list[int]:
    """Where a process that reads all partitions of the topic begins in each, under `start: latest`."""
    (topic,) = settings.redis_stream.topics
    source = open_source(settings.source_settings())
    alerts = SelfAlerts(store, topic, has_receivers=False)
    process = Assignment(store, alerts, AssignmentPolicy("latest", 0, DeadLetterSettings(), "default"))
    while len(process.owned) < partitions:
        process.follow(source.poll(0.05))
        process.claim_due(source)
    begins = [process.owned[Partition(topic, i)].next_offset for i in range(partitions)]
    source.commit({partition: owner.next_offset for partition, owner in process.owned.items()})
    source.close()
    return begins


@dataclass
class Two:
    """Two processes that read one partition by turns: what each does with it."""

    store: Store
    source: Source
    partition: Partition

    def __post_init__(self) -> None:
        letters = DeadLetterSettings(max_share=0.5, window=WINDOW)
        policy = AssignmentPolicy("earliest", 0, letters, "default")
        alerts = SelfAlerts(self.store, self.partition.topic, has_receivers=True)
        self.a, self.b = (Assignment(self.store, alerts, policy) for _ in range(2))

    def move(self, to: Assignment) -> None:
        """A rebalance gives the partition to that process."""
        for process in (self.a, self.b):
            process.follow(Polled(assigned=(self.partition,)) if process is to else Polled(revoked=(self.partition,)))
        to.claim_due(self.source)

    def stop(self, process: Assignment) -> None:
        """Its last records are all bad."""
        owner = process.owned[self.partition]
        owner.rejects = owner.rejects.extended([True] * WINDOW)
        process.judge_rejects(self.source, owner)
        assert process.stopped
        assert not process.owned

    def cursor(self) -> Cursor | None:
        """As Redis has it."""
        return self.store.partitions.cursors([self.partition])[self.partition]

    def lose(self) -> None:
        """Redis comes back empty: without any key of this test, as others use the same server."""
        client = self.store._connection.client
        client.delete(*client.scan_iter(f"*{self.partition.topic}*"))


@pytest.fixture
def two(redis_server: PrivateRedis) -> Iterator[Two]:
    name = f"assignment-{next(_names)}"
    settings = one_partition(name, redis_server.url)
    store, source = open_store(settings.redis, name), open_source(settings.source_settings())
    partition = Partition(name, 0)
    while partition not in source.poll(0.05).assigned:
        pass
    yield Two(store, source, partition)
    source.close()
    store.close()


def test_a_partition_that_was_stopped_and_read_elsewhere_is_read_when_it_comes_back(two: Two) -> None:
    two.move(two.a)
    two.stop(two.a)
    cursor = two.cursor()
    assert cursor is not None
    assert cursor.idle
    two.move(two.b)
    assert two.a.stopped == {}
    assert two.partition in two.b.owned
    two.move(two.a)
    owner = two.a.owned[two.partition]
    cursor = two.cursor()
    assert cursor is not None
    assert (cursor.token, cursor.idle) == (owner.token, False)


def test_leaving_the_group_ends_what_is_stopped(two: Two) -> None:
    two.move(two.a)
    two.stop(two.a)
    two.a.clear()
    assert two.a.stopped == {}


def test_a_stopped_partition_that_redis_has_lost_is_claimed_again(two: Two) -> None:
    two.move(two.a)
    two.stop(two.a)
    two.lose()
    two.a.verify()
    two.a.claim_due(two.source)
    assert two.partition in two.a.owned
    two.stop(two.a)
    cursor = two.cursor()
    assert cursor is not None
    assert cursor.idle


def test_an_idle_mark_that_redis_has_set_back_is_made_again(two: Two) -> None:
    two.move(two.a)
    owner = two.a.owned[two.partition]
    owner.idle = two.store.partitions.set_idle(two.partition, owner.token, True)
    two.a.verify()
    assert owner.idle
    two.store.partitions.set_idle(two.partition, owner.token, False)  # what the server that took over knows
    two.a.verify()
    assert not owner.idle  # the next look at idle partitions marks it
    two.stop(two.a)
    two.store.partitions.set_idle(two.partition, two.a.stopped[two.partition].token, False)
    two.a.verify()
    cursor = two.cursor()
    assert cursor is not None
    assert cursor.idle


def test_owners_give_signs_of_life_while_they_read_and_while_they_are_stopped(two: Two) -> None:
    two.move(two.a)
    signs = []
    for _ in range(2):
        signs.append(two.store.partitions.signs([two.partition]))
        two.a.verify()
    two.stop(two.a)
    for _ in range(2):
        two.a.verify()
        signs.append(two.store.partitions.signs([two.partition]))
    two.b.verify()
    assert two.store.partitions.signs([two.partition]) == signs[-1]  # somebody else gives none
    assert all(before != after for before, after in itertools.pairwise(signs))


@pytest.mark.parametrize("lost", ["nothing", "the state", "the first number"])
def test_a_partition_that_is_added_is_read_from_its_start_where_the_others_begin_at_their_ends(
    redis_server: PrivateRedis, lost: str
) -> None:
    name = f"added-{next(_names)}"
    section = RedisStreamSettings(topics=(name,), partitions=2, dead_letter_topic=f"{name}.dead", start="latest")
    redis = RedisSettings(url=SecretStr(redis_server.url))
    before = Config(monitor=name, source="redis-stream", redis=redis, redis_stream=section)
    after = before.model_copy(update={"redis_stream": section.model_copy(update={"partitions": 4})})
    with closing(open_store(redis, name)) as store, closing(open_connection(redis)) as log:
        log.run_many([append_call(Partition(name, i), 100, b"record", None, (), 1_000) for i in (0, 1, 1)])
        assert claimed(store, before, 2) == [1, 2]
        log.run_many([append_call(Partition(name, i), 100, b"record", None, (), 2_000) for i in (2, 3, 3)])
        gone = {"nothing": [], "the first number": ["first_read"], "the state": ["*"]}[lost]
        keys = [key for part in gone for key in store._connection.client.scan_iter(f"{{lw:{name}:*}}:{part}")]
        for key in keys:
            store._connection.client.delete(key)
        assert claimed(store, after, 4)[2:] == [0, 0]
        assert claimed(store, after, 4)[:2] == [1, 2]
