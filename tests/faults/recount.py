"""The oracle: what a log must have been counted as, by reading it once from end to end in one thread.

Shares nothing with the monitor's way of counting but the profile: placement and bins are written anew from the design,
with plain loops and dictionaries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import detectors
from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from monitor.core.types import Record

POISON = b"POISON"
"""In the value of a record that is a good picture, but must be rejected for what the test lets happen to it."""
CUTS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)


@dataclass(frozen=True)
class Rates:
    """How event time runs."""

    bucket_ms: int
    lateness_ms: int
    future_ms: int = 2**62
    """Later timestamps count at the highest one before."""


@dataclass
class Counts:
    """Of one stream in one bucket."""

    bins: NDArray[np.int64]
    images: int = 0
    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    changes: int = 0
    longest_run: int = 0

    def vector(self) -> list[int]:
        """As it must stand in Redis."""
        tail = (self.images, self.rejected, self.late, self.duplicates, self.changes, self.longest_run)
        return [*self.bins.ravel().tolist(), *tail]


@dataclass
class Recount:
    """Of a whole topic."""

    buckets: dict[int, dict[str, list[int]]]
    """By the one profile, or the first."""
    rejected: set[str]
    accepted: int = 0
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    by_profile: dict[Path, dict[int, dict[str, list[int]]]] = field(default_factory=dict)


@cache
def profile_of(folder: Path) -> detectors.Profile:
    """Loaded once."""
    return detectors.load_profile(folder, "cpu")


@cache
def _seen(folder: Path, value: bytes) -> tuple[NDArray[np.float64], Prepared] | None:
    """((1, S) values, measured image) of one picture: the same picture comes many times in a run."""
    profile = profile_of(folder)
    try:
        prepared = profile.prepare(value, b"")
    except ImageError:
        return None
    return profile.values(profile.features([prepared]), profile.measured([prepared])), prepared


def p_values(folder: Path, value: bytes, key: bytes) -> tuple[NDArray[np.float64], Prepared] | None:
    """Of one picture, scored alone; None where it is none."""
    if (seen := _seen(folder, value)) is None:
        return None
    values, prepared = seen
    return profile_of(folder).p_values(values, [key])[0], prepared


def recount(
    partitions: Sequence[Sequence[Record]],
    folder: Path,
    rates: Rates,
    judged_by: Callable[[Record], Path] | None = None,
) -> Recount:
    """Count every record of each partition's log.

    Args:
        judged_by: the profile that judged a record; by default all are judged by the one in `folder`.
    """
    signals = len(profile_of(folder).signals)
    counted: dict[tuple[Path, int, str], Counts] = defaultdict(
        lambda: Counts(np.zeros((signals, len(CUTS) + 1), np.int64))
    )
    found = Recount({}, set())
    for log in partitions:
        high: int | None = None
        last: dict[str, tuple[bytes, int, tuple[int, int, str]]] = {}
        for record in log:
            at = record.timestamp_ms
            if at > rates.future_ms and high is not None:
                at = high
            high = at if high is None else max(high, at)
            own = at - at % rates.bucket_ms
            oldest = high - rates.lateness_ms
            oldest -= oldest % rates.bucket_ms
            stream = (record.key or b"default").decode()
            judge = judged_by(record) if judged_by else folder
            counts = counted[judge, max(own, oldest), stream]
            where = f"{record.partition.topic}/{record.partition.index}/{record.offset}"
            usable = record.value and POISON not in record.value
            scored = p_values(judge, record.value or b"", where.encode()) if usable else None
            if scored is None:
                counts.rejected += 1
                found.rejected.add(f"{record.partition}:{record.offset}")
                continue
            row, image = scored
            found.accepted += 1
            counts.images += 1
            counts.late += own < oldest
            for i, p in enumerate(row):
                counts.bins[i, sum(p <= cut * (1 + 5e-7) for cut in CUTS)] += 1
            digest, run, shape = last.get(stream, (b"", 0, None))
            run = run + 1 if digest == image.digest else 1
            counts.duplicates += run > 1
            counts.changes += shape is not None and shape != (image.width, image.height, image.mode)
            counts.longest_run = max(counts.longest_run, run)
            last[stream] = (image.digest, run, (image.width, image.height, image.mode))
    for (judge, bucket, stream), counts in sorted(counted.items()):
        found.by_profile.setdefault(judge, {}).setdefault(bucket, {})[stream] = counts.vector()
        images, rejected = found.totals.get(stream, (0, 0))
        found.totals[stream] = (images + counts.images, rejected + counts.rejected)
    found.buckets = found.by_profile.get(folder, {})
    return found
