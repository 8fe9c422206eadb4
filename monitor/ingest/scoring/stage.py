"""The scoring stage: one thread that gathers decoded images into batches and scores them, in the order of submission.

It waits for the decoding of each work in turn, so nothing is reordered and only the queue needs a lock.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import structlog

from detectors.images.prepare import Prepared
from monitor.core.aggregate import Judged, Outcome
from monitor.core.heat import Heat
from monitor.core.types import DeadLetter, Record
from monitor.ingest.decode.records import Decoded
from monitor.ingest.scoring.batch_size import BatchSize
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.settings import ScoringSettings
from monitor.ingest.work import Work
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)


class ScoringError(Exception):
    """The scoring thread has failed, and would fail again; the process should restart."""


@dataclass(eq=False, slots=True)
class _HeatMaps:
    """Heat maps of images that are scored already."""

    images: Sequence[tuple[str, Prepared]]
    future: Future[list[Heat | None]] = field(default_factory=Future)


class ScoringStage:
    """Scores work whose decoding has started; `submit` and `take` belong to the consumer's thread."""

    def __init__(self, profiles: Profiles, settings: ScoringSettings) -> None:
        self._profiles, self._settings = profiles, settings
        self._size = BatchSize(settings.batch_images, settings.largest_batch(profiles.accelerated))
        self._submitted: queue.SimpleQueue[Work | _HeatMaps | None] = queue.SimpleQueue()
        self._scored: deque[Work] = deque()
        self._asked: list[_HeatMaps] = []
        self._failure: BaseException | None = None
        self.image_bytes = 3 * max(math.prod(preparer.shape) for preparer in profiles.preparers().all())
        """Most bytes of one prepared image."""
        self.ready = threading.Event()
        """Set while scored work waits to be taken."""
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)
        self._thread.start()

    def submit(self, works: Sequence[Work]) -> None:
        """Score these once they are decoded."""
        for work in works:
            self._submitted.put(work)

    def heat(self, images: Sequence[tuple[str, Prepared]]) -> Future[list[Heat | None]]:
        """Where each (stream, image) is unusual, as `Profiles.heat`; made between two batches. Of any thread."""
        asked = _HeatMaps(images)
        self._submitted.put(asked)
        return asked.future

    def take(self) -> list[Work]:
        """The work scored by now, in the order of submission.

        Raises:
            ScoringError: the thread has failed.
        """
        self.ready.clear()
        works = []
        while self._scored:
            works.append(self._scored.popleft())
        if self._failure is not None:
            raise ScoringError(f"scoring failed: {self._failure!r}") from self._failure
        return works

    def close(self) -> None:
        """End the thread, after the decoder pool is closed; work in flight is dropped."""
        self._submitted.put(None)
        self._thread.join(timeout=5.0)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while (works := self._gather()) is not None:
                if works:
                    self._score(works)
                    self._scored.extend(works)
                    self.ready.set()
                while self._asked:
                    self._answer(self._asked.pop())
        except BaseException as failure:
            self._failure = failure
            self.ready.set()

    def _gather(self) -> list[Work] | None:
        """Decoded work for one batch, complete by number of images or by age; None to end the thread.

        Without work it is empty as soon as heat maps are asked for.
        """
        works: list[Work] = []
        images, deadline = 0, float("inf")
        while images < self._size.images:
            try:
                work = self._submitted.get(timeout=max(0.0, deadline - time.monotonic()) if works else None)
            except queue.Empty:
                break
            if work is None:
                return None
            if isinstance(work, _HeatMaps):
                self._asked.append(work)
                if not works:
                    break
                continue
            works.append(work)
            deadline = min(deadline, time.monotonic() + self._settings.batch_age_s)
            images += sum(len(found) for future in work.decoding if isinstance(found := future.result(), list))
        return works

    @metrics.STAGE_SECONDS.labels("heat").time()
    def _answer(self, asked: _HeatMaps) -> None:
        if not asked.future.set_running_or_notify_cancel():
            return
        try:
            asked.future.set_result(self._profiles.heat(asked.images))
        except Exception as error:  # it explains what is counted already: no reason to count no more
            asked.future.set_exception(error)

    @metrics.STAGE_SECONDS.labels("score").time()
    def _score(self, works: Sequence[Work]) -> None:
        started = time.monotonic()
        decoded = [[future.result() for future in work.decoding] for work in works]
        results = [
            pair for work, found in zip(works, decoded, strict=True) for pair in zip(work.records, found, strict=True)
        ]
        usable = [(record, found) for record, found in results if isinstance(found, list)]
        judged = iter(self._judge(usable))
        for work, records in zip(works, decoded, strict=True):
            work.outcomes = [found if isinstance(found, DeadLetter) else next(judged) for found in records]
            work.decoding = ()
        images = sum(len(found) for _, found in usable)
        metrics.BATCH_IMAGES.observe(images)
        self._size.after(images, time.monotonic() - started, waiting=not self._submitted.empty())

    def _judge(self, records: Sequence[tuple[Record, Sequence[Decoded]]]) -> list[Outcome]:
        """One outcome per record. Where scoring fails, it is tried in halves, and a record that fails alone is refused.

        Without this the record would fail again after every restart. If a plain image fails too, the record is not the
        cause, and the error is raised.
        """
        images = [(image.stream, image.prepared) for _, found in records for image in found]
        try:
            views = [
                self._profiles.view_of(i.stream, r, i.event_time_ms, i.prepared) for r, found in records for i in found
            ]
            scores = iter(self._profiles.p_values(images, self._size.images, views))
        except Exception as error:
            if len(records) > 1:
                half = len(records) // 2
                return [*self._judge(records[:half]), *self._judge(records[half:])]
            ((record, found),) = records
            self._profiles.probe(found[0].stream)
            log.exception("scoring.record_refused", partition=str(record.partition), offset=record.offset)
            return [DeadLetter(record, found[0].stream, "scoring", f"scoring fails: {type(error).__name__}: {error}")]
        return [
            [
                Judged(i.id, i.stream, i.event_time_ms, s.fingerprint, s.p_values, i.prepared, s.beyond, s.shadow)
                for i, s in zip(found, islice(scores, len(found)), strict=True)
            ]
            for _, found in records
        ]
