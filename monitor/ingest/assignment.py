"""The partitions that this process owns: how it claims one, from which offset it reads, and when it stops one.

| Redis has a cursor | the group has a commit | read from |
|---|---|---|
| yes | any | the cursor: it alone says what has been counted |
| no | no | the start policy (`earliest` or `latest`); a partition added after the topic was first read: its start |
| no | yes | `now - window - lateness`, or the commit where that lies before: Redis lost its state |

In the last case the windows are rebuilt from the log; alerts that fire before the commit is reached are suppressed,
because they have been sent before. A cursor before the start of the log is a gap (retention removed unread records): it
is counted, and by policy skipped with an alert, or the partition stops. If the cursor belongs to another log (the topic
was deleted and created again) or lies beyond the end of the log, the partition stops.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Literal

import structlog

from monitor.core.kept_images import KeptImages, KeptWorst
from monitor.core.reject_window import RejectWindow
from monitor.core.types import Cursor, DeadLetter, Partition, Record
from monitor.ingest.settings import DeadLetterSettings
from monitor.ingest.work import OwnedPartition, Work
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, TOPIC, UNREADABLE, SelfAlerts
from monitor.sources.protocol import Polled, Source, SourceError, UnreadableError
from monitor.store import ClaimStatus, Store
from monitor.telemetry import metrics
from monitor.telemetry.clock import wall_ms
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

CLAIM_RETRY_S = 1.0
"""Between claims of a partition while Redis does not answer."""


@dataclass(frozen=True, slots=True)
class AssignmentPolicy:
    """Where to start without a cursor, and what to do about records that are bad, deleted or unreadable."""

    start: Literal["earliest", "latest"]
    rebuild_ms: int
    """How far back a rebuild of lost state reaches: the longest window plus the lateness."""
    dead_letters: DeadLetterSettings
    unnamed_stream: str
    """Stream that unreadable records count in: only their offset is known."""
    exemplars: int = 12
    """Worst images kept per stream and hour."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a partition is not read, and the token of the claim that found it."""

    token: str
    reason: str


class _StoppedError(Exception):
    """A partition must not be read until it is assigned again. `rule` names the alert about it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Assignment:
    """Claims and stops partitions; the only place that changes `owned` and `stopped`."""

    def __init__(self, store: Store, alerts: SelfAlerts, policy: AssignmentPolicy) -> None:
        self._store, self._alerts, self._policy = store, alerts, policy
        letters = policy.dead_letters
        self._no_rejects = RejectWindow(letters.window, letters.max_share) if letters.max_share < 1 else RejectWindow()
        self.owned: dict[Partition, OwnedPartition] = {}
        """The partitions that are claimed and read."""
        self.stopped: dict[Partition, Stopped] = {}
        """Assigned partitions that are not read until they are assigned again, which a restart does."""
        self.skipped: list[Work] = []
        """Dead letters for unreadable records, to be applied before the records that follow them."""
        self._unclaimed: dict[Partition, float] = {}  # -> monotonic time of the next try
        self._unreadable: dict[Partition, UnreadableError] = {}

    def is_current(self, owner: OwnedPartition) -> bool:
        """Whether this claim is the latest of its partition."""
        return self.owned.get(owner.partition) is owner

    def follow(self, polled: Polled) -> None:
        """Drop revoked partitions; assigned ones become due to be claimed."""
        for partition in polled.revoked:
            self.drop(partition)
        for partition in polled.assigned:
            self.claim_again(partition)

    def claim_again(self, partition: Partition) -> None:
        """Drop the claim and make the partition due: it was assigned, or its cursor in Redis differs from ours.

        A stopped one is tried again: another owner may have read on meanwhile, and stopped is only who has claimed it.
        """
        self.drop(partition)
        self._unclaimed[partition] = 0.0

    def drop(self, partition: Partition) -> None:
        """Forget a partition that another owner has."""
        self.owned.pop(partition, None)
        self._unclaimed.pop(partition, None)
        self.stopped.pop(partition, None)
        metrics.PARTITIONS_STOPPED.set(len(self.stopped))

    def clear(self) -> None:
        """Forget all claims: we left the group."""
        for partition in [*self.owned, *self.stopped]:
            self.drop(partition)
        self.skipped.clear()
        self._unclaimed.clear()

    def note_damage(self, error: UnreadableError) -> None:
        """Let the next claim of that partition skip what cannot be read, or stop it, by policy."""
        self._unreadable[error.partition] = error

    def verify(self) -> None:
        """Give a sign of life for our partitions, and repair what Redis has lost or set back.

        A partition whose cursor is not ours any more is claimed again; one that is no longer marked as idle is marked
        again, so that it holds no bucket open.

        Raises:
            StoreError: Redis does not answer.
        """
        tokens = {p: owner.token for p, owner in self.owned.items()}
        tokens |= {p: stopped.token for p, stopped in self.stopped.items()}
        for partition, cursor in self._store.partitions.keep(tokens).items():
            owner, token = self.owned.get(partition), tokens[partition]
            if cursor is None or cursor.token != token or (owner and cursor.next_offset < owner.next_offset):
                log.warning("partition.cursor_lost", partition=str(partition), expect=owner and owner.next_offset)
                self.claim_again(partition)
            elif not cursor.idle and owner:
                owner.idle = False
            elif not cursor.idle:
                self._store.partitions.set_idle(partition, token, True)

    def claim_due(self, source: Source) -> None:
        """Claim the partitions that are due and start the source at their cursors; or stop a partition, by policy.

        Raises:
            StoreError: Redis does not answer; the failed claim is retried after CLAIM_RETRY_S.
            SourceError: a newer owner holds a partition: our membership is out of date.
        """
        now_s = time.monotonic()
        for partition in [p for p, not_before_s in self._unclaimed.items() if not_before_s <= now_s]:
            self._claim(source, partition)

    def _claim(self, source: Source, partition: Partition) -> None:
        token = uuid.uuid4().hex
        self._unclaimed[partition] = time.monotonic() + CLAIM_RETRY_S
        try:
            owner = self._take_over(source, partition, token)
            failpoint("claimed")
            begin = self._skip_damage(source, owner)
        except _StoppedError as error:
            self._stop(source, partition, token, error)
            return
        del self._unclaimed[partition]
        self.owned[partition] = owner
        source.start(partition, begin)

    def take_skipped(self) -> list[Work]:
        """Empty `skipped` and return what it held."""
        skipped, self.skipped = self.skipped, []
        return skipped

    def judge_rejects(self, source: Source, owner: OwnedPartition) -> None:
        """Stop a partition if too many of its records are bad: its producer is broken, and we would only copy them.

        Raises:
            StoreError: it is stopped, but not marked as idle in Redis; `verify` does it.
        """
        rejects = owner.rejects
        if rejects.exceeded:
            share = f"{sum(rejects.bad)} of the last {rejects.window} records are bad"
            text = f"{owner.partition}: {share} (dead_letters.max_share {rejects.max_share})"
            self._stop(source, owner.partition, owner.token, _StoppedError(DEAD_LETTERS, text))

    def _stop(self, source: Source, partition: Partition, token: str, error: _StoppedError) -> None:
        """Stop reading it until it is assigned again, and mark it as idle, so that the buckets of the others close."""
        self.drop(partition)
        self.stopped[partition] = Stopped(token, str(error))
        metrics.PARTITIONS_STOPPED.set(len(self.stopped))
        source.pause([partition])
        self._alerts.try_to_raise(error.rule, str(partition), str(error))
        self._store.partitions.set_idle(partition, token, True)

    # ---------------------------------------------------------------- where to start

    def _take_over(self, source: Source, partition: Partition, token: str) -> OwnedPartition:
        generation, log_id = source.generation, source.log_id(partition)
        claim = self._store.partitions.claim(partition, generation, token, log_id)
        if claim.status is ClaimStatus.STALE:
            raise SourceError(f"{partition}: a newer owner holds it; joining the group again")
        if claim.cursor is None:
            begin, rebuild_until = self._first_offset(source, partition)
            claim = self._store.partitions.start(partition, generation, token, begin, log_id, rebuild_until)
        cursor = self._after_gap(source, partition, _ours(partition, claim.cursor, token), log_id)
        log.info("partition.taken", partition=str(partition), next_offset=cursor.next_offset, generation=generation)
        facts, rejects = self._store.partitions.facts(partition), self._no_rejects.unpack(cursor.recent)
        kept = KeptImages(KeptWorst(self._policy.exemplars))
        return OwnedPartition(partition, token, cursor.next_offset, cursor.high_ms or None, facts, rejects, kept)

    def _first_offset(self, source: Source, partition: Partition) -> tuple[int, int | None]:
        """Without a cursor: (first offset to read, end of the rebuild of what Redis has lost or None)."""
        first, end = source.bounds(partition)
        committed = source.committed(partition)
        if committed is None:
            from_start = self._policy.start == "earliest" or partition.index >= self._first_read_with(source, partition)
            return (first if from_start else end), None
        # never behind the commit: no record there was counted, however old its timestamp is
        begin = max(first, min(committed, source.offset_at(partition, wall_ms() - self._policy.rebuild_ms)))
        metrics.STATE_LOST.inc()
        log.error("partition.state_lost", partition=str(partition), next_offset=begin, committed=committed, end=end)
        return begin, max(committed, begin)

    def _first_read_with(self, source: Source, partition: Partition) -> int:
        """How many partitions the topic had when the group began to read it: `latest` speaks of those alone.

        What comes later is noticed later, and may hold records by then.
        """
        topic, catalog = partition.topic, self._store.catalog
        known = catalog.first_read_with(topic)
        if known is None:
            all_of_it = [other for other in source.partitions() if other.topic == topic]
            cursors = self._store.partitions.cursors(all_of_it)
            # there are some where Redis has lost the number, or a version that did not keep it began
            read = [p.index for p in all_of_it if cursors[p] or source.committed(p) is not None]
            known = catalog.keep_first_read(topic, max(read) + 1 if read else len(all_of_it))
        return known

    def _after_gap(self, source: Source, partition: Partition, cursor: Cursor, log_id: str) -> Cursor:
        """The cursor, moved over a gap if policy allows it.

        Raises:
            _StoppedError: the log does not continue at the cursor.
        """
        if cursor.log_id and log_id and cursor.log_id != log_id:
            text = f"{partition}: the topic was deleted and created again ({cursor.log_id} -> {log_id})"
            raise _StoppedError(TOPIC, f"{text}; give it another name or another `monitor` name")
        first, end = source.bounds(partition)
        if cursor.next_offset > end:
            text = f"{partition}: the cursor {cursor.next_offset} lies beyond the end of the log ({end})"
            raise _StoppedError(TOPIC, text)
        self._alerts.end([str(partition)], TOPIC)
        if cursor.next_offset >= first:
            return cursor
        lost = first - cursor.next_offset
        text = f"{partition}: retention removed {lost} records unread (offsets {cursor.next_offset} to {first - 1})"
        if self._policy.dead_letters.on_gap == "stop":
            raise _StoppedError(GAP, f"{text}; dead_letters.on_gap is stop")
        # the alert before the cursor: after a crash in between, the gap is found and the alert raised again
        self._alerts.raise_alert(GAP, str(partition), text)
        claim = self._store.partitions.start(partition, cursor.generation, cursor.token, first, log_id)
        moved = _ours(partition, claim.cursor, cursor.token)
        metrics.GAPS.inc(lost)
        return moved

    def _skip_damage(self, source: Source, owner: OwnedPartition) -> int:
        """The offset to start at: after the unreadable records at the cursor, which become dead letters.

        Raises:
            _StoppedError: by policy.
        """
        partition, begin = owner.partition, owner.next_offset
        known = self._unreadable.get(partition)
        if known is None or begin < known.next_offset:
            return begin
        end = begin
        if begin == known.next_offset:
            end = source.readable_from(partition, begin)  # `begin` if another, sound replica leads by now
        if end > begin:
            text = f"{partition}: offsets {begin} to {end - 1} cannot be read: {known}"
            if self._policy.dead_letters.on_unreadable == "stop":
                raise _StoppedError(UNREADABLE, f"{text}; dead_letters.on_unreadable is stop")
            self._alerts.raise_alert(UNREADABLE, str(partition), text)
            at_ms, stream = owner.high_ms or wall_ms(), self._policy.unnamed_stream
            records = (Record(partition, offset, at_ms, None, None) for offset in range(begin, end))
            letters = [DeadLetter(record, stream, "unreadable", text) for record in records]
            self.skipped.append(Work(owner, [], end, outcomes=letters))
        del self._unreadable[partition]
        return end


def _ours(partition: Partition, cursor: Cursor | None, token: str) -> Cursor:
    if cursor is None or cursor.token != token:
        raise SourceError(f"{partition}: another owner was faster; joining the group again")
    return cursor
