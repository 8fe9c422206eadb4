"""What is applied together: one delta for each partition of which something is scored."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from monitor.core.aggregate import Aggregate, Aggregation, Outcome, aggregate
from monitor.core.reject_window import RejectWindow
from monitor.core.types import DeadLetter, Delta, Partition
from monitor.ingest.image_log import ImageLog, Line
from monitor.ingest.work import OwnedPartition, Work

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class PartitionBatch:
    """The share of one partition in a batch: what Redis gets, and what the partition becomes once it is applied."""

    owner: OwnedPartition
    delta: Delta
    aggregate: Aggregate
    rejects: RejectWindow

    def advance_owner(self) -> None:
        """Redis has applied the delta: the partition stands behind it."""
        owner = self.owner
        owner.next_offset = self.delta.next_offset
        owner.high_ms = self.aggregate.high_ms
        owner.facts.update(self.aggregate.facts)
        owner.rejects = self.rejects
        owner.idle = False


@dataclass(slots=True)
class Batch:
    """Kept until Redis has answered, so that the same call can be repeated.

    `letters` and `lines` are still to be written to the sinks; both are emptied when they are acknowledged.
    """

    parts: Sequence[PartitionBatch]
    letters: Sequence[DeadLetter]
    lines: Sequence[Line]
    """Of the image log, as text: no picture is held for them."""
    tries: int = 0
    retry_at_s: float = 0.0
    """Monotonic time before which it is not tried again."""

    def try_later(self) -> None:
        """A sink or Redis does not answer: wait longer from try to try."""
        # jitter: replicas that lost the same Redis must not come back in step
        wait_s = BACKOFF_S[min(self.tries, len(BACKOFF_S) - 1)] * random.uniform(0.7, 1.3)
        self.retry_at_s = time.monotonic() + wait_s
        self.tries += 1


def batch_of(
    works: Sequence[Work],
    owned: Mapping[Partition, OwnedPartition],
    aggregation: Aggregation,
    image_log: ImageLog | None,
    now_ms: int,
) -> Batch | None:
    """The batch of scored works, in the order of their logs; None where none of them is of a partition still owned."""
    mine: dict[OwnedPartition, list[Work]] = {}
    for work in works:
        if owned.get(work.owner.partition) is work.owner:
            mine.setdefault(work.owner, []).append(work)
    parts: list[PartitionBatch] = []
    letters: list[DeadLetter] = []
    lines: list[Line] = []
    for owner, members in mine.items():
        outcomes = [outcome for work in members for outcome in work.outcomes]
        parts.append(_part(owner, outcomes, members[-1].next_offset, aggregation, now_ms))
        letters += [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
        if image_log is not None:
            accepted = (outcome for outcome in outcomes if not isinstance(outcome, DeadLetter))
            lines += image_log.lines(image for images in accepted for image in images)
    return Batch(parts, letters, lines) if parts else None


def _part(
    owner: OwnedPartition, outcomes: Sequence[Outcome], next_offset: int, aggregation: Aggregation, now_ms: int
) -> PartitionBatch:
    counted = aggregate(outcomes, owner.high_ms, owner.facts, now_ms, aggregation)
    rejects = owner.rejects.extended([isinstance(outcome, DeadLetter) for outcome in outcomes])
    delta = Delta(
        partition=owner.partition,
        token=owner.token,
        expect=owner.next_offset,
        next_offset=next_offset,
        high_ms=counted.high_ms or 0,
        vectors=counted.vectors,
        facts=counted.facts,
        exemplars=counted.exemplars,
        reasons=counted.reasons,
        typical=counted.typical,
        recent=rejects.pack(),
    )
    return PartitionBatch(owner, delta, counted, rejects)
