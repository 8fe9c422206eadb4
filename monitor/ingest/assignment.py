"""Taking over a partition: where to read on, whatever state Redis, the log and the group are in.

| Redis has a cursor | the group has a commit | read on from |
|---|---|---|
| yes | any | the cursor: the only truth about what has been counted |
| no | no | the start policy (`earliest` or `latest`): a new partition |
| no | yes | `now - window - lateness`, or the commit where that lies before: Redis lost its state |

In the last case the windows are rebuilt from the log, and up to the commit nobody is told what was known before.
A cursor before the start of the log is a gap (retention took records unread): counted, told, and passed over or the
partition stopped by policy. At a cursor of another log (topic deleted and created anew) or beyond the end of the log
the partition stops.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog

from monitor.core.reject_window import RejectWindow
from monitor.core.types import Cursor, Partition, StreamFacts
from monitor.notify.self_alerts import GAP, TOPIC, SelfAlerts
from monitor.sources.protocol import Source, SourceError
from monitor.store import ClaimStatus, Store
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)


class StoppedError(Exception):
    """A partition must not be read on before a person has looked; all others go on. `rule` names the alert of it."""

    def __init__(self, rule: str, message: str, token: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.token = token
        """With which the partition was claimed."""


@dataclass(eq=False, slots=True)
class OwnedPartition:
    """A partition that this process reads; stands where Redis stands, and moves only after an apply."""

    partition: Partition
    token: str
    next_offset: int
    high_ms: int | None
    facts: dict[str, StreamFacts] = field(default_factory=dict)
    active_s: float = 0.0
    """Monotonic time of the last record or start."""
    idle: bool = False
    recent: RejectWindow = field(default_factory=RejectWindow)


@dataclass(frozen=True, slots=True)
class StartPolicy:
    """What to do where the cursor does not say it."""

    start: Literal["earliest", "latest"] = "earliest"
    on_gap: Literal["continue", "stop"] = "continue"
    on_unreadable: Literal["dead-letter", "stop"] = "dead-letter"
    rebuild_ms: int = 3_600_000
    """How far back the windows reach: longest window plus lateness."""


def take_over(
    store: Store,
    source: Source,
    partition: Partition,
    policy: StartPolicy,
    recent: RejectWindow,
    alerts: SelfAlerts,
    now_ms: int,
) -> OwnedPartition:
    """Claim an assigned partition and say where to read on; the caller starts the source there.

    Raises:
        StoreError: Redis does not answer; call again.
        SourceError: a newer owner holds the partition: our membership is out of date.
        StoppedError: it must not be read on (gap by policy, another log).
    """
    token, generation, log_id = uuid.uuid4().hex, source.generation, source.log_id(partition)
    claim = store.partitions.claim(partition, generation, token, log_id)
    if claim.status is ClaimStatus.STALE:
        raise SourceError(f"{partition}: a newer owner holds it; joining the group anew")
    if claim.status is ClaimStatus.LOST or claim.cursor is None:
        begin, rebuild_until = _first_offset(source, partition, policy, now_ms)
        claim = store.partitions.start(partition, generation, token, begin, log_id, rebuild_until)
        if claim.cursor is None or claim.cursor.token != token:
            raise SourceError(f"{partition}: another owner was faster; joining the group anew")
    cursor = _checked(store, source, partition, claim.cursor, policy, alerts, log_id, now_ms)
    log.info("partition.taken", partition=str(partition), next_offset=cursor.next_offset, generation=generation)
    facts: Mapping[str, StreamFacts] = store.partitions.facts(partition)
    reading = OwnedPartition(
        partition, token, cursor.next_offset, cursor.high_ms or None, dict(facts), time.monotonic()
    )
    reading.recent = recent.unpack(cursor.recent)
    return reading


def _first_offset(source: Source, partition: Partition, policy: StartPolicy, now_ms: int) -> tuple[int, int | None]:
    """Where to begin without a cursor, and up to where that only rebuilds what Redis has lost."""
    first, end = source.bounds(partition)
    committed = source.committed(partition)
    if committed is None:
        return (first if policy.start == "earliest" else end), None
    # never behind the commit: what lies there was not counted by anybody, however old its timestamps are
    begin = max(first, min(committed, source.offset_at(partition, now_ms - policy.rebuild_ms)))
    metrics.STATE_LOST.inc()
    log.error("partition.state_lost", partition=str(partition), next_offset=begin, committed=committed, end=end)
    return begin, max(committed, begin)


def _checked(
    store: Store,
    source: Source,
    partition: Partition,
    cursor: Cursor,
    policy: StartPolicy,
    alerts: SelfAlerts,
    log_id: str,
    now_ms: int,
) -> Cursor:
    """The cursor, moved over a gap where policy allows it."""
    if cursor.log_id and log_id and cursor.log_id != log_id:
        raise StoppedError(
            TOPIC,
            f"{partition}: the topic was deleted and created anew ({cursor.log_id} -> {log_id}); "
            "give it another name or another `monitor` name",
            cursor.token,
        )
    first, end = source.bounds(partition)
    if cursor.next_offset > end:
        text = f"{partition}: the cursor {cursor.next_offset} lies beyond the end of the log ({end})"
        raise StoppedError(TOPIC, text, cursor.token)
    alerts.end(now_ms, [str(partition)], TOPIC)
    if cursor.next_offset >= first:
        return cursor
    lost = first - cursor.next_offset
    text = f"{partition}: retention removed {lost} records unread (offsets {cursor.next_offset} to {first - 1})"
    if policy.on_gap == "stop":
        raise StoppedError(GAP, f"{text}; dead_letters.on_gap is stop", cursor.token)
    alerts.tell(GAP, str(partition), now_ms, text)  # before the cursor moves: a crash in between tells it again
    moved = store.partitions.start(partition, cursor.generation, cursor.token, first, log_id).cursor
    if moved is None or moved.token != cursor.token:
        raise SourceError(f"{partition}: another owner was faster; joining the group anew")
    metrics.GAPS.inc(lost)
    return moved
