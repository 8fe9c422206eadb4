"""What is made of the worst images after they are counted: a heat map and a large picture of each. One thread.

No batch waits for it: heat maps are made between two of them, by the scoring stage. A large picture needs the record
again, and a decoder process: the daemon itself never decodes what a sender wrote. Both are made for the few images that
the store keeps. What cannot be made is left out: the thumbnail is there already.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

import structlog

from detectors.images.prepare import Prepared
from monitor.core.heat import Heat
from monitor.core.types import Exemplar, Partition, Record
from monitor.ingest.decode.large import LargePicture
from monitor.ingest.decode.pool import DecoderError, DecoderPool
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.settings import EvidenceSettings
from monitor.store import Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

MOST_WAITING, MOST_WAITING_BYTES = 100, 64 * 2**20
"""Images and bytes of their records that wait at most; beyond, the least unusual ones are left out."""
TOGETHER = 16
"""Images whose heat maps are made together: the next batch waits for them."""
WAIT_S = 60.0
"""For a batch that is being scored, and for the heat maps."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the worst images of its stream and hour, just applied."""

    exemplar: Exemplar
    record: Record
    index: int
    """Of the image in the record."""
    prepared: Prepared

    @property
    def partition(self) -> Partition:
        """Whose state holds it."""
        return self.record.partition


class EvidenceStage:
    """Makes what belongs to the worst images; `submit` is called by the consumer's thread, after the apply."""

    def __init__(self, store: Store, decoders: DecoderPool, scoring: ScoringStage, settings: EvidenceSettings) -> None:
        self._store, self._decoders, self._scoring, self._settings = store, decoders, scoring, settings
        self._waiting: list[Kept] = []
        self._closed, self._at_work = False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)
        self._thread.start()

    def submit(self, images: Sequence[Kept]) -> None:
        """Make what belongs to these, some time later."""
        if not images or not self._settings.thumbnails:
            return
        with self._changed:
            self._waiting += images
            self._waiting.sort(key=lambda kept: kept.exemplar.rank)
            while len(self._waiting) > MOST_WAITING or self._held_bytes() > MOST_WAITING_BYTES:
                self._waiting.pop()
                metrics.EVIDENCE.labels("left out").inc()
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Wait until all that was submitted is made, that long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._at_work, timeout_s)

    def close(self) -> None:
        """End the thread, after the decoders are closed; what waits is left out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)

    def _held_bytes(self) -> int:
        return sum(kept.record.size for kept in self._waiting)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while some := self._next():
            try:
                outcomes = self._keep(some)
            except (CancelledError, TimeoutError, DecoderError, StoreError) as error:
                log.info("evidence.left_out", images=len(some), error=str(error) or type(error).__name__)
                outcomes = ["failed"] * len(some)
            except Exception:
                log.exception("evidence.failed", images=len(some))  # no reason not to count and to alert
                outcomes = ["failed"] * len(some)
            for outcome in outcomes:
                metrics.EVIDENCE.labels(outcome).inc()

    def _next(self) -> list[Kept]:
        """The most unusual images that wait; none to end."""
        with self._changed:
            self._at_work = False
            self._changed.notify_all()
            while not self._waiting and not self._closed:
                self._changed.wait()
            some = [] if self._closed else self._waiting[:TOGETHER]
            self._waiting = self._waiting[TOGETHER:]
            self._at_work = bool(some)
            return some

    def _keep(self, images: Sequence[Kept]) -> list[str]:
        """What became of each: `kept`, or `overtaken` by worse ones."""
        outcomes = []
        # all maps first: an alert that is about to be raised names where its images are unusual
        for kept, heat in zip(images, self._maps(images), strict=True):
            failpoint("before_picture")
            is_kept = heat is None or self._store.pictures.keep(kept.partition, kept.exemplar, heat=heat)
            outcomes.append("kept" if is_kept else "overtaken")
        for i, kept in enumerate(images):
            if outcomes[i] == "kept" and (picture := self._large(kept)):
                is_kept = self._store.pictures.keep(kept.partition, kept.exemplar, picture)
                outcomes[i] = "kept" if is_kept else "overtaken"
        return outcomes

    def _maps(self, images: Sequence[Kept]) -> list[Heat | None]:
        try:
            return self._scoring.heat([(kept.exemplar.stream, kept.prepared) for kept in images]).result(WAIT_S)
        except (ValueError, RuntimeError, MemoryError) as error:  # HeatMapError is a ValueError
            log.warning("evidence.no_heat_maps", images=len(images), error=str(error))
            return [None] * len(images)

    def _large(self, kept: Kept) -> bytes:
        """The large picture; b"" where the thumbnail shows as much, or it cannot be made."""
        settings, size_px = self._settings, max(kept.prepared.width, kept.prepared.height)
        if not size_px > settings.thumbnail_px < settings.picture_px:
            return b""
        return self._decoders.large(LargePicture(kept.record, kept.index, settings.picture_px)).result()
