"""Old buckets are rolled up without losing a count, whatever happens in between; on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from monitor.core.buckets import IMAGES, LONGEST_RUN
from monitor.core.steps import DAY_MS, Step, steps_of
from monitor.core.types import Delta, Exemplar, Partition
from monitor.evaluate.aging import LOOK_S, Aging
from monitor.store import Limits, Store, StoreError, open_store
from monitor.store.connection import Connection
from monitor.store.keyspace import index_name
from monitor.store.packing import packed_vector, shortened
from monitor.store.private_server import PrivateRedis
from monitor.store.rollup import MOST_IMAGES
from monitor.store.settings import RedisSettings

PARTITIONS = (Partition("images", 0), Partition("images", 1))
STEPS = (Step(10_000, 100_000), Step(60_000, 600_000), Step(600_000, 3_600_000))
T0_MS = 1_750_000_200_000  # a multiple of the longest step
BUCKETS = 200
END_MS = T0_MS + 10_000 * BUCKETS
STREAMS = ("cam-1", "cam-2")


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[Store, Mapping[bytes, bytes]]]:
    """A store, and what its keys hold after `count`."""
    with PrivateRedis() as server:
        settings = RedisSettings(url=SecretStr(server.url))
        store = open_store(settings, "rollup", Limits(steps=STEPS, exemplars_kept=3))
        count(store)
        keys = store._connection.read("KEYS", "*")
        yield store, dict(zip(keys, store._connection.read_many([("DUMP", key) for key in keys]), strict=True))
        store.close()


@pytest.fixture
def store(opened: tuple[Store, Mapping[bytes, bytes]]) -> Store:
    """Both streams in every bucket, sealed."""
    store, keys = opened
    store._connection.read_many([("FLUSHALL",), *(("RESTORE", key, 0, dump) for key, dump in keys.items())])
    return store


def vector(bucket: int) -> NDArray[np.uint32]:
    return np.array([*range(bucket, bucket + 9), bucket + 36, 2, 0, 1, 0, 1 + bucket % 7], dtype=np.uint32)


def worst(bucket: int, stream: str) -> list[Exemplar]:
    at_ms = T0_MS + 10_000 * bucket
    rank = (bucket * 37 % 199 + 1) / 1000
    return [Exemplar(f"image-{bucket}", stream, at_ms, at_ms, rank, (), b"", "fp", beyond=0.0)]


def count(store: Store) -> None:
    """Both streams in every bucket, in the partitions by turns; each bucket is sealed."""
    for partition in PARTITIONS:
        store.partitions.start(partition, 1, "a", 0)
    offsets = dict.fromkeys(PARTITIONS, 0)
    for bucket in range(BUCKETS):
        start, partition = T0_MS + 10_000 * bucket, PARTITIONS[bucket % 2]
        keys = [("fp" if bucket < 150 else "newer", start, stream) for stream in STREAMS]
        vectors = {key: vector(bucket) for key in keys}
        images = {key: worst(bucket, key[2]) for key in keys}
        at = offsets[partition]
        store.partitions.apply([Delta(partition, "a", at, at + 10, start, vectors, worst=images)])
        offsets[partition] += 10
        store.partitions.seal(PARTITIONS, start)


Seen = Mapping[str, Mapping[str, tuple[list[int], int, int]]]


def seen(store: Store) -> Seen:
    """{profile: {stream: (sum of the counts, longest run, buckets)}} over the whole history."""
    found: dict[str, dict[str, tuple[list[int], int, int]]] = {}
    for fingerprint in ("fp", "newer"):
        for stream in STREAMS:
            held = np.stack([*store.counts.of_stream(PARTITIONS, fingerprint, stream, (0, 2**52)).values()])
            total = held[:, :LONGEST_RUN].sum(axis=0).tolist()
            found.setdefault(fingerprint, {})[stream] = total, int(held[:, LONGEST_RUN].max()), len(held)
    return found


def counted(found: Seen) -> list[object]:
    return [row[:2] for streams in found.values() for row in streams.values()]


def roll_up(store: Store, for_s: float = 60.0) -> bool:
    decided_ms = END_MS - 10_000
    done = [store.rollup.run(partition, decided_ms, decided_ms, for_s) for partition in PARTITIONS]
    return all(done)


def test_what_is_rolled_up_is_the_same_in_fewer_buckets(store: Store) -> None:
    before, images = seen(store), store.exemplars.worst(PARTITIONS, "fp", "cam-1", (T0_MS, END_MS), 5)
    assert roll_up(store)
    after = seen(store)
    assert counted(after) == counted(before)
    # 1,500 s of the older profile: two whole steps of 600 s, then minutes
    held = list(store.counts.of_stream(PARTITIONS, "fp", "cam-1", (0, 2**52)))
    assert [start - T0_MS for start in held] == [0, 600_000, *range(1_200_000, 1_500_000, 60_000)]
    # the fine ones are as they were: of the last 100 s, and what is not a whole minute before them
    fine = [start for start in store.counts.of_stream(PARTITIONS, "newer", "cam-1", (0, 2**52)) if start % 60_000]
    assert min(fine) >= END_MS - 160_000
    assert len(fine) >= 8
    assert store.exemplars.worst(PARTITIONS, "fp", "cam-1", (T0_MS, END_MS), 3)[0].id == images[0].id
    roll_up(store)
    assert seen(store) == after


def test_a_span_that_begins_within_a_longer_bucket_gets_it_whole(store: Store) -> None:
    roll_up(store)
    inside = store.counts.of_stream(PARTITIONS, "fp", "cam-1", (T0_MS + 599_999, T0_MS + 600_000))
    assert list(inside) == [T0_MS]
    assert int(inside[T0_MS][IMAGES]) == sum(int(vector(bucket)[IMAGES]) for bucket in range(60))


def test_the_oldest_are_removed(store: Store) -> None:
    roll_up(store)
    for partition in PARTITIONS:
        store.rollup.run(partition, END_MS + 1_800_000, END_MS, 60.0)
    held = store.counts.of_stream(PARTITIONS, "fp", "cam-1", (0, 2**52))
    assert min(held) == T0_MS + 600_000  # an hour before
    longest = 3_600
    ttl = store._connection.read("TTL", "{lw:rollup:images:0}:b2:fp:" + str(T0_MS + 600_000))
    assert longest - 100 < ttl <= longest


class Cut:
    """Fails the call to Redis of that number, before or after it was made."""

    def __init__(self, at: int, after: bool) -> None:
        self.left, self.after = at, after

    def __call__(self, send: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def cut(connection: Connection, label: str, commands: Sequence[Any]) -> list[Any]:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise StoreError("cut off")
            replies = send(connection, label, commands)
            if self.left == 0:
                raise StoreError("cut off")
            return replies

        return cut


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_calls_loses_and_doubles_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    before, send = counted_of(store), Connection._send
    ended = 0
    for at in range(1, 60):
        cut = Cut(at, after)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_send", cut(send))
            try:
                done = [store.rollup.run(p, T0_MS + 10_000 * (at + 12), END_MS, 60.0) for p in PARTITIONS]
                ended += all(done) and cut.left > 0
            except StoreError:
                pass
        assert counted_of(store) == before, f"call {at}"
    for partition in PARTITIONS:
        store.rollup.run(partition, END_MS, END_MS, 60.0)
    assert counted_of(store) == before
    assert len(store.counts.of_stream(PARTITIONS, "fp", "cam-1", (0, 2**52))) == 7  # two of 600 s, and minutes
    assert ended


def counted_of(store: Store) -> list[int]:
    held = np.stack([*store.counts.of_stream(PARTITIONS, "fp", "cam-1", (0, 2**52)).values()])
    return [int(total) for total in held[:, :LONGEST_RUN].sum(axis=0)]


def test_who_reads_while_another_rolls_up_sees_every_count_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before, members = counted_of(store), type(store.counts).members
    calls = 0

    def then_roll_up(*args: Any) -> Any:
        nonlocal calls
        found, calls = members(*args), calls + 1
        if calls == 1:  # the finest index is read, the others are not
            roll_up(store)
        return found

    monkeypatch.setattr(type(store.counts), "members", then_roll_up)
    assert counted_of(store) == before
    assert calls == len(STEPS)


def test_two_evaluators_at_the_same_buckets_count_them_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = seen(store), type(store.rollup)._write
    calls = 0

    def then_another(*args: Any) -> None:
        nonlocal calls
        write(*args)
        calls += 1
        if calls == 2:  # all is added up, nothing is in its place
            roll_up(store)

    monkeypatch.setattr(type(store.rollup), "_write", then_another)
    roll_up(store)
    assert counted(seen(store)) == counted(before)


@pytest.mark.parametrize(("field", "value"), [("judged_until", "100000"), ("next", "1"), ("sealed", "5")])
def test_a_partition_that_fell_back_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    write = type(store.rollup)._write

    def then_fall_back(*args: Any) -> None:
        write(*args)
        store._connection.read("HSET", "{lw:rollup:images:0}:cursor", field, value)

    monkeypatch.setattr(type(store.rollup), "_write", then_fall_back)
    before = store.counts.members([PARTITIONS[0]], 0)
    store.rollup.run(PARTITIONS[0], END_MS, END_MS, 60.0)
    assert store.counts.members([PARTITIONS[0]], 0) == before


def test_a_late_count_in_an_old_bucket_is_added_to_the_longer_one(store: Store) -> None:
    roll_up(store)
    before = counted_of(store)
    # as apply.lua goes on with the buckets of a node that fell back
    key, member = f"{{lw:rollup:images:0}}:b:fp:{T0_MS}", f"fp:{T0_MS}"
    store._connection.read("HSET", key, "cam-1", vector(0).tobytes())
    store._connection.read("ZADD", "{lw:rollup:images:0}:closed", T0_MS, member)
    roll_up(store)
    assert counted_of(store) == [a + int(b) for a, b in zip(before, vector(0)[:LONGEST_RUN], strict=True)]


def test_only_what_was_decided_at_the_look_before_is_rolled_up(store: Store) -> None:
    clock = [0.0]
    aging = Aging(store, now_s=lambda: clock[0])
    fine = len(store.counts.members(PARTITIONS, 0))
    for clock[0], decided_ms in ((0.0, T0_MS), (LOOK_S, END_MS), (2 * LOOK_S - 1, END_MS)):
        aging.turn(PARTITIONS, decided_ms)
        assert len(store.counts.members(PARTITIONS, 0)) == fine  # a counter may not have read them
    clock[0] = 2 * LOOK_S
    for _ in range(100):
        aging.turn(PARTITIONS, END_MS)
    assert len(store.counts.members(PARTITIONS, 0)) < 20


@pytest.mark.parametrize("bucket_s", [1, 7, 10, 60, 90, 300, 3600, 7200])
def test_every_step_is_a_multiple_of_the_one_before(bucket_s: int) -> None:
    steps = steps_of(bucket_s * 1000, (86_400_000,), 90 * DAY_MS)
    assert steps[0].length_ms == bucket_s * 1000
    assert steps[-1].until_ms == 90 * DAY_MS
    for before, after in pairwise(steps):
        assert after.length_ms % before.length_ms == 0
        assert after.length_ms > before.length_ms
        assert after.until_ms > before.until_ms > 86_400_000


def test_a_history_that_is_shorter_than_the_finest_step_has_only_that() -> None:
    assert steps_of(10_000, (), 3_600_000) == (Step(10_000, 3_600_000),)
    assert Limits(steps=steps_of(10_000, (), 3_600_000)).kept_s == 3_600
    ninety_days = steps_of(10_000, (), 90 * DAY_MS)
    entries, age_ms = 0, 0
    for step in ninety_days:
        entries, age_ms = entries + (step.until_ms - age_ms) // step.length_ms, step.until_ms
    assert entries == 5_114


@pytest.mark.slow
def test_ninety_days_of_a_stream_take_less_than_8_mb(store: Store) -> None:
    store._connection.read("FLUSHALL")
    rng, keys, partition = np.random.default_rng(0), store.counts._keys, PARTITIONS[0]
    before = store._connection.read("INFO", "memory")["used_memory"]
    age_ms = 0
    for level, step in enumerate(steps_of(10_000, (), 90 * DAY_MS)):
        rows = [
            packed_vector(rng.poisson(step.length_ms / 4500, 285).astype(np.uint32)) for _ in range(50)
        ]  # 2 images a second
        for i, start in enumerate(range(T0_MS - step.until_ms, T0_MS - age_ms, step.length_ms)):
            member = (partition, "0123456789abcdef", start)
            images = [(0.001, start, f"images/0@{start}#{k}", 0.004) for k in range(MOST_IMAGES if level else 12)]
            kept = {keys.bucket(member, level): shortened(rows[i % 50]) if level else rows[i % 50]}
            kept[keys.worst(member, level)] = msgpack.packb(images)
            commands: list[Sequence[Any]] = [("HSET", key, "cam-1", value) for key, value in kept.items()]
            commands += [("EXPIRE", key, 10**7) for key in kept]
            index = ("ZADD", keys.of(partition, index_name(level)), start, f"{member[1]}:{start}")
            store._connection.read_many([*commands, index])
        age_ms = step.until_ms
    assert store._connection.read("INFO", "memory")["used_memory"] - before < 8_000_000


def test_buckets_whose_counts_have_expired_leave_the_index(store: Store) -> None:
    held = {key: store._connection.read("DEL", key) for key in store._connection.read("KEYS", "*:b:*")}
    assert all(held.values())
    roll_up(store)
    assert len(store.counts.members(PARTITIONS, 0)) < 20
    assert not store.counts.of_stream(PARTITIONS, "fp", "cam-1", (0, 2**52))
