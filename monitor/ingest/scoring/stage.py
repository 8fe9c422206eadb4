"""The scoring stage: one thread that gathers decoded images into batches and scores them, in the order of submission.

It waits for the decoding of each work in turn, so nothing is reordered and only the queue needs a lock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence

from monitor.core.aggregate import Judged
from monitor.core.types import DeadLetter
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.settings import ScoringSettings
from monitor.ingest.work import Work
from monitor.telemetry import metrics


class ScoringError(Exception):
    """The scoring thread has failed, and would fail again; the process should restart."""


class ScoringStage:
    """Scores work whose decoding has started; `submit` and `take` belong to the consumer's thread."""

    def __init__(self, profiles: Profiles, settings: ScoringSettings) -> None:
        self._profiles, self._settings = profiles, settings
        self._submitted: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._scored: deque[Work] = deque()
        self._failure: BaseException | None = None
        self.image_bytes = profiles.preparers().default.input_px ** 2 * 3
        """Bytes of one prepared image."""
        self.ready = threading.Event()
        """Set while scored work waits to be taken."""
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)
        self._thread.start()

    def submit(self, works: Sequence[Work]) -> None:
        """Score these once they are decoded."""
        for work in works:
            self._submitted.put(work)

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
            while works := self._gather():
                self._score(works)
                self._scored.extend(works)
                self.ready.set()
        except BaseException as failure:
            self._failure = failure
            self.ready.set()

    def _gather(self) -> list[Work]:
        """Decoded work for one batch, complete by number of images or by age; empty to end the thread."""
        works: list[Work] = []
        images, deadline = 0, float("inf")
        while images < self._settings.batch_images:
            try:
                work = self._submitted.get(timeout=max(0.0, deadline - time.monotonic()) if works else None)
            except queue.Empty:
                break
            if work is None:
                return []
            works.append(work)
            deadline = min(deadline, time.monotonic() + self._settings.batch_age_s)
            images += sum(len(found) for future in work.decoding if isinstance(found := future.result(), list))
        return works

    @metrics.STAGE_SECONDS.labels("score").time()
    def _score(self, works: Sequence[Work]) -> None:
        decoded = [[future.result() for future in work.decoding] for work in works]
        images = [image for records in decoded for found in records if isinstance(found, list) for image in found]
        scored = iter(self._profiles.p_values([(i.stream, i.prepared) for i in images], self._settings.batch_images))
        for work, records in zip(works, decoded, strict=True):
            work.outcomes = [
                found
                if isinstance(found, DeadLetter)
                else [Judged(i.id, i.stream, i.event_time_ms, *next(scored), i.prepared) for i in found]
                for found in records
            ]
            work.decoding = ()
        metrics.BATCH_IMAGES.observe(len(images))
