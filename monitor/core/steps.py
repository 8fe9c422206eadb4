"""Steps of the history: how long counts are kept, the coarser the older they are. Pure.

Closed buckets are rolled up by addition, which is what makes vectors of counts worth keeping: an hour by the hour shows
the same images, in the same bins, as its 360 buckets of ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000

FINE_MS = 3 * HOUR_MS // 2
"""Closed buckets are kept for at least as long: evidence and the table of the fleet look back for an hour."""
LONGER = ((MINUTE_MS, DAY_MS), (10 * MINUTE_MS, 10 * DAY_MS), (HOUR_MS, 0))
"""(length, age at which it is rolled up further); the last stays for as long as the history does. With the buckets of
ten seconds that are 5,114 entries for each stream in 90 days."""


@dataclass(frozen=True, slots=True)
class Step:
    """One resolution of the history."""

    length_ms: int
    """A multiple of that of the step before; the first is the bucket."""
    until_ms: int
    """Age, in event time, at which it is rolled up into the next step; of the last step, at which it is removed."""


def steps_of(bucket_ms: int, reaches_ms: Iterable[int], history_ms: int) -> tuple[Step, ...]:
    """The steps for buckets of that length, finest first.

    Args:
        reaches_ms: how far back the rules and their evidence look: so long the buckets stay as they were closed.
        history_ms: how long counts are kept in all.
    """
    fine_ms = min(history_ms, max([FINE_MS, *reaches_ms]) + 10 * bucket_ms)
    steps = [Step(bucket_ms, fine_ms)]
    for wanted_ms, until_ms in LONGER:
        before = steps[-1]
        length_ms = -(-wanted_ms // before.length_ms) * before.length_ms
        if length_ms > before.length_ms and before.until_ms < history_ms:
            steps.append(Step(length_ms, min(history_ms, max(until_ms or history_ms, before.until_ms + length_ms))))
    return (*steps[:-1], Step(steps[-1].length_ms, history_ms))
