"""What the reader does besides reading, each at its own pace: register, verify, commit, mark idle, measure lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from monitor.core.reject_window import RejectWindow
from monitor.core.types import Partition
from monitor.ingest.assignment import OwnedPartition, StartPolicy
from monitor.ingest.image_log import SUBJECT
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, STREAMS, TOPIC, UNREADABLE, VERDICTS, SelfAlerts
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
"""Between looks whether Redis still stands where we do: a quiet partition would never notice that it was lost."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Limits of the reader; see the configuration."""

    poll_s: float = 0.2
    queue_bytes: int = 256 * 2**20
    idle_timeout_s: float = 30.0
    stall_s: float = 120.0
    recent: RejectWindow = field(default_factory=RejectWindow)
    """How the share of bad records is judged."""
    unnamed_stream: str = "default"
    """Where records count that nothing is known of but their offset."""
    policy: StartPolicy = field(default_factory=StartPolicy)


@dataclass(slots=True)
class Health:
    """What the reader last did, by the monotonic clock; read by the watchdog and the readiness page."""

    polled_s: float = field(default_factory=time.monotonic)
    moved_s: float = field(default_factory=time.monotonic)
    """Last time that work was applied, or that there was none."""
    joined: bool = False
    redis_ok: bool = True
    letters_ok: bool = True
    verdicts_ok: bool = True
    stopped: dict[Partition, str] = field(default_factory=dict)
    """Partitions that are not read on until a person has looked, and why."""


class Maintenance:
    """Owned by the reader's thread; `owned` and `health` are the reader's own."""

    def __init__(
        self,
        store: Store,
        alerts: SelfAlerts,
        publish: Callable[[], None],
        settings: ConsumerSettings,
        owned: Mapping[Partition, OwnedPartition],
        health: Health,
    ) -> None:
        self._store, self._alerts, self._publish, self._settings = store, alerts, publish, settings
        self._owned, self._health = owned, health
        self._told_streams = False
        self._registered_s = self._verified_s = self._committed_s = self._idle_checked_s = self._lag_s = 0.0

    def commit_soon(self) -> None:
        """A partition was claimed."""
        self._committed_s = min(self._committed_s, time.monotonic() - COMMIT_S + FIRST_COMMIT_S)

    def register_soon(self) -> None:
        """What the evaluator must know may be lost."""
        self._registered_s = 0.0

    def tend(self, source: Source, in_hand: bool, paused: bool) -> list[Partition]:
        """Whatever is due.

        Returns:
            Partitions that Redis has lost or set back, and that must be taken over again.

        Raises:
            StoreError: Redis is away; what was not done is done the next time.
            SourceError: records wait, and none comes.
        """
        now_s = time.monotonic()
        lost: list[Partition] = []
        if now_s - self._registered_s > REGISTER_S:
            self._registered_s = now_s
            self._register(source)
        if now_s - self._verified_s > VERIFY_S:
            self._verified_s = now_s
            lost = self._lost()
        if now_s - self._committed_s > COMMIT_S:
            self._committed_s = now_s
            self.commit(source)
        if now_s - self._idle_checked_s > min(1.0, self._settings.idle_timeout_s / 3):
            self._idle_checked_s = now_s
            if not paused:
                self._mark_idle(source, now_s)
        if now_s - self._lag_s > LAG_S:
            self._lag_s = now_s
            self._measure_lag(source, now_s, in_hand)
        return lost

    def commit(self, source: Source) -> None:
        """Tell the group how far we are, never ahead of what survives in Redis."""
        offsets = {p: reading.next_offset for p, reading in self._owned.items()}
        failpoint("before_commit")
        if offsets and self._store.settle_on_disk():
            source.commit(offsets)
        elif offsets:
            log.warning("commit.waits_for_disk", advice="where appendfsync is no, set redis.wait_aof: false")
        failpoint("after_commit")

    def _register(self, source: Source) -> None:
        """What others go by must be in Redis, also after it was lost."""
        self._store.catalog.register_partitions(source.partitions())
        self._publish()
        self._alerts.end(now_ms(), ["source"], TOPIC)
        over = self._store.counts.streams_over_limit(self._owned)
        metrics.STREAMS_OVER_LIMIT.set(over)
        if over and not self._told_streams:
            text = f"{over} images came from streams beyond stream.max_streams and are counted as (other)"
            self._alerts.tell(STREAMS, "streams", now_ms(), text)
            self._told_streams = True
        if self._health.letters_ok:
            self._alerts.end(now_ms(), sorted({p.topic for p in self._owned}), DEAD_LETTERS)
        if self._health.verdicts_ok:
            self._alerts.end(now_ms(), [SUBJECT], VERDICTS)
        self._health.redis_ok = True

    def _lost(self) -> list[Partition]:
        lost = []
        for partition, cursor in self._store.partitions.cursors(self._owned).items():
            reading = self._owned[partition]
            if cursor is None or cursor.token != reading.token or cursor.next_offset < reading.next_offset:
                log.warning("partition.cursor_lost", partition=str(partition), expect=reading.next_offset)
                lost.append(partition)
        return lost

    def _mark_idle(self, source: Source, now_s: float) -> None:
        """Tell the evaluator which partitions are read to the end and quiet: they hold no bucket open."""
        for partition, reading in self._owned.items():
            if reading.idle or now_s - reading.active_s < self._settings.idle_timeout_s:
                continue
            if source.bounds(partition)[1] <= reading.next_offset:
                reading.idle = self._store.partitions.set_idle(partition, reading.token, True)

    def _measure_lag(self, source: Source, now_s: float, in_hand: bool) -> None:
        metrics.LAG_RECORDS.clear()  # of partitions that went to another replica
        caught_up, calm = [], []
        for partition, reading in self._owned.items():
            lag = source.bounds(partition)[1] - reading.next_offset
            metrics.LAG_RECORDS.labels(partition.topic, partition.index).set(max(0, lag))
            if lag <= 0:
                caught_up.append(str(partition))
            elif not in_hand and now_s - reading.active_s > self._settings.stall_s:
                raise SourceError(f"{partition}: {lag} records wait, and none came for {self._settings.stall_s:g} s")
            if reading.recent.full:
                calm.append(str(partition))
        self._alerts.end(now_ms(), caught_up, GAP, UNREADABLE)
        self._alerts.end(now_ms(), calm, DEAD_LETTERS)


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000
