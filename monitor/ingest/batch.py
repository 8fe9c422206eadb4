"""What is applied together: one delta per partition from everything that was scored of it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from monitor.core.aggregate import Aggregate, Counting, aggregate
from monitor.core.reject_window import RejectWindow
from monitor.core.types import DeadLetter, Delta, Partition
from monitor.ingest.assignment import OwnedPartition
from monitor.ingest.image_log import ImageLog, Line
from monitor.ingest.scoring.pipeline import Work

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Batch:
    """Kept until Redis has answered, so that the same call can be made again; lists go by partition."""

    owned: list[OwnedPartition] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    aggregates: list[Aggregate] = field(default_factory=list)
    recents: list[RejectWindow] = field(default_factory=list)
    """What the last records of each are once it is applied."""
    letters: list[DeadLetter] = field(default_factory=list)
    """Of all partitions; to be acknowledged before anything is applied."""
    verdicts: list[Line] = field(default_factory=list)
    """Likewise; text, so that no picture is held for them."""
    tries: int = 0
    not_before_s: float = 0.0

    def try_later(self) -> None:
        """Something does not answer: wait longer from try to try."""
        # jitter: replicas that lost the same Redis must not come back in step
        wait_s = BACKOFF_S[min(self.tries, len(BACKOFF_S) - 1)] * random.uniform(0.7, 1.3)
        self.not_before_s = time.monotonic() + wait_s
        self.tries += 1


def count(
    works: Sequence[Work],
    owned: Mapping[Partition, OwnedPartition],
    counting: Counting,
    verdicts: ImageLog | None,
    now_ms: int,
) -> Batch | None:
    """The batch of these works, in the order of their logs; None where none of them is of a current reading."""
    mine: dict[Partition, list[Work]] = {}
    for work in works:
        reading = work.owner
        if isinstance(reading, OwnedPartition) and owned.get(reading.partition) is reading:
            mine.setdefault(reading.partition, []).append(work)
    batch = Batch()
    for partition, members in mine.items():
        reading = owned[partition]
        outcomes = [outcome for work in members for outcome in work.outcomes]
        counted = aggregate(outcomes, reading.high_ms, reading.facts, now_ms, counting)
        batch.owned.append(reading)
        batch.aggregates.append(counted)
        batch.letters += [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
        if verdicts is not None:
            batch.verdicts += verdicts.lines(
                i for judged in outcomes if not isinstance(judged, DeadLetter) for i in judged
            )
        recent = reading.recent.after([isinstance(outcome, DeadLetter) for outcome in outcomes])
        batch.recents.append(recent)
        batch.deltas.append(
            Delta(
                partition=partition,
                token=reading.token,
                expect=reading.next_offset,
                next_offset=members[-1].next_offset,
                high_ms=counted.high_ms or 0,
                vectors=counted.vectors,
                facts=counted.facts,
                exemplars=counted.exemplars,
                reasons=counted.reasons,
                typical=counted.typical,
                recent=recent.pack(),
            )
        )
    return batch if batch.deltas else None
