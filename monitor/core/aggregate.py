"""Aggregation of one partition's records, in the order of its log: bucket vectors, facts, images to show. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from detectors.images.prepare import Prepared
from monitor.core.buckets import CHANGES, DUPLICATES, LATE, LONGEST_RUN, REJECTED, Layout, fill_groups
from monitor.core.event_time import PartitionClock, Placed
from monitor.core.kept_images import SAMPLED, KeptImages, sample_score
from monitor.core.settings import BucketSettings
from monitor.core.shadow import disagreement
from monitor.core.types import DeadLetter, Delta, Exemplar, Sampled, StreamFacts, Vector

EXEMPLAR_P = 0.05
"""Images with a larger `unusual_p` are no exemplars: at most one normal image in twenty has a smaller one."""
TYPICAL_P = 0.3
"""Images with a smaller `unusual_p` are not typical; at least seven normal images in ten are."""
TYPICAL_STEP_MS, TYPICAL_MOST_MS = 10_000, 3_600_000
"""Between the n-th typical image of a stream and the next: n steps, an hour at most. So a new stream has some at once,
and those of an old one reach back a day."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One image and its p-values under the profile with that fingerprint: (S,), the OOD score's first."""

    id: str
    stream: str
    event_time_ms: int
    fingerprint: str
    p_values: NDArray[np.float64]
    prepared: Prepared
    beyond: float = 0.0
    """How far its scores lie outside of those of the calibration, in units of their range."""
    shadow: tuple[str, NDArray[np.float64]] | None = None
    """(fingerprint as `shadow_of` gives it, (S,) p-values) of a profile in shadow; None where there is none."""


Outcome = Sequence[Judged] | DeadLetter
"""The result of one record: all its images judged, or the record rejected."""

VectorKey = tuple[str, int, str]
"""(profile fingerprint, bucket start ms, stream)"""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """The parameters of `aggregate` that stay the same for all records."""

    buckets: BucketSettings
    layouts: Mapping[str, Layout]
    """Fingerprint -> meaning of the entries of its vectors."""
    fingerprint_of: Callable[[str], str]
    """Stream -> fingerprint of the profile that judges it, for records without images."""
    exemplars: int = 12
    """Worst images kept per stream."""
    thumbnail: Callable[[Prepared], bytes] = lambda _: b""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The result of `aggregate`."""

    delta: Delta
    future: int
    """Timestamps that were further ahead than allowed."""
    unusual: Sequence[Judged]
    """The images of `delta.exemplars`, in their order."""


def aggregate(
    outcomes: Sequence[Outcome],
    begin: Delta,
    facts: Mapping[str, StreamFacts],
    now_ms: int | Sequence[int],
    aggregation: Aggregation,
    kept: KeptImages | None = None,
) -> Aggregated:
    """The delta of records in the order of their log.

    Args:
        outcomes: one per record, in offset order.
        begin: without counts; its `high_ms` is the highest event time applied so far, 0 before the first record.
        facts: of each stream in this partition, after its last image.
        now_ms: wall clock, against timestamps in the future; of all records, or one per record.
        kept: what the store has, as far as it is known: no thumbnail is made of what it would drop at once.
    """
    nows = [now_ms] * len(outcomes) if isinstance(now_ms, int) else now_ms
    known = kept or KeptImages()
    run = _Run(begin.high_ms or None, facts, aggregation, known)
    for outcome, run.now_ms in zip(outcomes, nows, strict=True):
        if isinstance(outcome, DeadLetter):
            run.reject(outcome)
        else:
            for image in outcome:
                run.accept(image)
    worst = run.worst(known.worst.admits)
    return Aggregated(
        run.added_to(begin, [exemplar for exemplar, _ in worst]), run.future, [image for _, image in worst]
    )


def unusual_p(p_values: NDArray[np.float64], layout: Layout) -> float:
    """p-value of an image that is unusual by its content or as a picture: how images are ranked for display.

    2 min(p of the OOD score, number of properties x smallest p of a property), at most 1 (Bonferroni). The score
    alone hardly responds to most sensor faults, and the worst images of a fogged lens would be chosen at random.
    """
    first = sum(layout.learned)  # the properties come after the learned signals, and before those of the mix
    properties = p_values[first : first + len(layout.properties)]
    content = float(p_values[0])
    return min(1.0, 2.0 * min(content, len(properties) * float(properties.min()))) if len(properties) else content


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
    """A delta that is being built."""

    def __init__(
        self, high_ms: int | None, facts: Mapping[str, StreamFacts], aggregation: Aggregation, kept: KeptImages
    ) -> None:
        buckets = aggregation.buckets
        self._clock = PartitionClock(high_ms, buckets.length_ms, buckets.lateness_ms)
        self._before, self._aggregation, self._kept = facts, aggregation, kept
        self.now_ms = 0
        self._retention_ms = 1000 * buckets.retention_s
        self._facts: dict[str, StreamFacts] = {}
        self._counts: dict[VectorKey, _Counts] = {}
        self._unusual: list[tuple[Exemplar, Judged]] = []
        self._typical: list[Exemplar] = []
        self._sample: dict[tuple[str, str], list[tuple[float, Judged, Exemplar]]] = {}
        self._reasons: Counter[tuple[str, str]] = Counter()
        self.future = 0

    def reject(self, letter: DeadLetter) -> None:
        """Count a record without images, at its own timestamp."""
        placed = self._place(letter.record.timestamp_ms)
        self._count(self._aggregation.fingerprint_of(letter.stream), placed, letter.stream).rejected += 1
        self._reasons[letter.stream, letter.reason] += 1
        self._facts[letter.stream] = replace(self._facts_of(letter.stream), seen_ms=self.now_ms)

    def accept(self, image: Judged) -> None:
        """Count an image, and keep it if it is worth showing."""
        placed, prepared, before = self._place(image.event_time_ms), image.prepared, self._facts_of(image.stream)
        after = replace(
            before,
            digest=prepared.digest,
            run=before.run + 1 if before.digest == prepared.digest else 1,
            shape=f"{prepared.width}x{prepared.height}/{prepared.mode}",
            event_time_ms=max(before.event_time_ms, placed.event_time_ms),
            seen_ms=self.now_ms,
        )
        count = self._count(image.fingerprint, placed, image.stream)
        count.rows.append(image.p_values)
        count.late += placed.late
        count.duplicates += after.run > 1
        count.changes += bool(before.shape) and before.shape != after.shape
        count.longest_run = max(count.longest_run, after.run)
        if image.shadow is not None:
            self._beside(image, placed, *image.shadow)
        # one image that a camera repeats would push all others out
        repeat = after.run > 1 and before.event_time_ms >= placed.bucket_ms
        self._facts[image.stream] = self._shown(image, placed, after, repeat)

    def _beside(self, image: Judged, placed: Placed, shadow: str, p_values: NDArray[np.float64]) -> None:
        """Count an image for the profile in shadow, and keep it if the two disagree on it more than on others."""
        self._count(shadow, placed, image.stream).rows.append(p_values)
        both = float(image.p_values[0]), float(p_values[0])
        score = disagreement(*both)
        if self._aggregation.exemplars and self._kept.sample.admits(shadow, image.stream, score):
            exemplar = Exemplar(
                id=image.id,
                stream=image.stream,
                event_time_ms=placed.event_time_ms,
                bucket_ms=placed.bucket_ms,
                p_value=both[0],
                p_values=both,
                thumbnail=b"",
                fingerprint=shadow,
            )
            self._sample.setdefault((shadow, image.stream), []).append((score, image, exemplar))

    def _shown(self, image: Judged, placed: Placed, facts: StreamFacts, repeat: bool) -> StreamFacts:
        """Keep the image where it is unusual or typical of its stream; returns the facts after it.

        Args:
            repeat: it equals the one before in the same bucket.
        """
        p_value = unusual_p(image.p_values, self._aggregation.layouts[image.fingerprint])
        wait_ms = min(facts.typical * TYPICAL_STEP_MS, TYPICAL_MOST_MS)
        typical = p_value >= TYPICAL_P and placed.event_time_ms - facts.typical_ms >= wait_ms
        score = sample_score(image.stream, image.id, placed.event_time_ms)
        sampled = not repeat and self._kept.sample.admits(image.fingerprint, image.stream, score)
        if not (p_value <= EXEMPLAR_P or ((typical or sampled) and self._aggregation.exemplars)):
            return facts
        exemplar = Exemplar(
            id=image.id,
            stream=image.stream,
            event_time_ms=placed.event_time_ms,
            bucket_ms=placed.bucket_ms,
            p_value=p_value,
            p_values=tuple(image.p_values.tolist()),
            thumbnail=b"",
            fingerprint=image.fingerprint,
            beyond=image.beyond,
        )
        if sampled and self._aggregation.exemplars:
            self._sample.setdefault((image.fingerprint, image.stream), []).append((score, image, exemplar))
        if p_value <= EXEMPLAR_P:
            if not repeat:
                self._unusual.append((exemplar, image))
            return facts
        if not typical:
            return facts
        self._typical.append(replace(exemplar, thumbnail=self._aggregation.thumbnail(image.prepared)))
        return replace(facts, typical=facts.typical + 1, typical_ms=placed.event_time_ms)

    def worst(self, is_kept: Callable[[Exemplar], bool]) -> list[tuple[Exemplar, Judged]]:
        """The worst images of each stream; thumbnails are made for these alone."""
        kept: list[tuple[Exemplar, Judged]] = []
        taken: Counter[str] = Counter()
        for found, image in sorted(self._unusual, key=lambda shown: _order(shown[0])):
            taken[found.stream] += 1
            if taken[found.stream] <= self._aggregation.exemplars and is_kept(found):
                kept.append((replace(found, thumbnail=self._aggregation.thumbnail(image.prepared)), image))
        return kept

    def sample(self) -> list[Sampled]:
        """The images that belong to the random samples of their streams, with thumbnails."""
        best = (sorted(found, key=lambda each: -each[0])[:SAMPLED] for found in self._sample.values())
        return [
            (score, replace(exemplar, thumbnail=self._aggregation.thumbnail(image.prepared)))
            for found in best
            for score, image, exemplar in found
        ]

    def added_to(self, begin: Delta, exemplars: Sequence[Exemplar]) -> Delta:
        return replace(
            begin,
            high_ms=self._clock.high_ms or 0,
            vectors=self._vectors(),
            facts=self._facts,
            exemplars=exemplars,
            reasons=self._reasons,
            typical=self._typical,
            sample=self.sample(),
            worst=self._worst_by_bucket(),
        )

    def _place(self, event_time_ms: int) -> Placed:
        placed = self._clock.place(event_time_ms, self.now_ms, self._aggregation.buckets.max_future_ms)
        self.future += placed.future
        return placed

    def _facts_of(self, stream: str) -> StreamFacts:
        before = self._facts.get(stream) or self._before.get(stream) or StreamFacts()
        # a stream may be forgotten from then on: whether it was makes no difference to what is counted
        is_dead = before.seen_ms and self.now_ms - before.seen_ms > self._retention_ms
        return StreamFacts() if is_dead else before

    def _count(self, fingerprint: str, placed: Placed, stream: str) -> _Counts:
        return self._counts.setdefault((fingerprint, placed.bucket_ms, stream), _Counts())

    def _vectors(self) -> dict[VectorKey, Vector]:
        vectors: dict[VectorKey, Vector] = {}
        for fingerprint, layout in self._aggregation.layouts.items():
            counts = {key: count for key, count in self._counts.items() if key[0] == fingerprint}
            rows = [row for count in counts.values() for row in count.rows]
            groups = np.array([k for k, count in enumerate(counts.values()) for _ in count.rows], dtype=np.intp)
            p_values = np.stack(rows) if rows else np.empty((0, len(layout.signals)))
            filled = fill_groups(layout, p_values, groups, len(counts))
            for (key, count), vector in zip(counts.items(), filled, strict=True):
                vector[[REJECTED, LATE, DUPLICATES]] = count.rejected, count.late, count.duplicates
                vector[[CHANGES, LONGEST_RUN]] = count.changes, count.longest_run
                vectors[key] = vector
        return vectors

    def _worst_by_bucket(self) -> dict[VectorKey, list[Exemplar]]:
        """Likewise of each stream in each bucket, but without thumbnails."""
        found: dict[VectorKey, list[Exemplar]] = {}
        for exemplar, _ in self._unusual:
            found.setdefault((exemplar.fingerprint, exemplar.bucket_ms, exemplar.stream), []).append(exemplar)
        return {key: sorted(images, key=_order)[: self._aggregation.exemplars] for key, images in found.items()}


def _order(e: Exemplar) -> tuple[float, int, str]:
    """The worst first; the same as in Redis, so that batches of any size keep the same images."""
    return e.rank, e.event_time_ms, e.id
