"""Periodic work of the consumer besides moving records: register, commit, mark partitions as idle, measure lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from monitor.core.types import Partition
from monitor.ingest.sinks import Sinks
from monitor.ingest.work import OwnedPartition
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, STREAMS, TOPIC, UNREADABLE, SelfAlerts
from monitor.sources.protocol import Source, SourceError
from monitor.store import Store
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

COMMIT_S = 5.0
"""Between commits to the group: they only feed lag tools."""
FIRST_COMMIT_S = 0.5
"""After a claim: only a commit distinguishes a partition that Redis has lost from a new one."""
REGISTER_S = 10.0
"""Between registrations: partitions may be added to the topics, and Redis may lose what was registered."""
LAG_S = 15.0
"""Between lag measurements: two requests per partition."""
LETTERS_S = 60.0
"""Between log lines about dead letters."""
IDLE_LOOK_S = 1.0
STREAMS_QUIET_S = 3600.0
"""Without an image beyond the limit on streams, until the alert about it ends: rarer ones would raise it each time."""
SOURCE = "source"
"""Subject of the alert about a source that ended this process."""

Owned = Mapping[Partition, OwnedPartition]


class Every:
    """A timer: due at once, then every `period_s`."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._next_s = 0.0  # by the monotonic clock

    def due(self) -> bool:
        """Whether it is due; if so, a new period begins."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True

    def soon(self, wait_s: float = 0.0) -> None:
        """Make it due in `wait_s` at the latest."""
        self._next_s = min(self._next_s, time.monotonic() + wait_s)


class Maintenance:
    """Periodic work in the consumer's thread.

    Args:
        publish: writes our profiles and their layouts to Redis.
        idle_timeout_s: a partition that is read to its end is idle after that time without records.
        stall_s: the source is broken if records wait in the log and it returns none for that time.
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
        self._store, self._alerts, self.sinks, self._publish = store, alerts, sinks, publish
        self._idle_timeout_s, self._stall_s = idle_timeout_s, stall_s
        self._streams_alert_raised = False
        self._register_every, self._commit_every, self._lag_every = Every(REGISTER_S), Every(COMMIT_S), Every(LAG_S)
        self._letters_every = Every(LETTERS_S)
        self._idle_every = Every(min(IDLE_LOOK_S, idle_timeout_s / 3))

    def after_claim(self) -> None:
        """Commit and register soon: if Redis lost the partition, it may have lost what the evaluator needs too."""
        self._commit_every.soon(FIRST_COMMIT_S)
        self._register_every.soon()

    def after_switch(self) -> None:
        """Say soon that this process scores with other profiles."""
        self._register_every.soon()

    def run(self, source: Source, owned: Owned, in_flight: bool, paused: bool) -> bool:
        """Do what is due; returns whether Redis has just accepted the registration.

        Raises:
            StoreError: Redis does not answer; what was not done is done in the next period.
            SourceError: records wait in the log, and the source returns none.
        """
        if registered := self._register_every.due():
            self._register(source, owned)
        if self._commit_every.due():
            self.commit(source, owned)
        if self._idle_every.due() and not paused:
            self._mark_idle(source, owned)
        if self._lag_every.due():
            self._measure_lag(source, owned, in_flight)
        if self.sinks.unlogged and self._letters_every.due():
            self.sinks.log_letters()
        return registered

    def commit(self, source: Source, owned: Owned) -> None:
        """Commit our cursors to the group, but nothing that a crash of Redis could lose."""
        offsets = {partition: owner.next_offset for partition, owner in owned.items()}
        failpoint("before_commit")
        if offsets and self._store.settle_on_disk():
            source.commit(offsets)
        elif offsets:
            log.warning("commit.waits_for_disk", advice="where appendfsync is no, set redis.wait_aof: false")
        failpoint("after_commit")

    def report_fatal(self, error: str) -> None:
        """Raise the alert about the source that ends this process; the next process that registers ends the alert."""
        self._alerts.try_to_raise(TOPIC, SOURCE, error)

    def _register(self, source: Source, owned: Owned) -> None:
        """Write partitions and profiles for the evaluator; again in each period, as Redis may have lost them."""
        partitions = source.partitions()
        self._store.catalog.register_partitions(partitions)
        self._publish()
        self._alerts.end([SOURCE], TOPIC)
        for owner in owned.values():  # else every name that ever came would stay in memory
            newest_ms = max((facts.seen_ms for facts in owner.facts.values()), default=0)
            owner.facts = self._store.partitions.alive(owner.facts, newest_ms)
        metrics.STREAMS_OVER_LIMIT.set(self._store.counts.streams_over_limit(owned))
        self._judge_streams(partitions)
        self.sinks.end_alerts(partition.topic for partition in owned)

    def _judge_streams(self, partitions: Sequence[Partition]) -> None:
        """Open or end the alert about too many streams; all processes look at all partitions, and decide alike."""
        counts = self._store.counts
        if self._store.outbox.now_ms() - counts.over_limit_ms(partitions) >= 1000 * STREAMS_QUIET_S:
            self._alerts.end(["streams"], STREAMS, why="no image came from a stream beyond the limit for an hour")
            self._streams_alert_raised = False
        # Redis may have lost the alert
        elif not (self._streams_alert_raised and self._alerts.is_open(STREAMS, "streams")):
            over = counts.streams_over_limit(partitions)
            text = f"{over} images came from streams beyond stream.max_streams and are counted as (other)"
            self._alerts.raise_alert(STREAMS, "streams", text)
            self._streams_alert_raised = True

    def _mark_idle(self, source: Source, owned: Owned) -> None:
        """Mark partitions without new records as idle, so that they hold no bucket open."""
        for partition, owner in owned.items():
            if owner.idle or time.monotonic() - owner.active_s < self._idle_timeout_s:
                continue
            if source.bounds(partition)[1] <= owner.next_offset:
                owner.idle = self._store.partitions.set_idle(partition, owner.token, True)

    def _measure_lag(self, source: Source, owned: Owned, in_flight: bool) -> None:
        metrics.LAG_RECORDS.clear()  # of partitions that went to another replica
        caught_up, calm = [], []
        for partition, owner in owned.items():
            lag = source.bounds(partition)[1] - owner.next_offset
            metrics.LAG_RECORDS.labels(partition.topic, partition.index).set(max(0, lag))
            if lag <= 0:
                caught_up.append(str(partition))
            elif not in_flight and time.monotonic() - owner.active_s > self._stall_s:
                raise SourceError(f"{partition}: {lag} records wait, and none came for {self._stall_s:g} s")
            if owner.rejects.full:
                calm.append(str(partition))
        self._alerts.end(caught_up, GAP, UNREADABLE)
        self._alerts.end(calm, DEAD_LETTERS)
