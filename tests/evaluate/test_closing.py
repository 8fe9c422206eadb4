"""What holds buckets open, and for how long: on a real Redis, with a clock of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core import readers
from monitor.core.buckets import IMAGES, Layout
from monitor.core.readers import Unread
from monitor.core.types import Delta, Partition
from monitor.evaluate.closing import BUCKETS
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.fleet.state import read_state
from monitor.notify.self_alerts import CLOSING, UNREAD
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of
from tests.vectors import fill

OLD, NEW, SLOW = Partition("old", 0), Partition("new", 0), Partition("new", 1)
LAYOUT = Layout(("ood",), (999,), (False,), (True,), (1.0,))
T0_MS, BUCKET_MS = 1_750_000_000_000, 10_000
HELD = f"{CLOSING} {BUCKETS}"
LOOK_EVERY_S = 50
"""Just often enough for the observation to be without a gap."""
_monitors = itertools.count()


class Fleet:
    """Partitions with owners that come and go, and an evaluator; time passes by `run`."""

    def __init__(self, store: Store) -> None:
        self.store, self.now_s, self.bucket = store, 1000.0, 0
        self.offsets: dict[Partition, int] = {}
        self.configured: Sequence[Partition] = ()
        self.take_lease()

    def take_lease(self) -> None:
        """Another process evaluates from now on."""
        self.store._connection.client.delete(self.store._monitor_keys.key("tenure"))
        closing = closing_of(self.store, now_s=lambda: self.now_s)
        self.evaluator = Evaluator(self.store, (), {"fp": LAYOUT}, closing, Presentation("closing"))
        self.evaluator.load()

    def own(self, *partitions: Partition) -> None:
        """Claim these."""
        for partition in partitions:
            if self.store.partitions.claim(partition, 1, "a").cursor is None:
                self.store.partitions.start(partition, 1, "a", 0)
            self.offsets.setdefault(partition, 0)

    def count(self, partition: Partition, bucket: int) -> None:
        """One image of that bucket."""
        at, start_ms = self.offsets[partition], T0_MS + bucket * BUCKET_MS
        vectors = {("fp", start_ms, "cam-1"): fill(LAYOUT, np.array([[0.9]]))}
        (applied,) = self.store.partitions.apply([Delta(partition, "a", at, at + 1, start_ms, vectors)])
        assert applied.status == "ok"
        self.offsets[partition] = at + 1

    def run(self, seconds: float, moving: Sequence[Partition] = (), owned: Sequence[Partition] = ()) -> None:
        """Time passes: `moving` partitions get images, and `owned` ones have an owner that gets none."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += LOOK_EVERY_S
            self.bucket += 1
            self.store.catalog.register_partitions(self.configured)
            self.store.partitions.keep(dict.fromkeys([*moving, *owned], "a"))
            for partition in moving:
                self.count(partition, self.bucket)
            self.evaluator.look()

    def closed(self) -> int:
        """Buckets decided so far."""
        return self.store.evaluation.state().version

    def alerts(self) -> set[str]:
        """Open alerts about the monitor."""
        return set(self.store.outbox.self_alerts())


@pytest.fixture
def fleet(redis_server: PrivateRedis) -> Iterator[Fleet]:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"closing-{next(_monitors)}")
    yield Fleet(store)
    store.close()


def test_a_topic_that_nobody_reads_any_more_stops_holding_buckets_open(fleet: Fleet) -> None:
    fleet.configured = [OLD]
    fleet.own(OLD)
    fleet.run(LOOK_EVERY_S)
    fleet.count(OLD, 0)
    fleet.configured = [NEW]  # renamed, and the fleet restarted
    fleet.own(NEW)
    fleet.run(readers.UNREAD_AFTER_S - LOOK_EVERY_S, moving=[NEW])
    assert (fleet.closed(), fleet.alerts()) == (0, {HELD})
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW])
    assert fleet.closed() > 0
    assert fleet.alerts() == {f"{UNREAD} old"}
    assert fleet.store.partitions.open_buckets([OLD]) == {OLD: []}
    assert read_state(fleet.store, 10_000).watermark_ms == T0_MS + (fleet.bucket - 1) * BUCKET_MS

    fleet.run(readers.RETIRED_AFTER_S, moving=[NEW])
    assert fleet.alerts() == set()
    assert fleet.store.catalog.left_out() == {OLD: Unread.RETIRED}
    history = fleet.store.counts.of_stream(fleet.store.catalog.partitions(), "fp", "cam-1", (T0_MS, T0_MS + 1))
    assert history[T0_MS][IMAGES] == 1
    closed = fleet.closed()
    fleet.take_lease()
    fleet.run(LOOK_EVERY_S, moving=[NEW])
    assert fleet.closed() > closed  # the next process goes on at once

    fleet.configured = [NEW, OLD]
    fleet.own(OLD)
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW], owned=[OLD])
    assert fleet.store.catalog.left_out() == {}
    closed = fleet.closed()
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW], owned=[OLD])
    assert fleet.closed() == closed  # it is waited for again


def test_a_lease_that_moves_often_does_not_begin_the_wait_for_an_owner_again(fleet: Fleet) -> None:
    fleet.store.catalog.register_partitions([OLD])
    fleet.configured = [NEW]
    fleet.own(OLD, NEW)
    fleet.count(OLD, 0)
    for _ in range(2):
        fleet.run(readers.UNREAD_AFTER_S / 2, moving=[NEW])
        assert fleet.store.catalog.left_out() == {}
        fleet.take_lease()
    fleet.run(4 * LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.catalog.left_out() == {OLD: Unread.UNREAD}
    for _ in range(30):  # what passes between two observers does not count
        fleet.run(readers.RETIRED_AFTER_S / 18, moving=[NEW])
        fleet.take_lease()
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.catalog.left_out() == {OLD: Unread.RETIRED}
    assert fleet.store.catalog.absences() == {}


def test_an_owner_that_gave_a_sign_while_nobody_observed_was_there(fleet: Fleet) -> None:
    fleet.store.catalog.register_partitions([OLD])
    fleet.configured = [NEW]
    fleet.own(OLD, NEW)
    fleet.run(readers.UNREAD_AFTER_S - LOOK_EVERY_S, moving=[NEW])
    assert OLD in fleet.store.catalog.absences()
    fleet.store.partitions.keep({OLD: "a"})
    fleet.take_lease()
    fleet.run(readers.UNREAD_AFTER_S - LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.catalog.left_out() == {}


def test_a_retired_partition_whose_state_has_expired_is_forgotten(fleet: Fleet) -> None:
    fleet.store.catalog.register_partitions([OLD])
    fleet.configured = [NEW]
    fleet.own(NEW)
    fleet.run(readers.RETIRED_AFTER_S + 2 * LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.catalog.partitions() == (NEW,)
    assert fleet.store.catalog.left_out() == {}


def test_a_fleet_that_starts_with_a_backlog_or_returns_from_an_outage_waits_for_its_owners(fleet: Fleet) -> None:
    fleet.configured = [OLD, NEW]
    fleet.own(OLD, NEW)
    fleet.run(LOOK_EVERY_S, moving=[NEW], owned=[OLD])
    fleet.now_s += 7200  # Redis, or every process, was away
    fleet.run(readers.UNREAD_AFTER_S - LOOK_EVERY_S, moving=[NEW])
    assert (fleet.closed(), fleet.alerts()) == (0, {HELD})
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW], owned=[OLD])
    assert fleet.store.catalog.left_out() == {}


def test_while_nobody_reads_anything_nothing_is_left_out_and_the_first_to_return_waits_for_the_others(
    fleet: Fleet,
) -> None:
    fleet.configured = [NEW, SLOW]
    fleet.own(NEW, SLOW)
    fleet.run(LOOK_EVERY_S, moving=[NEW, SLOW])
    closed = fleet.closed()
    fleet.run(2 * readers.UNREAD_AFTER_S)  # the broker is away; then both have a backlog
    fleet.run(readers.UNREAD_AFTER_S - LOOK_EVERY_S, moving=[NEW])
    assert (fleet.closed(), fleet.store.catalog.left_out()) == (closed, {})
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.catalog.left_out() == {SLOW: Unread.UNREAD}


def test_buckets_that_do_not_close_although_images_are_counted_are_alerted_on(fleet: Fleet) -> None:
    fleet.configured = [NEW, SLOW]
    fleet.own(NEW, SLOW)
    fleet.count(SLOW, 0)
    fleet.run(4 * LOOK_EVERY_S, moving=[NEW], owned=[SLOW])  # its owner reads, but stands
    assert fleet.alerts() == {HELD}
    (document,) = fleet.store.outbox.self_alerts().values()
    assert "new:1 (last event time 2025-06-15T15:06:40" in document
    fleet.take_lease()
    fleet.run(LOOK_EVERY_S, moving=[NEW], owned=[SLOW])
    assert fleet.alerts() == {HELD}  # another process does not know better
    fleet.run(4 * LOOK_EVERY_S, moving=[NEW], owned=[SLOW])
    fleet.store._connection.client.delete(f"{fleet.store._monitor_keys.key('outbox')}:own")
    fleet.run(LOOK_EVERY_S, moving=[NEW], owned=[SLOW])
    assert fleet.alerts() == {HELD}  # raised again where Redis has lost it
    opened = fleet.store.outbox.self_alerts()
    fleet.run(2 * LOOK_EVERY_S, moving=[NEW, SLOW])
    assert fleet.alerts() == set()
    fleet.store.outbox.raise_self_alert(HELD, opened[HELD])  # as a server that fell back has it
    fleet.run(4 * LOOK_EVERY_S, moving=[NEW], owned=[SLOW])
    assert fleet.alerts() == {HELD}
    assert fleet.store.outbox.self_alerts() != opened  # the next episode has an alert of its own


def test_a_backlog_that_moves_is_no_standstill(fleet: Fleet) -> None:
    fleet.configured = [NEW, SLOW]
    fleet.own(NEW, SLOW)
    fleet.count(NEW, 1000)
    for offset in range(20):
        fleet.store.partitions.apply([Delta(SLOW, "a", offset, offset + 1, T0_MS + offset, {})])
        fleet.run(LOOK_EVERY_S, owned=[NEW, SLOW])
    assert fleet.alerts() == set()


def test_a_rebuild_that_nobody_continues_mutes_no_alert(fleet: Fleet) -> None:
    fleet.configured = [NEW, OLD]
    fleet.own(NEW)
    fleet.store.partitions.start(OLD, 1, "a", 0, "", 100)
    fleet.run(LOOK_EVERY_S, moving=[NEW])
    assert fleet.store.sealing.read().muted
    fleet.run(readers.UNREAD_AFTER_S + LOOK_EVERY_S, moving=[NEW])
    assert not fleet.store.sealing.read().muted
