"""Batches: what is applied together, one delta per partition."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from detectors.images.prepare import GREY, Prepared
from monitor.core.aggregate import Aggregation, Judged, aggregate
from monitor.core.buckets import IMAGES
from monitor.core.reject_window import RejectWindow
from monitor.core.types import DeadLetter, Delta, Partition, Record
from monitor.ingest.evidence import Kept
from monitor.ingest.image_log import ImageLog, Line
from monitor.ingest.work import OwnedPartition, Work
from monitor.telemetry import metrics
from monitor.telemetry.clock import wall_ms

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
THUMBNAIL_QUALITY = 70
"""Of the JPEG: about 3 KB at 96 px, and a person still sees what is wrong."""


@dataclass(frozen=True, slots=True)
class PartitionBatch:
    """One partition's part of a batch: the delta for Redis, and the state of the partition after it."""

    owner: OwnedPartition
    delta: Delta
    rejects: RejectWindow
    future: int
    """Records whose timestamps were further ahead than allowed."""
    kept: Sequence[Kept]
    """The images of `delta.exemplars`, with their records."""

    def advance_owner(self) -> None:
        """Move the partition's cursor: Redis has applied the delta."""
        owner = self.owner
        owner.next_offset = self.delta.next_offset
        owner.high_ms = self.delta.high_ms or None
        owner.facts.update(self.delta.facts)
        owner.rejects = self.rejects
        owner.kept.worst.add(self.delta.exemplars)
        owner.kept.sample.add(self.delta.sample)
        owner.idle = False
        metrics.FUTURE_RECORDS.inc(self.future)
        metrics.IMAGES_APPLIED.inc(sum(int(vector[IMAGES]) for vector in self.delta.vectors.values()))


@dataclass(slots=True)
class Batch:
    """Scored work, kept until Redis has answered, so that the same call can be retried.

    `letters` and `lines` are still to be written to the sinks; both are emptied when they are acknowledged.
    """

    parts: Sequence[PartitionBatch]
    letters: Sequence[DeadLetter]
    lines: Sequence[Line]
    """Of the image log, already as text."""
    tries: int = 0
    retry_at_s: float = 0.0
    """Monotonic time of the next retry."""

    def try_later(self) -> None:
        """Schedule a retry: a sink or Redis does not answer."""
        # jitter: replicas that lost the same Redis must not retry at the same time
        wait_s = BACKOFF_S[min(self.tries, len(BACKOFF_S) - 1)] * random.uniform(0.7, 1.3)
        self.retry_at_s = time.monotonic() + wait_s
        self.tries += 1


def batch_of(
    works: Sequence[Work],
    owned: Mapping[Partition, OwnedPartition],
    aggregation: Aggregation,
    image_log: ImageLog | None,
) -> Batch | None:
    """The batch of scored works, in the order of their logs; None if no work belongs to a current claim."""
    mine: dict[OwnedPartition, list[Work]] = {}
    for work in works:
        if owned.get(work.owner.partition) is work.owner:
            mine.setdefault(work.owner, []).append(work)
    if not mine:
        return None
    outcomes = [outcome for members in mine.values() for work in members for outcome in work.outcomes]
    images = (image for outcome in outcomes if not isinstance(outcome, DeadLetter) for image in outcome)
    return Batch(
        parts=[_part(owner, members, aggregation) for owner, members in mine.items()],
        letters=[outcome for outcome in outcomes if isinstance(outcome, DeadLetter)],
        lines=[] if image_log is None else image_log.lines(images, aggregation.layouts),
    )


def _part(owner: OwnedPartition, works: Sequence[Work], aggregation: Aggregation) -> PartitionBatch:
    outcomes = [outcome for work in works for outcome in work.outcomes]
    rejects = owner.rejects.extended([isinstance(outcome, DeadLetter) for outcome in outcomes])
    begin = Delta(
        partition=owner.partition,
        token=owner.token,
        expect=owner.next_offset,
        next_offset=works[-1].next_offset,
        high_ms=owner.high_ms or 0,
        vectors={},
        recent=rejects.pack(),
    )
    now_ms = wall_ms()
    # damaged records that were skipped have outcomes, but are not held
    read_ms = [
        time_ms or now_ms
        for work in works
        for time_ms in ([record.read_ms for record in work.records] or [None] * len(work.outcomes))
    ]
    found = aggregate(outcomes, begin, owner.facts, read_ms, aggregation, owner.kept)
    places = {id(image): (record, i) for work in works for image, record, i in _images(work)} if found.unusual else {}
    kept = [
        Kept(exemplar, *places[id(image)], image.prepared)
        for exemplar, image in zip(found.delta.exemplars, found.unusual, strict=True)
    ]
    return PartitionBatch(owner, found.delta, rejects, found.future, kept)


def _images(work: Work) -> Iterator[tuple[Judged, Record, int]]:
    """Every image of a work, its record, and its place there."""
    for record, outcome in zip(work.records, work.outcomes, strict=False):  # skipped damage has no records
        if not isinstance(outcome, DeadLetter):
            for i, image in enumerate(outcome):
                yield image, record, i


def thumbnail(prepared: Prepared, longest_px: int) -> bytes:
    """A JPEG of the pixels that the model saw, in the proportions of the original: never the sender's own bytes.

    What a crop has left out is grey.
    """
    scale = longest_px / max(prepared.width, prepared.height)
    size = max(1, round(prepared.width * scale)), max(1, round(prepared.height * scale))
    left, top, right, bottom = prepared.frame
    # the frame of a letterbox lies inside the pixels, that of a crop beyond them
    inner = max(1, round(size[0] / max(1.0, right - left))), max(1, round(size[1] / max(1.0, bottom - top)))
    shown = Image.new("RGB", size, GREY)
    resized = Image.fromarray(prepared.seen).resize(inner, Image.Resampling.BILINEAR)
    shown.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
