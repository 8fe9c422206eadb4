"""What records add to their partition, in the order of its log: bucket vectors, stream facts, exemplars. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.images.prepare import Prepared
from monitor.core.buckets import CHANGES, DUPLICATES, LATE, LONGEST_RUN, REJECTED, Layout, empty, fill_groups
from monitor.core.event_time import PartitionClock, Placed
from monitor.core.settings import BucketSettings
from monitor.core.types import DeadLetter, Exemplar, StreamFacts, Vector

EXEMPLAR_P = 0.05
"""Images with a larger `unusual_p` are no exemplars: at most one normal image in twenty has a smaller one."""
TYPICAL_P = 0.3
"""Images with a smaller `unusual_p` are not typical; at least seven normal images in ten are."""
TYPICAL_STEP_MS, TYPICAL_MOST_MS = 10_000, 3_600_000
"""Between the n-th typical image of a stream and the next: n steps, an hour at most. So a new stream has some at once,
and those of an old one reach back a day."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One image and what the profile with that fingerprint says about it; `p_values` is (S,), the OOD score's first."""

    id: str
    stream: str
    event_time_ms: int
    fingerprint: str
    p_values: NDArray[np.float64]
    prepared: Prepared


class Candidate(NamedTuple):
    """An image that may be worth showing: how unusual it is (`unusual_p`), and where it counts."""

    p_value: float
    image: Judged
    event_time_ms: int
    bucket_ms: int


Outcome = Sequence[Judged] | DeadLetter
"""What became of one record: all its images judged, or the record rejected."""

VectorKey = tuple[str, int, str]
"""(profile fingerprint, bucket start ms, stream)"""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What a run of records adds to its partition."""

    vectors: Mapping[VectorKey, Vector]
    facts: Mapping[str, StreamFacts]
    """New facts of the streams that sent something."""
    high_ms: int | None
    exemplars: Sequence[Exemplar]
    future: int
    """Records whose timestamps were further ahead than allowed."""
    reasons: Mapping[tuple[str, str], int]
    """(stream, reason code) -> records rejected for it."""
    typical: Sequence[Exemplar] = ()


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What aggregating needs to know beyond the records themselves."""

    buckets: BucketSettings
    layouts: Mapping[str, Layout]
    """Fingerprint -> what the entries of its vectors mean."""
    fingerprint_of: Callable[[str], str]
    """Stream -> fingerprint of the profile that judges it, for records without images."""
    exemplars: int = 12
    """Worst images kept per stream."""
    thumbnail: Callable[[Prepared], bytes] = lambda _: b""


def aggregate(
    outcomes: Sequence[Outcome],
    high_ms: int | None,
    facts: Mapping[str, StreamFacts],
    now_ms: int,
    aggregation: Aggregation,
) -> Aggregate:
    """Aggregate records in the order of their log.

    Args:
        outcomes: one per record, in offset order.
        high_ms: highest event time applied so far in this partition; None before the first record.
        facts: what each stream carries on from its last image in this partition.
        now_ms: wall clock, against timestamps in the future.
    """
    run = _Run(high_ms, facts, now_ms, aggregation)
    for outcome in outcomes:
        if isinstance(outcome, DeadLetter):
            run.reject(outcome)
        else:
            for image in outcome:
                run.accept(image)
    return run.result()


@dataclass(slots=True)
class _Counts:
    """One vector while its images are counted."""

    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    changes: int = 0
    longest_run: int = 0
    rows: list[NDArray[np.float64]] = field(default_factory=list)


class _Run:
    """An aggregate in the making."""

    def __init__(
        self, high_ms: int | None, facts: Mapping[str, StreamFacts], now_ms: int, aggregation: Aggregation
    ) -> None:
        buckets = aggregation.buckets
        self._clock = PartitionClock(high_ms, buckets.length_ms, buckets.lateness_ms)
        self._before, self._now_ms, self._aggregation = facts, now_ms, aggregation
        self._facts: dict[str, StreamFacts] = {}
        self._counts: dict[VectorKey, _Counts] = {}
        self._unusual: list[Candidate] = []
        self._typical: list[Candidate] = []
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._future = 0

    def reject(self, letter: DeadLetter) -> None:
        """A record without images: it counts at its own timestamp."""
        placed = self._place(letter.record.timestamp_ms)
        self._count(self._aggregation.fingerprint_of(letter.stream), placed, letter.stream).rejected += 1
        self._reasons[letter.stream, letter.reason] += 1
        self._facts[letter.stream] = replace(self._facts_of(letter.stream), seen_ms=self._now_ms)

    def accept(self, image: Judged) -> None:
        placed = self._place(image.event_time_ms)
        before = self._facts_of(image.stream)
        after = _next_facts(before, image, placed.event_time_ms, self._now_ms)
        p_value = unusual_p(image.p_values, self._aggregation.layouts[image.fingerprint])
        found = Candidate(p_value, image, placed.event_time_ms, placed.bucket_ms)
        if self._aggregation.exemplars and _is_typical(found, before):
            after = replace(after, typical=before.typical + 1, typical_ms=placed.event_time_ms)
            self._typical.append(found)
        if p_value <= EXEMPLAR_P:
            self._unusual.append(found)
        self._facts[image.stream] = after
        count = self._count(image.fingerprint, placed, image.stream)
        count.rows.append(image.p_values)
        count.late += placed.late
        count.duplicates += after.run > 1
        count.changes += bool(before.shape) and before.shape != after.shape
        count.longest_run = max(count.longest_run, after.run)

    def result(self) -> Aggregate:
        how = self._aggregation
        return Aggregate(
            vectors=_vectors(self._counts, how.layouts),
            facts=self._facts,
            high_ms=self._clock.high_ms,
            exemplars=_worst(self._unusual, how),
            future=self._future,
            reasons=self._reasons,
            typical=[_exemplar(found, how) for found in self._typical],
        )

    def _place(self, event_time_ms: int) -> Placed:
        placed = self._clock.place(event_time_ms, self._now_ms, self._aggregation.buckets.max_future_ms)
        self._future += placed.future
        return placed

    def _facts_of(self, stream: str) -> StreamFacts:
        return self._facts.get(stream) or self._before.get(stream) or StreamFacts()

    def _count(self, fingerprint: str, placed: Placed, stream: str) -> _Counts:
        return self._counts.setdefault((fingerprint, placed.bucket_ms, stream), _Counts())


def unusual_p(p_values: NDArray[np.float64], layout: Layout) -> float:
    """p-value of an image that is unusual by its content or as a picture: what people should look at.

    2 min(p of the OOD score, number of properties x smallest p of a property), at most 1 (Bonferroni). The score
    alone hardly sees most sensor faults, and the worst images of a fogged lens would be chosen at random.
    """
    pictured = p_values[sum(layout.learned) :]  # the properties stand behind what is learned
    content = float(p_values[0])
    return min(1.0, 2.0 * min(content, len(pictured) * float(pictured.min()))) if len(pictured) else content


def _is_typical(found: Candidate, before: StreamFacts) -> bool:
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


def _vectors(counts: Mapping[VectorKey, _Counts], layouts: Mapping[str, Layout]) -> dict[VectorKey, Vector]:
    vectors: dict[VectorKey, Vector] = {}
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


def _worst(unusual: Sequence[Candidate], how: Aggregation) -> list[Exemplar]:
    """The worst of each stream; thumbnails are made for these alone."""
    kept: list[Exemplar] = []
    taken: Counter[str] = Counter()
    for found in sorted(unusual, key=lambda found: (found.p_value, found.image.id)):
        taken[found.image.stream] += 1
        if taken[found.image.stream] <= how.exemplars:
            kept.append(_exemplar(found, how))
    return kept


def _exemplar(found: Candidate, how: Aggregation) -> Exemplar:
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
