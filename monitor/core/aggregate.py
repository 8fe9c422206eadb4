"""From judged images to what a batch adds: bucket vectors, stream facts, exemplars. Pure, in the order of the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.images.prepare import Prepared
from monitor.core.buckets import CHANGES, DUPLICATES, LATE, LONGEST_RUN, REJECTED, Layout, empty, fill_groups
from monitor.core.event_time import PartitionClock
from monitor.core.types import DeadLetter, Exemplar, StreamFacts, Vector

EXEMPLAR_P = 0.05
"""Images with a larger `unusual_p` are not unusual: at most one normal image in twenty passes this."""
TYPICAL_P = 0.3
"""Images with a smaller `unusual_p` are not typical; at least seven normal images in ten are."""
TYPICAL_STEP_MS, TYPICAL_MOST_MS = 10_000, 3_600_000
"""After the n-th typical image of a stream the next waits n steps, an hour at most: a new stream has some at once, and
those of an old one reach back a day."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One image and what the profile with that fingerprint says about it; `p_values` is (S,), the OOD score's first."""

    id: str
    stream: str
    event_time_ms: int
    fingerprint: str
    p_values: NDArray[np.float64]
    prepared: Prepared


class Placed(NamedTuple):
    """An image with its place in time, and how unusual it is (`unusual_p`)."""

    p_value: float
    image: Judged
    event_time_ms: int
    bucket_ms: int


Outcome = Sequence[Judged] | DeadLetter
"""What became of one record: all its images judged, or the record rejected."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How event time runs: bucket length, allowed lateness, allowed lead over the clock."""

    bucket_ms: int = 10_000
    lateness_ms: int = 10_000
    max_future_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What a run of records adds to its partition."""

    vectors: Mapping[tuple[str, int, str], Vector]
    facts: Mapping[str, StreamFacts]
    """New facts of the streams that sent something."""
    high_ms: int | None
    exemplars: Sequence[Exemplar]
    future: int
    """Records whose timestamps were further ahead than allowed."""
    reasons: Mapping[tuple[str, str], int]
    """(stream, reason code) -> records rejected for it."""
    typical: Sequence[Exemplar] = ()


@dataclass(slots=True)
class _Counts:
    """The tail of one vector while it is counted."""

    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    changes: int = 0
    longest_run: int = 0
    rows: list[NDArray[np.float64]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Counting:
    """What counting needs to know beyond the records themselves."""

    rates: Rates
    layouts: Mapping[str, Layout]
    """Fingerprint -> what the entries of its vectors mean."""
    fingerprint_of: Callable[[str], str]
    """Stream -> fingerprint of the profile that judges it, for records without images."""
    exemplars: int = 12
    """Worst images kept per stream."""
    thumbnail: Callable[[Prepared], bytes] = lambda _: b""


def aggregate(
    outcomes: Sequence[Outcome], high_ms: int | None, facts: Mapping[str, StreamFacts], now_ms: int, how: Counting
) -> Aggregate:
    """Count records in the order of their log.

    Args:
        outcomes: one per record, in offset order.
        high_ms: highest event time applied so far in this partition; None before the first record.
        facts: what each stream carries on from its last image in this partition.
        now_ms: wall clock, against timestamps in the future.
    """
    clock = PartitionClock(high_ms, how.rates.bucket_ms, how.rates.lateness_ms)
    counts: dict[tuple[str, int, str], _Counts] = {}
    carried: dict[str, StreamFacts] = {}
    unusual: list[Placed] = []
    typical: list[Placed] = []
    reasons: Counter[tuple[str, str]] = Counter()
    future = 0
    for outcome in outcomes:
        if isinstance(outcome, DeadLetter):
            placed = clock.place(outcome.record.timestamp_ms, now_ms, how.rates.max_future_ms)
            future += placed.future
            key = (how.fingerprint_of(outcome.stream), placed.bucket_ms, outcome.stream)
            counts.setdefault(key, _Counts()).rejected += 1
            reasons[outcome.stream, outcome.reason] += 1
            before = carried.get(outcome.stream) or facts.get(outcome.stream) or StreamFacts()
            carried[outcome.stream] = replace(before, seen_ms=now_ms)
            continue
        for image in outcome:
            placed = clock.place(image.event_time_ms, now_ms, how.rates.max_future_ms)
            future += placed.future
            before = carried.get(image.stream) or facts.get(image.stream) or StreamFacts()
            after = _next_facts(before, image, placed.event_time_ms, now_ms)
            p_value = unusual_p(image.p_values, how.layouts[image.fingerprint])
            found = Placed(p_value, image, placed.event_time_ms, placed.bucket_ms)
            if how.exemplars and _is_typical(found, before):
                after = replace(after, typical=before.typical + 1, typical_ms=placed.event_time_ms)
                typical.append(found)
            carried[image.stream] = after
            count = counts.setdefault((image.fingerprint, placed.bucket_ms, image.stream), _Counts())
            count.rows.append(image.p_values)
            count.late += placed.late
            count.duplicates += after.run > 1
            count.changes += bool(before.shape) and before.shape != after.shape
            count.longest_run = max(count.longest_run, after.run)
            if p_value <= EXEMPLAR_P:
                unusual.append(found)
    return Aggregate(
        vectors=_vectors(counts, how.layouts),
        facts=carried,
        high_ms=clock.high_ms,
        exemplars=_worst(unusual, how),
        future=future,
        reasons=reasons,
        typical=[_exemplar(found, how) for found in typical],
    )


def unusual_p(p_values: NDArray[np.float64], layout: Layout) -> float:
    """p-value of an image that is unusual by its content or as a picture: what people should look at.

    2 min(p of the OOD score, number of properties x smallest p of a property), at most 1 (Bonferroni). The score
    alone hardly sees most sensor faults, and the worst images of a fogged lens would be chosen at random.
    """
    pictured = p_values[sum(layout.learned) :]  # the properties stand behind what is learned
    content = float(p_values[0])
    return min(1.0, 2.0 * min(content, len(pictured) * float(pictured.min()))) if len(pictured) else content


def _is_typical(found: Placed, before: StreamFacts) -> bool:
    """Whether the image is to be kept as one that the stream usually shows."""
    wait_ms = min(before.typical * TYPICAL_STEP_MS, TYPICAL_MOST_MS)
    return found.p_value >= TYPICAL_P and found.event_time_ms - before.typical_ms >= wait_ms


def _next_facts(before: StreamFacts, image: Judged, event_time_ms: int, now_ms: int) -> StreamFacts:
    prepared = image.prepared
    return StreamFacts(
        digest=prepared.digest,
        run=before.run + 1 if before.digest == prepared.digest else 1,
        shape=f"{prepared.width}x{prepared.height}/{prepared.mode}",
        event_time_ms=max(before.event_time_ms, event_time_ms),
        seen_ms=now_ms,
        typical=before.typical,
        typical_ms=before.typical_ms,
    )


def _vectors(
    counts: Mapping[tuple[str, int, str], _Counts], layouts: Mapping[str, Layout]
) -> dict[tuple[str, int, str], Vector]:
    vectors: dict[tuple[str, int, str], Vector] = {}
    for fingerprint, layout in layouts.items():
        keys = [key for key in counts if key[0] == fingerprint]
        groups = [k for k, key in enumerate(keys) for _ in counts[key].rows]
        rows = [row for key in keys for row in counts[key].rows]
        filled = (
            fill_groups(layout, np.stack(rows), np.array(groups), len(keys)) if rows else [empty(layout) for _ in keys]
        )
        for key, vector in zip(keys, filled, strict=True):
            count = counts[key]
            vector[REJECTED], vector[LATE], vector[DUPLICATES] = count.rejected, count.late, count.duplicates
            vector[CHANGES], vector[LONGEST_RUN] = count.changes, count.longest_run
            vectors[key] = vector
    return vectors


def _worst(unusual: Sequence[Placed], how: Counting) -> list[Exemplar]:
    """The worst of each stream; thumbnails are made for these alone."""
    kept: list[Exemplar] = []
    taken: Counter[str] = Counter()
    for found in sorted(unusual, key=lambda found: (found.p_value, found.image.id)):
        taken[found.image.stream] += 1
        if taken[found.image.stream] <= how.exemplars:
            kept.append(_exemplar(found, how))
    return kept


def _exemplar(found: Placed, how: Counting) -> Exemplar:
    image = found.image
    return Exemplar(
        image.id,
        image.stream,
        found.event_time_ms,
        found.bucket_ms,
        found.p_value,
        tuple(float(p) for p in image.p_values),
        how.thumbnail(image.prepared),
        image.fingerprint,
    )
