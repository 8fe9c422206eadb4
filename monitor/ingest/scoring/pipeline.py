"""Between poll and apply: records are decoded in processes and scored in batches, in the order they came.

    reader ── submit ──► decode (processes) ──► gather a batch ──► score (one thread) ──► take ──► reader

One object per partition and poll (`Work`) goes through; what it waits for is inside it, so nothing is reordered and
nothing needs a lock but the queue. The reader holds records back by `bytes_in_hand`; and since a few bytes may unpack
to many images, decoding begins only for what fits into `queue_bytes` when decoded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from monitor.core.aggregate import Judged, Outcome
from monitor.core.types import DeadLetter, Record
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoded, count_images
from monitor.ingest.scoring.profiles import Profiles
from monitor.telemetry import metrics


class PipelineError(Exception):
    """Scoring failed in a way that no other image will cure; the process should be started anew."""


@dataclass(eq=False, slots=True)
class Work:
    """The records that one poll brought of one partition. `owner` is the reader's and comes back untouched."""

    owner: object
    records: Sequence[Record]
    next_offset: int
    """Where the partition stands once all of this is applied; may lie beyond the last record."""
    outcomes: Sequence[Outcome] = ()
    size: int = 0
    """Bytes counted against the queue limit."""
    decoding: list[Future[list[Decoded] | DeadLetter]] = field(default_factory=list)


class Pipeline:
    """Decodes and scores; `submit`, `take` and `bytes_in_hand` belong to the reader's thread.

    Args:
        decoders: closed with the pipeline.
        batch_images: images scored together at most.
        batch_age_s: how long a batch waits for more images.
        queue_bytes: what decoded images that are not applied yet may hold.
    """

    def __init__(
        self, decoders: DecoderPool, profiles: Profiles, batch_images: int, batch_age_s: float, queue_bytes: int
    ) -> None:
        self._decoders, self._profiles = decoders, profiles
        self._queue_bytes = queue_bytes
        self._batch_images, self._batch_age_s = batch_images, batch_age_s
        self._input_bytes = profiles.preparers().default.input_px ** 2 * 3
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._held: deque[Work] = deque()  # not begun yet
        self._finished: deque[Work] = deque()
        self._failure: BaseException | None = None
        self.bytes_in_hand = 0
        self.bytes_begun = 0
        """The part of it that is decoded, or about to be."""
        self.works_in_hand = 0
        self.ready = threading.Event()
        """Set while finished work waits to be taken."""
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Take in a partition's records."""
        for part in self._parts(work):
            self.bytes_in_hand += part.size
            self.works_in_hand += 1
            self._held.append(part)
        self._begin()

    def _parts(self, work: Work) -> Iterator[Work]:
        """The work in pieces of which several fit into the memory: records are applied whole, works need not be."""
        records: list[Record] = []
        size = 0
        for record in work.records:
            # its bytes and the model's inputs made of them: what both stages together hold
            cost = record.size + count_images(record) * self._input_bytes
            if records and size + cost > self._queue_bytes // 4:
                yield Work(work.owner, records, record.offset, size=size)
                records, size = [], 0
            records.append(record)
            size += cost
        yield Work(work.owner, records, work.next_offset, size=size)

    def _begin(self) -> None:
        """Decode what fits; one that is too large by itself goes alone."""
        while self._held and (not self.bytes_begun or self.bytes_begun + self._held[0].size <= self._queue_bytes):
            work = self._held.popleft()
            self.bytes_begun += work.size
            work.decoding = self._decoders.submit(work.records)
            self._waiting.put(work)

    def take(self) -> list[Work]:
        """Everything that is scored by now, in the order of submission.

        Raises:
            PipelineError: the scorer has failed.
        """
        self.ready.clear()
        works = []
        while self._finished:
            work = self._finished.popleft()
            self.bytes_in_hand -= work.size
            self.bytes_begun -= work.size
            self.works_in_hand -= 1
            works.append(work)
        self._begin()
        if self._failure is not None:
            raise PipelineError(f"scoring failed: {self._failure!r}") from self._failure
        return works

    @property
    def decoded_s(self) -> float:
        """When a record was last decoded or given up, by the monotonic clock."""
        return self._decoders.answered_s

    def close(self) -> None:
        """Stop the threads; what is in hand is dropped."""
        self._waiting.put(None)
        self._decoders.close()
        self._thread.join(timeout=5.0)

    # ---------------------------------------------------------------- stages

    def _run(self) -> None:
        try:
            while works := self._gather():
                self._score(works)
                self._finished.extend(works)
                self.ready.set()
        except BaseException as failure:
            self._failure = failure
            self.ready.set()

    def _gather(self) -> list[Work]:
        """Works that make a batch together, decoded: by number of images or by the age of the first; empty to stop."""
        works: list[Work] = []
        images, deadline = 0, float("inf")
        while images < self._batch_images:
            try:
                work = self._waiting.get(timeout=None if not works else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if work is None:
                return []
            works.append(work)
            deadline = min(deadline, time.monotonic() + self._batch_age_s)
            images += sum(len(found) for future in work.decoding if isinstance(found := future.result(), list))
        return works

    def _score(self, works: Sequence[Work]) -> None:
        started = time.perf_counter()
        decoded = [[future.result() for future in work.decoding] for work in works]
        images = [image for results in decoded for found in results if isinstance(found, list) for image in found]
        judged = iter(self._profiles.p_values([(i.stream, i.prepared) for i in images], self._batch_images))
        for work, results in zip(works, decoded, strict=True):
            work.outcomes = [
                found if isinstance(found, DeadLetter) else [_judged(image, *next(judged)) for image in found]
                for found in results
            ]
            work.decoding = []
        metrics.BATCH_IMAGES.observe(len(images))
        metrics.STAGE_SECONDS.labels("score").observe(time.perf_counter() - started)


def _judged(image: Decoded, fingerprint: str, p_values: object) -> Judged:
    return Judged(image.id, image.stream, image.event_time_ms, fingerprint, p_values, image.prepared)  # type: ignore[arg-type]
