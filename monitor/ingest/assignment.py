"""The partitions that this process owns: how it claims one, where it reads on, and when it stops one.

| Redis has a cursor | the group has a commit | read on from |
|---|---|---|
| yes | any | the cursor: the only truth about what has been counted |
| no | no | the start policy (`earliest` or `latest`): a new partition |
| no | yes | `now - window - lateness`, or the commit where that lies before: Redis lost its state |

In the last case the windows are rebuilt from the log; alerts that fire before the commit is reached are suppressed,
because they were raised before. A cursor before the start of the log is a gap (retention removed unread records): it is
counted, and by policy skipped with an alert, or the partition stops. Where the cursor belongs to another log (the topic
was deleted and created again) or lies beyond the end of the log, the partition stops.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from monitor.core.reject_window import RejectWindow
from monitor.core.types import Cursor, DeadLetter, Partition, Record
from monitor.ingest.settings import DeadLetterSettings
from monitor.ingest.work import OwnedPartition, Work, wall_clock_ms
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, TOPIC, UNREADABLE, SelfAlerts
from monitor.sources.protocol import Polled, Source, SourceError, UnreadableError
from monitor.store import ClaimStatus, Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

CLAIM_RETRY_S = 1.0
"""Between claims of a partition while Redis does not answer."""


@dataclass(frozen=True, slots=True)
class AssignmentPolicy:
    """Where to read on without a cursor, and what to do about records that are bad, gone or unreadable."""

    start: Literal["earliest", "latest"]
    rebuild_ms: int
    """How far back a rebuild of lost state reaches: the longest window plus the lateness."""
    dead_letters: DeadLetterSettings
    unnamed_stream: str
    """Where unreadable records count: nothing but their offset is known."""


class StoppedError(Exception):
    """A partition must not be read on before the process restarts; all others go on. `rule` names the alert of it."""

    def __init__(self, rule: str, message: str, token: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.token = token
        """With which the partition was claimed."""


class Assignment:
    """Claims and stops partitions; the only place that adds to or removes from `owned`."""

    def __init__(self, store: Store, alerts: SelfAlerts, policy: AssignmentPolicy) -> None:
        self._store, self._alerts, self._policy = store, alerts, policy
        letters = policy.dead_letters
        self._no_rejects = RejectWindow(letters.window, letters.max_share) if letters.max_share < 1 else RejectWindow()
        self._owned: dict[Partition, OwnedPartition] = {}
        self._unclaimed: dict[Partition, float] = {}  # -> monotonic time of the next try
        self._unreadable: dict[Partition, UnreadableError] = {}
        self._stopped: dict[Partition, str] = {}

    @property
    def owned(self) -> Mapping[Partition, OwnedPartition]:
        """The partitions that are claimed and read."""
        return self._owned

    @property
    def stopped(self) -> Mapping[Partition, str]:
        """Partitions that are not read until the process restarts, and why."""
        return self._stopped

    def is_current(self, owner: OwnedPartition) -> bool:
        """Whether it is still ours by this claim."""
        return self._owned.get(owner.partition) is owner

    def follow(self, polled: Polled) -> None:
        """Drop what was revoked; what was assigned is to be claimed."""
        for partition in polled.revoked:
            self._owned.pop(partition, None)
            self._unclaimed.pop(partition, None)
        for partition in polled.assigned:
            self.claim_again(partition)

    def claim_again(self, partition: Partition) -> None:
        """Our claim is void, or Redis stands elsewhere."""
        self._owned.pop(partition, None)
        self._unclaimed[partition] = 0.0

    def due(self) -> list[Partition]:
        """Partitions to claim now."""
        return [partition for partition, not_before_s in self._unclaimed.items() if not_before_s <= time.monotonic()]

    def drop(self, partition: Partition) -> None:
        """Another owner has it."""
        self._owned.pop(partition, None)

    def clear(self) -> None:
        """We left the group."""
        self._owned.clear()
        self._unclaimed.clear()

    def note_damage(self, error: UnreadableError) -> None:
        """The next claim of that partition skips what cannot be read, or stops it, by policy."""
        self._unreadable[error.partition] = error

    def claim(self, source: Source, partition: Partition) -> Work | None:
        """Claim an assigned partition and start the source where it reads on; or stop it, by policy.

        Returns:
            Dead letters to apply first, where records cannot be read.

        Raises:
            StoreError: Redis does not answer; it is due again after a while.
            SourceError: a newer owner holds the partition: our membership is out of date.
        """
        if partition in self._stopped:
            del self._unclaimed[partition]
            return None
        try:
            owner = self._take_over(source, partition)
            failpoint("claimed")
            skipped = self._skip_damage(source, owner)
        except StoreError:
            self._unclaimed[partition] = time.monotonic() + CLAIM_RETRY_S
            raise
        except StoppedError as error:
            del self._unclaimed[partition]
            self._stop(source, partition, error)
            return None
        del self._unclaimed[partition]
        self._owned[partition] = owner
        source.start(partition, skipped.next_offset if skipped else owner.next_offset)
        return skipped

    def judge_rejects(self, source: Source, owner: OwnedPartition) -> None:
        """Stop a partition of which too many records are bad: its producer is broken, and we would only copy them.

        Raises:
            StoreError: it is stopped here, but Redis does not know that it is idle.
        """
        rejects = owner.rejects
        if rejects.exceeded:
            share = f"{sum(rejects.bad)} of the last {rejects.window} records are bad"
            text = f"{owner.partition}: {share} (dead_letters.max_share {rejects.max_share})"
            self._stop(source, owner.partition, StoppedError(DEAD_LETTERS, text, owner.token))

    def _stop(self, source: Source, partition: Partition, error: StoppedError) -> None:
        """Read it no further until this process restarts; the others go on, and their buckets close."""
        self._owned.pop(partition, None)
        self._stopped[partition] = str(error)
        metrics.PARTITIONS_STOPPED.set(len(self._stopped))
        source.pause([partition])
        self._alerts.tell_if_possible(error.rule, str(partition), wall_clock_ms(), str(error))
        self._store.partitions.set_idle(partition, error.token, True)

    # ---------------------------------------------------------------- where to read on

    def _take_over(self, source: Source, partition: Partition) -> OwnedPartition:
        token, generation, log_id = uuid.uuid4().hex, source.generation, source.log_id(partition)
        claim = self._store.partitions.claim(partition, generation, token, log_id)
        if claim.status is ClaimStatus.STALE:
            raise SourceError(f"{partition}: a newer owner holds it; joining the group again")
        if claim.status is ClaimStatus.LOST or claim.cursor is None:
            begin, rebuild_until = self._first_offset(source, partition)
            claim = self._store.partitions.start(partition, generation, token, begin, log_id, rebuild_until)
        cursor = self._after_gap(source, partition, _ours(partition, claim.cursor, token), log_id)
        log.info("partition.taken", partition=str(partition), next_offset=cursor.next_offset, generation=generation)
        facts, rejects = self._store.partitions.facts(partition), self._no_rejects.unpack(cursor.recent)
        return OwnedPartition(partition, token, cursor.next_offset, cursor.high_ms or None, dict(facts), rejects)

    def _first_offset(self, source: Source, partition: Partition) -> tuple[int, int | None]:
        """Where to begin without a cursor, and up to where that only rebuilds what Redis has lost."""
        first, end = source.bounds(partition)
        committed = source.committed(partition)
        if committed is None:
            return (first if self._policy.start == "earliest" else end), None
        # never behind the commit: no record there was counted, however old its timestamp is
        begin = max(first, min(committed, source.offset_at(partition, wall_clock_ms() - self._policy.rebuild_ms)))
        metrics.STATE_LOST.inc()
        log.error("partition.state_lost", partition=str(partition), next_offset=begin, committed=committed, end=end)
        return begin, max(committed, begin)

    def _after_gap(self, source: Source, partition: Partition, cursor: Cursor, log_id: str) -> Cursor:
        """The cursor, moved over a gap where policy allows it.

        Raises:
            StoppedError: it cannot be read on.
        """
        if cursor.log_id and log_id and cursor.log_id != log_id:
            text = f"{partition}: the topic was deleted and created again ({cursor.log_id} -> {log_id})"
            raise StoppedError(TOPIC, f"{text}; give it another name or another `monitor` name", cursor.token)
        first, end = source.bounds(partition)
        if cursor.next_offset > end:
            text = f"{partition}: the cursor {cursor.next_offset} lies beyond the end of the log ({end})"
            raise StoppedError(TOPIC, text, cursor.token)
        self._alerts.end(wall_clock_ms(), [str(partition)], TOPIC)
        if cursor.next_offset >= first:
            return cursor
        lost = first - cursor.next_offset
        text = f"{partition}: retention removed {lost} records unread (offsets {cursor.next_offset} to {first - 1})"
        if self._policy.dead_letters.on_gap == "stop":
            raise StoppedError(GAP, f"{text}; dead_letters.on_gap is stop", cursor.token)
        # the alert before the cursor: after a crash in between the gap is found, and the alert raised, again
        self._alerts.tell(GAP, str(partition), wall_clock_ms(), text)
        claim = self._store.partitions.start(partition, cursor.generation, cursor.token, first, log_id)
        moved = _ours(partition, claim.cursor, cursor.token)
        metrics.GAPS.inc(lost)
        return moved

    def _skip_damage(self, source: Source, owner: OwnedPartition) -> Work | None:
        """Dead letters for the records at the cursor that no client can read; None where there are none.

        Raises:
            StoppedError: by policy.
        """
        partition, begin = owner.partition, owner.next_offset
        known = self._unreadable.get(partition)
        if known is None or begin < known.next_offset:
            return None
        letters: list[DeadLetter] = []
        if begin == known.next_offset:
            end = source.readable_from(partition, begin)  # `begin` where another, sound replica leads meanwhile
            text = f"{partition}: offsets {begin} to {end - 1} cannot be read: {known}"
            if end > begin:
                if self._policy.dead_letters.on_unreadable == "stop":
                    raise StoppedError(UNREADABLE, f"{text}; dead_letters.on_unreadable is stop", owner.token)
                self._alerts.tell(UNREADABLE, str(partition), wall_clock_ms(), text)
            at_ms = owner.high_ms or wall_clock_ms()
            letters = [
                DeadLetter(Record(partition, i, at_ms, None, None), self._policy.unnamed_stream, "unreadable", text)
                for i in range(begin, end)
            ]
        del self._unreadable[partition]
        return Work(owner, (), begin + len(letters), outcomes=letters) if letters else None


def _ours(partition: Partition, cursor: Cursor | None, token: str) -> Cursor:
    if cursor is None or cursor.token != token:
        raise SourceError(f"{partition}: another owner was faster; joining the group again")
    return cursor
