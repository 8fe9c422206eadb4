"""Which buckets are due, which partitions hold them open, and the alerts about a watermark that does not move.

The holder of the first shard seals for all shards, and says so in Redis before any of them judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from monitor.core.alert_document import rfc3339
from monitor.core.event_time import closable, fleet_watermark, watermark_ms
from monitor.core.readers import Readers, Unread
from monitor.core.settings import BucketSettings
from monitor.core.types import Cursor, Partition
from monitor.notify.self_alerts import CLOSING, UNREAD, SelfAlerts
from monitor.store import Sealed, Store
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

OBSERVE_S = 5.0
"""Between looks at the signs of life: owners give one as often."""
HELD_MARGIN_S = 60.0
"""Beyond the time that one silent partition may hold a bucket open: a restart or a rebalance takes some of it."""
BUCKETS = "buckets"
"""Subject of the alert about buckets that do not close."""

Cursors = Mapping[Partition, Cursor | None]


class Closing:
    """What a process knows about open buckets; used by its evaluators' thread while it holds the first shard's lease.

    Args:
        now_s: the monotonic clock.
    """

    def __init__(
        self, store: Store, buckets: BucketSettings, alerts: SelfAlerts, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._alerts, self._now_s = store, alerts, now_s
        self.bucket_ms, self._lateness_ms = buckets.length_ms, buckets.lateness_ms
        self._held_after_s = buckets.seconds + buckets.lateness_s + buckets.idle_timeout_s + HELD_MARGIN_S
        self._readers = Readers()
        self._left_out: dict[Partition, Unread] = {}
        self._observe_at_s = 0.0
        self._progress: tuple[int, int | None] | None = None  # (last bucket sealed, watermark)
        self._moved_s = 0.0
        self._looked_s = float("-inf")
        self._held_alert: bool | None = None  # None: whether it is open is not known

    def due(self, partitions: tuple[Partition, ...], sealed: Sealed) -> tuple[Sealed, list[int]]:
        """Buckets that the watermark has passed, and those that a process sealed everywhere and died; oldest first.

        Returns:
            (what is sealed, as this look has changed it; the buckets to be sealed next).
        """
        self._repair(partitions, sealed)
        cursors = self._store.partitions.cursors(partitions)
        self._observe(cursors)
        read = {partition: cursor for partition, cursor in cursors.items() if partition not in self._left_out}
        muted = any(cursor and cursor.next_offset < cursor.rebuild_until for cursor in read.values())
        if muted is not sealed.muted:
            self._store.sealing.mute(muted)
            sealed = replace(sealed, muted=muted)
        metrics.MUTED.set(muted)
        watermark = fleet_watermark(read.values(), self._lateness_ms)
        metrics.WATERMARK.set((watermark or 0) / 1000)
        opened = {start for found in self._store.partitions.open_buckets(partitions).values() for _, start in found}
        opened = {start for start in opened if start > sealed.bucket_ms}
        begun = set(self._store.partitions.sealed_buckets(partitions, sealed.bucket_ms))
        due = set(closable(opened | begun, watermark, self.bucket_ms))
        self._watch(read, opened - due, (sealed.bucket_ms, watermark))
        if begun - due:
            # a partition may be without the bucket that others are sealed at: its node fell back, and it reads again
            # what belongs there. Without such a one the bucket is due, whatever the watermark has come to since
            known = self._store.partitions.sealed(partitions).values()
            until = min((each.bucket_ms for each in known), default=-1)
            due |= {start for start in begun if start <= until}
        return sealed, sorted(due)

    def seal(self, partitions: tuple[Partition, ...], bucket_ms: int, before: Sealed) -> Sealed | None:
        """Make a bucket immutable, and let all shards judge it; None where another process has gone on meanwhile."""
        store = self._store.partitions
        store.seal(partitions, bucket_ms, before.bucket_ms, before.judged)
        failpoint("after_seal")
        # never less than before: of a partition that reads again after a fall-back, more is judged than it has read
        judged = {
            partition: max(until.next_offset, before.judged.get(partition, 0))
            for partition, until in store.sealed(partitions).items()
            if until.bucket_ms == bucket_ms
        }
        return self._store.sealing.add(before, bucket_ms, judged)

    def judgeable(self, partitions: tuple[Partition, ...], decided_ms: int, sealed: Sealed) -> list[int] | None:
        """The sealed buckets after that one, oldest first; None where they must wait.

        A partition whose node fell back counts again, in the buckets that it had lost, what some shards have judged.
        The others wait for it, but not for one that nobody reads.
        """
        if decided_ms >= sealed.bucket_ms:
            return []
        starts = self._store.partitions.sealed_buckets(partitions, decided_ms)
        found = [start for start in starts if start <= sealed.bucket_ms]
        until = self._store.partitions.sealed(partitions)
        lacking = {p for p in sealed.judged if p not in until or until[p].bucket_ms < sealed.bucket_ms}
        lacking |= {p for p, known in until.items() if found and known.read_again_ms >= found[0]}
        lacking -= self._store.catalog.left_out().keys() if lacking else set()
        if lacking:
            log.info("evaluator.waits", after=decided_ms, partitions=sorted(map(str, lacking)))
            return None
        return found

    def _repair(self, partitions: tuple[Partition, ...], sealed: Sealed) -> None:
        """Tell the partitions whose node fell back behind ours what is judged, before more of it is counted again."""
        until = self._store.partitions.sealed(partitions)
        fallen = [p for p, known in until.items() if p in sealed.judged and known.bucket_ms < sealed.bucket_ms]
        if fallen:
            log.warning("partition.fell_back", partitions=[*map(str, fallen)], decided=sealed.bucket_ms)
            self._store.partitions.seal(fallen, sealed.bucket_ms, sealed.bucket_ms, sealed.judged)

    # ---------------------------------------------------------------- partitions that nobody reads

    def _observe(self, cursors: Cursors) -> None:
        """Leave the partitions out that nobody reads, and take those back that somebody reads again."""
        now_s = self._now_s()
        if now_s < self._observe_at_s:
            return
        self._observe_at_s = now_s + OBSERVE_S
        catalog = self._store.catalog
        before, absences = catalog.left_out(), catalog.absences()
        owners, configured = self._store.partitions.signs(cursors), catalog.registrations(cursors)
        self._left_out = after = self._readers.observe(now_s, owners, configured, before, absences)
        catalog.keep_absences(absences, self._readers.absences)
        self._announce(before, after)  # the alert before the state: after a crash in between it is raised again
        for partition in before.keys() | after.keys():
            if partition not in after:
                log.info("partition.read_again", partition=str(partition))
                catalog.take_back(partition)
            elif after[partition] is not before.get(partition):
                log.warning(f"partition.{after[partition]}", partition=str(partition))
                catalog.leave_out(partition, after[partition])
            elif after[partition] is Unread.RETIRED and cursors[partition] is None:
                catalog.forget(partition)  # what it counted has expired

    def _announce(self, before: Mapping[Partition, Unread], after: Mapping[Partition, Unread]) -> None:
        """One alert per topic, while a partition of it is unread."""
        was, now = _unread(before), _unread(after)
        for topic in now.keys() - was.keys():
            which = ", ".join(map(str, now[topic]))
            text = f"{topic}: no process reads partition {which}; buckets close without it"
            self._alerts.raise_alert(UNREAD, topic, text)
        self._alerts.end(was.keys() - now.keys(), UNREAD)

    # ---------------------------------------------------------------- buckets that do not close

    def _watch(self, read: Cursors, waiting: set[int], progress: tuple[int, int | None]) -> None:
        """Raise the alert when images have passed the end of an open bucket, and nothing moves towards closing it.

        A watermark that moves is progress: a backlog or a rebuild closes no bucket for a while.
        """
        now_s = self._now_s()
        highest = max((cursor.high_ms for cursor in read.values() if cursor), default=0)
        held = bool(closable(waiting, watermark_ms(highest, self._lateness_ms), self.bucket_ms))
        first = now_s - self._looked_s > HELD_MARGIN_S  # another process held the lease, or Redis was away
        self._looked_s = now_s
        moved = not held or (not first and progress != self._progress)
        if moved or first:
            self._progress, self._moved_s = progress, now_s
        if first:
            self._held_alert = None
        if moved and self._held_alert is not False:
            self._alerts.end([BUCKETS], CLOSING)
            self._held_alert = False
        held_s = now_s - self._moved_s if held else 0.0
        metrics.BUCKETS_HELD_SECONDS.set(held_s)
        # Redis may have lost the alert
        if held_s > self._held_after_s and not (self._held_alert and self._alerts.is_open(CLOSING, BUCKETS)):
            waits = f"waiting for {self._holders(read)}"
            text = f"no bucket has closed for {held_s:.0f} s although images are counted; {waits}"
            if self._held_alert is False:  # what is open then is an episode that ended before Redis fell back
                self._alerts.end([BUCKETS], CLOSING)
            self._alerts.raise_alert(CLOSING, BUCKETS, text)
            self._held_alert = True

    def _holders(self, read: Cursors) -> str:
        """The partitions whose watermark is lowest, and where they stand."""
        active = {
            partition: cursor.high_ms if cursor else 0 for partition, cursor in read.items() if not _is_idle(cursor)
        }
        lowest = min(active.values(), default=0)
        names = ", ".join(str(partition) for partition, high_ms in active.items() if high_ms == lowest)
        return f"{names} (last event time {rfc3339(lowest)})" if lowest else f"{names} (no image yet)"


def _is_idle(cursor: Cursor | None) -> bool:
    return cursor is not None and cursor.idle


def _unread(left_out: Mapping[Partition, Unread]) -> dict[str, list[int]]:
    """{topic: its partitions that are unread}."""
    found: dict[str, list[int]] = {}
    for partition, state in sorted(left_out.items()):
        if state is Unread.UNREAD:
            found.setdefault(partition.topic, []).append(partition.index)
    return found
