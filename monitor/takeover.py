"""Taking over a partition: where to read on, whatever state Redis, the log and the group are in.

| Redis has a cursor | the group has a commit | read on from |
|---|---|---|
| yes | any | the cursor: the only truth about what has been counted |
| no | no | the start policy (`earliest` or `latest`): a new partition |
| no | yes | `now - window - lateness`: Redis lost its state, and the windows are rebuilt from the log |

A cursor before the start of the log is a gap (retention took records unread): counted, and passed over or refused by
policy. A cursor of another log (topic deleted and created anew) is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog

from monitor import metrics
from monitor.store import ClaimStatus, Store
from monitor.types import Cursor, FatalSourceError, Partition, Source, SourceError, StreamFacts

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Reading:
    """A partition that this process reads; stands where Redis stands, and moves only after an apply."""

    partition: Partition
    token: str
    next_offset: int
    high_ms: int | None
    facts: dict[str, StreamFacts] = field(default_factory=dict)
    active_s: float = 0.0
    """Monotonic time of the last record or start."""
    idle: bool = False


@dataclass(frozen=True, slots=True)
class StartPolicy:
    """What to do where the cursor does not say it."""

    start: Literal["earliest", "latest"] = "earliest"
    on_gap: Literal["continue", "stop"] = "continue"
    rebuild_ms: int = 3_600_000
    """How far back the windows reach: longest window plus lateness."""


def take_over(
    store: Store, source: Source, partition: Partition, policy: StartPolicy, now_ms: int, now_s: float
) -> Reading:
    """Claim an assigned partition and say where to read on; the caller starts the source there.

    Raises:
        StoreError: Redis does not answer; call again.
        SourceError: a newer owner holds the partition: our membership is out of date.
        FatalSourceError: policy says to stop (gap, another log).
    """
    token, generation, log_id = uuid.uuid4().hex, source.generation, source.log_id(partition)
    claim = store.claim(partition, generation, token, log_id)
    if claim.status is ClaimStatus.STALE:
        raise SourceError(f"{partition}: a newer owner holds it; joining the group anew")
    if claim.status is ClaimStatus.LOST or claim.cursor is None:
        begin = _first_offset(source, partition, policy, now_ms)
        claim = store.start(partition, generation, token, begin, log_id)
        if claim.cursor is None or claim.cursor.token != token:
            raise SourceError(f"{partition}: another owner was faster; joining the group anew")
    cursor = _checked(store, source, partition, claim.cursor, policy, log_id)
    log.info("partition.taken", partition=str(partition), next_offset=cursor.next_offset, generation=generation)
    facts: Mapping[str, StreamFacts] = store.facts(partition)
    return Reading(partition, token, cursor.next_offset, cursor.high_ms or None, dict(facts), now_s)


def _first_offset(source: Source, partition: Partition, policy: StartPolicy, now_ms: int) -> int:
    first, end = source.bounds(partition)
    if source.committed(partition) is None:
        return first if policy.start == "earliest" else end
    begin = max(first, source.offset_at(partition, now_ms - policy.rebuild_ms))
    log.warning("partition.state_lost", partition=str(partition), next_offset=begin, end=end)
    return begin


def _checked(
    store: Store, source: Source, partition: Partition, cursor: Cursor, policy: StartPolicy, log_id: str
) -> Cursor:
    """The cursor, moved over a gap where policy allows it."""
    if cursor.log_id and log_id and cursor.log_id != log_id:
        raise FatalSourceError(
            f"{partition}: the topic was deleted and created anew ({cursor.log_id} -> {log_id}); "
            "give it another name or another `monitor` name"
        )
    first, end = source.bounds(partition)
    if cursor.next_offset > end:
        raise FatalSourceError(f"{partition}: the cursor {cursor.next_offset} lies beyond the end of the log ({end})")
    if cursor.next_offset >= first:
        return cursor
    lost = first - cursor.next_offset
    metrics.GAPS.inc(lost)
    log.error("partition.gap", partition=str(partition), records=lost, next_offset=cursor.next_offset, first=first)
    if policy.on_gap == "stop":
        raise FatalSourceError(f"{partition}: retention removed {lost} records unread (dead_letters.on_gap: stop)")
    moved = store.start(partition, cursor.generation, cursor.token, first, log_id).cursor
    if moved is None or moved.token != cursor.token:
        raise SourceError(f"{partition}: another owner was faster; joining the group anew")
    return moved
