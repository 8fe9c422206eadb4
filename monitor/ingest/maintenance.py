"""What the consumer does besides moving records, each at its own pace: register, verify, commit, mark idle, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

from monitor.core.types import Partition
from monitor.ingest.sinks import Sinks
from monitor.ingest.work import OwnedPartition, wall_clock_ms
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, STREAMS, TOPIC, UNREADABLE, SelfAlerts
from monitor.sources.protocol import Source, SourceError
from monitor.store import Store
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

COMMIT_S = 5.0
"""Between commits to the group: they only feed lag tools."""
FIRST_COMMIT_S = 0.5
"""After a claim: a commit is what tells a partition that Redis has lost from one that was never read."""
REGISTER_S = 10.0
"""Between looks for partitions added to the topics."""
LAG_S = 15.0
"""Between looks at the ends of the logs: two requests a partition."""
VERIFY_S = 5.0
"""Between looks whether Redis still stands where we do: without records nothing else would notice a loss."""
IDLE_LOOK_S = 1.0
SOURCE = "source"
"""Subject of the alert about a source that ended this process."""

Owned = Mapping[Partition, OwnedPartition]


class Done(NamedTuple):
    """What a round of maintenance found."""

    registered: bool
    """Whether Redis has just taken what the evaluator must know."""
    lost: list[Partition]
    """Partitions that Redis has lost or set back, and that must be claimed again."""


class Maintenance:
    """Belongs to the consumer's thread.

    Args:
        publish: writes to Redis what others must know of our profiles.
        idle_timeout_s: a partition that is read to its end and quiet for that long is marked as idle.
        stall_s: records that wait for that long, while none comes, are a fault of the source.
    """

    def __init__(
        self,
        store: Store,
        alerts: SelfAlerts,
        sinks: Sinks,
        publish: Callable[[], None],
        idle_timeout_s: float,
        stall_s: float,
    ) -> None:
        self._store, self._alerts, self._sinks, self._publish = store, alerts, sinks, publish
        self._idle_timeout_s, self._stall_s = idle_timeout_s, stall_s
        self._streams_alert_raised = False
        self._registered_s = self._verified_s = self._committed_s = self._idle_checked_s = self._lag_s = 0.0

    def commit_soon(self) -> None:
        """A partition was claimed."""
        self._committed_s = min(self._committed_s, time.monotonic() - COMMIT_S + FIRST_COMMIT_S)

    def register_soon(self) -> None:
        """What the evaluator must know may be lost."""
        self._registered_s = 0.0

    def run(self, source: Source, owned: Owned, in_flight: bool, paused: bool) -> Done:
        """Do whatever is due.

        Raises:
            StoreError: Redis is away; what was not done is done the next time.
            SourceError: records wait, and none comes.
        """
        now_s = time.monotonic()
        registered = now_s - self._registered_s > REGISTER_S
        if registered:
            self._registered_s = now_s
            self._register(source, owned)
        lost: list[Partition] = []
        if now_s - self._verified_s > VERIFY_S:
            self._verified_s = now_s
            lost = self._lost(owned)
        if now_s - self._committed_s > COMMIT_S:
            self._committed_s = now_s
            self.commit(source, owned)
        if now_s - self._idle_checked_s > min(IDLE_LOOK_S, self._idle_timeout_s / 3):
            self._idle_checked_s = now_s
            if not paused:
                self._mark_idle(source, owned, now_s)
        if now_s - self._lag_s > LAG_S:
            self._lag_s = now_s
            self._measure_lag(source, owned, in_flight, now_s)
        return Done(registered, lost)

    def commit(self, source: Source, owned: Owned) -> None:
        """Commit our cursors to the group, never ahead of what survives in Redis."""
        offsets = {partition: owner.next_offset for partition, owner in owned.items()}
        failpoint("before_commit")
        if offsets and self._store.settle_on_disk():
            source.commit(offsets)
        elif offsets:
            log.warning("commit.waits_for_disk", advice="where appendfsync is no, set redis.wait_aof: false")
        failpoint("after_commit")

    def report_fatal(self, error: str) -> None:
        """Raise the alert about a source that ends this process; it ends when a process registers again."""
        self._alerts.tell_if_possible(TOPIC, SOURCE, wall_clock_ms(), error)

    def _register(self, source: Source, owned: Owned) -> None:
        """Write what others go by, again and again: Redis may have lost it."""
        self._store.catalog.register_partitions(source.partitions())
        self._publish()
        self._alerts.end(wall_clock_ms(), [SOURCE], TOPIC)
        over = self._store.counts.streams_over_limit(owned)
        metrics.STREAMS_OVER_LIMIT.set(over)
        if over and not self._streams_alert_raised:
            text = f"{over} images came from streams beyond stream.max_streams and are counted as (other)"
            self._alerts.tell(STREAMS, "streams", wall_clock_ms(), text)
            self._streams_alert_raised = True
        self._sinks.end_alerts(partition.topic for partition in owned)

    def _lost(self, owned: Owned) -> list[Partition]:
        lost = []
        for partition, cursor in self._store.partitions.cursors(owned).items():
            owner = owned[partition]
            if cursor is None or cursor.token != owner.token or cursor.next_offset < owner.next_offset:
                log.warning("partition.cursor_lost", partition=str(partition), expect=owner.next_offset)
                lost.append(partition)
        return lost

    def _mark_idle(self, source: Source, owned: Owned, now_s: float) -> None:
        """Mark partitions that are read to the end and quiet: they hold no bucket open."""
        for partition, owner in owned.items():
            if owner.idle or now_s - owner.active_s < self._idle_timeout_s:
                continue
            if source.bounds(partition)[1] <= owner.next_offset:
                owner.idle = self._store.partitions.set_idle(partition, owner.token, True)

    def _measure_lag(self, source: Source, owned: Owned, in_flight: bool, now_s: float) -> None:
        metrics.LAG_RECORDS.clear()  # of partitions that went to another replica
        caught_up, calm = [], []
        for partition, owner in owned.items():
            lag = source.bounds(partition)[1] - owner.next_offset
            metrics.LAG_RECORDS.labels(partition.topic, partition.index).set(max(0, lag))
            if lag <= 0:
                caught_up.append(str(partition))
            elif not in_flight and now_s - owner.active_s > self._stall_s:
                raise SourceError(f"{partition}: {lag} records wait, and none came for {self._stall_s:g} s")
            if owner.rejects.full:
                calm.append(str(partition))
        self._alerts.end(wall_clock_ms(), caught_up, GAP, UNREADABLE)
        self._alerts.end(wall_clock_ms(), calm, DEAD_LETTERS)
