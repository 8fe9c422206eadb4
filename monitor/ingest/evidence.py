"""What is made of the worst images after they are counted: a large picture of each. One thread; no batch waits for it.

It needs the record again, so it is made for the few images that the store keeps, and by a decoder process: the daemon
itself never decodes what a sender wrote. What cannot be made is left out: the thumbnail is there already.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

import structlog

from monitor.core.types import Exemplar, Partition, Record
from monitor.ingest.decode.large import LargePicture
from monitor.ingest.decode.pool import DecoderError, DecoderPool
from monitor.ingest.settings import EvidenceSettings
from monitor.store import Store, StoreError
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

MOST_WAITING, MOST_WAITING_BYTES = 100, 64 * 2**20
"""Images and bytes of their records that wait at most; beyond, the least unusual ones are left out."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the worst images of its stream and hour, just applied."""

    exemplar: Exemplar
    record: Record
    index: int
    """Of the image in the record."""
    size_px: int
    """Its longer side."""

    @property
    def partition(self) -> Partition:
        """Whose state holds it."""
        return self.record.partition


class EvidenceStage:
    """Makes what belongs to the worst images; `submit` is called by the consumer's thread, after the apply."""

    def __init__(self, store: Store, decoders: DecoderPool, settings: EvidenceSettings) -> None:
        self._store, self._decoders, self._settings = store, decoders, settings
        self._waiting: list[Kept] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)
        self._thread.start()

    def submit(self, images: Sequence[Kept]) -> None:
        """Make what belongs to these, some time later."""
        settings = self._settings
        wanted = [i for i in images if settings.thumbnails and i.size_px > settings.thumbnail_px < settings.picture_px]
        if not wanted:
            return
        with self._changed:
            self._waiting += wanted
            self._waiting.sort(key=lambda kept: kept.exemplar.rank)
            while len(self._waiting) > MOST_WAITING or self._held_bytes() > MOST_WAITING_BYTES:
                self._waiting.pop()
                metrics.LARGE_PICTURES.labels("left out").inc()
            self._changed.notify()

    def close(self) -> None:
        """End the thread, after the decoders are closed; what waits is left out."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=5.0)

    def _held_bytes(self) -> int:
        return sum(kept.record.size for kept in self._waiting)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while (kept := self._next()) is not None:
            try:
                outcome = self._keep(kept)
            except (CancelledError, DecoderError, StoreError) as error:
                log.info("evidence.left_out", image=kept.exemplar.id, error=str(error))
                outcome = "failed"
            except Exception:
                log.exception("evidence.failed", image=kept.exemplar.id)  # no reason not to count and to alert
                outcome = "failed"
            metrics.LARGE_PICTURES.labels(outcome).inc()

    def _next(self) -> Kept | None:
        """The most unusual image that waits; None to end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return None if self._closed else self._waiting.pop(0)

    def _keep(self, kept: Kept) -> str:
        """What became of it: `kept`, `overtaken` by worse ones, or `failed`."""
        picture = self._decoders.large(LargePicture(kept.record, kept.index, self._settings.picture_px)).result()
        if not picture:
            return "failed"
        return "kept" if self._store.pictures.keep(kept.partition, kept.exemplar, picture) else "overtaken"
