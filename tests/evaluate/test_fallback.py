"""One node of a Redis Cluster falls back: what was judged is not judged again; on a real Redis.

The keys of one partition live on one node. Here they are put back to what they were a while ago, and nothing else is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.buckets import IMAGES, LATE
from monitor.core.types import Delta, Partition
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of, stored_rows
from tests.evaluate.test_new_rule import BUCKET_MS, LAYOUT, T0_MS, CrowdRule
from tests.vectors import fill

P, Q = Partition("images", 0), Partition("images", 1)
_monitors = itertools.count()
Keys = dict[bytes, bytes]


class Fleet:
    """Two partitions, their logs and an evaluator whose rule adds up all images that it is given."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.logs: dict[Partition, list[int]] = {P: [], Q: []}
        """The bucket of each image."""
        store.catalog.register_partitions([P, Q])
        store.catalog.put_layouts({"fp": LAYOUT})
        for partition in (P, Q):
            store.partitions.start(partition, 1, "t", 0)
        self.take_lease()

    def take_lease(self) -> None:
        """Another process evaluates from now on."""
        self.store._connection.client.delete(self.store._monitor_keys.key("tenure"))
        rule = CrowdRule(name="crowd", kind="crowd", most=10**6)
        closing = closing_of(self.store, lateness_s=0)
        self.evaluator = Evaluator(self.store, (rule,), {}, closing, Presentation("fallback"))
        self.evaluator.load()

    def send(self, bucket: int, *partitions: Partition) -> None:
        """One image of that bucket in each of them (both, by default); counted and looked at."""
        for partition in partitions or (P, Q):
            self.logs[partition].append(bucket)
            self.read_on(partition)
        self.evaluator.look()

    def read_on(self, partition: Partition, most: int = 1000) -> None:
        """Count what the log holds from the cursor on, in one delta."""
        cursor = self.store.partitions.cursors([partition])[partition]
        assert cursor is not None
        at = cursor.next_offset
        buckets = self.logs[partition][at : at + most]
        vectors = {
            ("fp", T0_MS + bucket * BUCKET_MS, "cam-1"): fill(LAYOUT, np.full((buckets.count(bucket), 1), 0.9))
            for bucket in buckets
        }
        high_ms = max([cursor.high_ms, *(T0_MS + bucket * BUCKET_MS for bucket in buckets)])
        (applied,) = self.store.partitions.apply([Delta(partition, "t", at, at + len(buckets), high_ms, vectors)])
        assert applied.status in {"ok", "dup"}

    def keys(self, partition: Partition) -> Keys:
        """Everything that the node holds of it."""
        client = self.store._connection.client
        pattern = self.store.partitions._keys.prefix(partition) + "*"
        return {key: client.dump(key) for key in client.scan_iter(pattern)}

    def fall_back(self, partition: Partition, keys: Keys) -> None:
        """The node holds this again, and nothing else."""
        client = self.store._connection.client
        for key in self.keys(partition):
            client.delete(key)
        for key, dump in keys.items():
            client.restore(key, 0, dump)

    def judged(self) -> int:
        """Images that the rule was given."""
        return int(stored_rows(self.store, "crowd", "fp").get("cam-1", b"0"))

    def history(self) -> dict[int, tuple[int, int]]:
        """{bucket: (images, late ones)} over both partitions."""
        found = self.store.counts.of_stream([P, Q], "fp", "cam-1", (T0_MS, T0_MS + 100 * BUCKET_MS))
        return {(at - T0_MS) // BUCKET_MS: (int(v[IMAGES]), int(v[LATE])) for at, v in found.items()}


@pytest.fixture
def fleet(redis_server: PrivateRedis) -> Iterator[Fleet]:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"fallback-{next(_monitors)}")
    yield Fleet(store)
    store.close()


def check(fleet: Fleet, buckets: int) -> None:
    """Every image was judged once and lies in its own bucket; the last bucket is open."""
    assert fleet.history() == dict.fromkeys(range(buckets), (2, 0))
    assert fleet.judged() == 2 * (buckets - 1)
    totals = fleet.store.counts.totals([P, Q])["cam-1"]
    assert (totals.applied, totals.late) == (2 * buckets, 0)


@pytest.mark.parametrize("looks_first", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_images_that_are_read_again_are_not_judged_again(fleet: Fleet, looks_first: bool, batch: int) -> None:
    for bucket in range(3):
        fleet.send(bucket)
    before = fleet.keys(P)
    for bucket in range(3, 7):
        fleet.send(bucket)
    assert fleet.judged() == 12
    fleet.fall_back(P, before)
    if looks_first:
        fleet.evaluator.look()
    for _ in range(4):
        fleet.read_on(P, batch)
        fleet.evaluator.look()
    fleet.send(7)
    fleet.send(8)
    check(fleet, 9)


def test_a_bucket_that_was_sealed_in_part_waits_for_what_a_node_that_fell_back_reads_again(fleet: Fleet) -> None:
    for bucket in range(3):
        fleet.send(bucket)
    before = fleet.keys(P)
    for partition in (P, Q):
        fleet.logs[partition] += [3, 4]
        fleet.read_on(partition)
    for bucket in (2, 3):  # the node of the other falls back before the evaluator reaches it
        fleet.store.partitions.seal([Q], T0_MS + bucket * BUCKET_MS)
    fleet.fall_back(P, before)
    for _ in range(2):
        fleet.evaluator.look()
        assert fleet.judged() == 4
        fleet.take_lease()
    fleet.read_on(P)
    fleet.evaluator.look()
    fleet.send(5)
    check(fleet, 6)


def test_a_bucket_that_every_partition_is_sealed_at_is_judged_though_the_watermark_has_gone_back(fleet: Fleet) -> None:
    for bucket in range(3):
        fleet.send(bucket)
    fleet.store.partitions.set_idle(P, "t", True)
    fleet.logs[Q] += [3, 4]
    fleet.read_on(Q)
    for bucket in (2, 3):  # the process dies before it has said that they are sealed
        fleet.store.partitions.seal([P, Q], T0_MS + bucket * BUCKET_MS)
    fleet.take_lease()
    fleet.send(2, P)  # it wakes up with an image of a bucket that is over
    assert fleet.judged() == 4 + 2 + 1
    fleet.send(4, P)
    fleet.send(5)
    assert fleet.judged() == sum(images for bucket, (images, _) in fleet.history().items() if bucket < 5)
    assert sum(late for _, late in fleet.history().values()) == 1


def test_a_node_that_comes_back_empty_brings_no_image_twice(fleet: Fleet) -> None:
    for bucket in range(5):
        fleet.send(bucket)
    fleet.fall_back(P, {})
    fleet.evaluator.look()
    fleet.store.partitions.start(P, 1, "t", 0)
    fleet.read_on(P)
    fleet.send(5)
    fleet.send(6)
    check(fleet, 7)


def test_a_second_fall_back_in_the_midst_of_reading_again_changes_nothing(fleet: Fleet) -> None:
    fleet.send(0)
    before = fleet.keys(P)
    for bucket in range(1, 6):
        fleet.send(bucket)
    for most in (2, 1, 1000):
        fleet.fall_back(P, before)
        fleet.take_lease()
        fleet.evaluator.look()
        fleet.read_on(P, most)
        fleet.evaluator.look()
    fleet.send(6)
    check(fleet, 7)


def test_an_image_that_was_never_judged_counts_as_late_though_the_node_fell_back(fleet: Fleet) -> None:
    fleet.send(0)
    before = fleet.keys(P)
    fleet.store.partitions.set_idle(P, "t", True)
    for bucket in range(1, 5):
        fleet.send(bucket, Q)
    fleet.fall_back(P, {**before, **{key: dump for key, dump in fleet.keys(P).items() if key.endswith(b":cursor")}})
    fleet.store._connection.client.hset(fleet.store.partitions._keys.of(P, "cursor"), "sealed", "-1")
    fleet.evaluator.look()
    fleet.send(2, P)  # it wakes up with an image of a bucket that is over
    fleet.send(5)
    fleet.send(6)
    assert fleet.judged() == sum(images for bucket, (images, _) in fleet.history().items() if bucket < 6)
    assert fleet.history()[2] == (1, 0)
    assert sum(late for _, late in fleet.history().values()) == 1


def test_a_partition_that_is_new_is_judged_though_its_images_are_old(fleet: Fleet) -> None:
    fleet.fall_back(P, {})
    fleet.store.partitions.set_idle(Q, "t", True)
    fleet.store._connection.client.delete(fleet.store.catalog._partitions)
    fleet.store.catalog.register_partitions([Q])
    for bucket in range(4):
        fleet.send(bucket, Q)
    fleet.store.catalog.register_partitions([P])
    fleet.store.partitions.start(P, 1, "t", 0)
    fleet.send(1, P)
    fleet.send(4)
    fleet.send(5)
    assert fleet.judged() == 4 + 1 + 2
    assert sum(late for _, late in fleet.history().values()) == 1
