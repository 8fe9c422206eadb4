"""The share of unusual images of every stream over the last hour, in memory; each sealed bucket is read once.

A sealed bucket never changes, so what was read of it stays true. An hour of 5,000 streams takes some 15 MB here and
1.4 GB to read: `follow` reads a few buckets at a time, newest first, and whoever looks meanwhile sees less of the past.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import IMAGES, Layout, cut_index, exceedances
from monitor.core.types import Partition
from monitor.store import Store

LEVEL = 0.05
"""An image is called unusual at p <= this."""
WINDOW_MS = 60_000
"""What `share` looks back on."""
REACH_MS = 3_600_000
SLOT_MS = 10_000
"""What is kept together: the default bucket. Shorter buckets would only take more memory."""

Counts = NDArray[np.int64]
Member = tuple[Partition, str, int]


@dataclass
class _Slot:
    """(N,) images and those beyond the cut, by number of the stream; N grows with the number of known streams."""

    images: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))
    passed: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))

    def add(self, ids: NDArray[np.intp], images: NDArray[np.uint32], passed: Counts) -> None:
        if ids.size and ids.max() >= len(self.images):
            more = int(ids.max()) + 1 - len(self.images)
            self.images, self.passed = np.pad(self.images, (0, more)), np.pad(self.passed, (0, more))
        self.images[ids] += images
        self.passed[ids] += passed.astype(np.uint32)

    def of(self, ids: NDArray[np.intp]) -> Counts:
        """(2, K) images and unusual ones of some streams."""
        inside = ids < len(self.images)
        found = np.zeros((2, len(ids)), dtype=np.int64)
        found[0, inside], found[1, inside] = self.images[ids[inside]], self.passed[ids[inside]]
        return found


class History:
    """Not safe to share between threads; every method that reads may raise StoreError and can be called again.

    Args:
        reach_ms: how far back from the newest event time it reaches; bounds its memory.
    """

    def __init__(self, store: Store, reach_ms: int = REACH_MS) -> None:
        self._store, self._reach_ms = store, reach_ms
        self._layouts: dict[str, Layout] = {}
        self._number: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._number.clear()
        self._slots: dict[int, _Slot] = {}
        self._read: set[Member] = set()
        self._open: dict[int, _Slot] = {}
        self._judged_ms: dict[str, Counts] = {}

    def follow(self, partitions: Sequence[Partition], high_ms: int, for_s: float) -> int:
        """Take in sealed buckets that are not held yet, newest first; returns how many are left for another call.

        Args:
            high_ms: the newest event time of all.
            for_s: no further bucket is begun after so long; the first always is.
        """
        since_ms = high_ms - self._reach_ms
        sealed = set(self._store.counts.members(partitions, since_ms))
        if self._lost(sealed, since_ms):
            self._forget()
        self._read = {member for member in self._read if member[2] >= since_ms}
        for start in [start for start in self._slots if start < since_ms - SLOT_MS]:
            del self._slots[start]
        missing = sorted(sealed - self._read, key=lambda member: -member[2])
        until_s = time.monotonic() + for_s
        for taken, member in enumerate(missing):
            if taken and time.monotonic() > until_s:
                return len(missing) - taken
            self._take(member, self._slots)
            self._read.add(member)
        return 0

    def look(self, partitions: Sequence[Partition], high_ms: int) -> None:
        """Read the buckets that are still open; they are read anew each time."""
        opened: dict[int, _Slot] = {}
        for member in self._store.counts.members(partitions, high_ms - self._reach_ms, ("open",)):
            if member not in self._read:  # sealed since
                self._take(member, opened)
        self._open = opened

    def shares(self, high_ms: int) -> dict[str, float]:
        """{stream: share of its images in the last minute before `high_ms` that are unusual}, of those with images."""
        images = np.zeros(len(self._number), dtype=np.int64)
        passed = np.zeros_like(images)
        for slot in self._within(high_ms - WINDOW_MS, high_ms):
            images[: len(slot.images)] += slot.images
            passed[: len(slot.passed)] += slot.passed
        names = list(self._number)
        return {names[i]: float(passed[i] / images[i]) for i in np.flatnonzero(images)}

    def lines(self, streams: Sequence[str], high_ms: int, points: int) -> dict[str, list[tuple[int, int, int]]]:
        """{stream: [(start ms, images, unusual ones), ...]} over the reach in at most `points` equal steps.

        Oldest first, without steps that had no images. The steps are the same for all streams.
        """
        starts = sorted({start for start in {*self._slots, *self._open} if start > high_ms - self._reach_ms})
        known = [stream for stream in streams if stream in self._number]
        if not starts or not known:
            return {}
        ids = np.array([self._number[stream] for stream in known])
        step_ms = SLOT_MS * -(-((starts[-1] - starts[0]) // SLOT_MS + 1) // points)
        steps: dict[int, Counts] = {}
        for start in starts:
            held = steps.setdefault(start // step_ms * step_ms, np.zeros((2, len(ids)), dtype=np.int64))
            for slot in self._within(start, start):
                held += slot.of(ids)
        table = np.stack(list(steps.values())).tolist()
        return {
            stream: [(start, row[0][i], row[1][i]) for start, row in zip(steps, table, strict=True) if row[0][i]]
            for i, stream in enumerate(known)
        }

    def judged_by(self) -> dict[str, list[str]]:
        """{fingerprint: streams whose newest images that profile judged}, as far as is held."""
        names = list(self._number)
        latest = {f: np.pad(judged, (0, len(names) - len(judged))) for f, judged in self._judged_ms.items()}
        newest = np.maximum.reduce([np.zeros(len(names), dtype=np.int64), *latest.values()])
        return {
            fingerprint: sorted(names[i] for i in np.flatnonzero((judged == newest) & (judged > 0)))
            for fingerprint, judged in latest.items()
        }

    def _within(self, since_ms: int, until_ms: int) -> Iterator[_Slot]:
        """The slots that start in [since, until]; a sealed and an open one may start together."""
        for slots in (self._slots, self._open):
            if since_ms == until_ms:
                if since_ms in slots:
                    yield slots[since_ms]
            else:
                yield from (slot for start, slot in slots.items() if since_ms <= start <= until_ms)

    def _lost(self, sealed: set[Member], since_ms: int) -> bool:
        """Whether Redis no longer has a bucket that we took in: it was set back, and counts will come again.

        Its retention takes the oldest first, so a bucket that is gone while an older one stands was lost.
        """
        gone = {member for member in self._read if member[2] >= since_ms} - sealed
        oldest = min((start for _, _, start in sealed), default=None)
        return bool(gone) and (oldest is None or any(start > oldest for _, _, start in gone))

    def _take(self, member: Member, slots: dict[int, _Slot]) -> None:
        _, fingerprint, start = member
        layout = self._layout(fingerprint)
        names, table = self._store.counts.table(member)
        if layout is None or not names:
            return
        ids = np.array([self._number.setdefault(name, len(self._number)) for name in names], dtype=np.intp)
        passed = exceedances(layout, table, "ood")[:, cut_index(LEVEL)]
        judged = self._judged_ms.get(fingerprint, np.zeros(0, dtype=np.int64))
        judged = np.pad(judged, (0, len(self._number) - len(judged)))
        judged[ids] = np.maximum(judged[ids], start)
        self._judged_ms[fingerprint] = judged
        slots.setdefault(start // SLOT_MS * SLOT_MS, _Slot()).add(ids, table[:, IMAGES], passed)

    def _layout(self, fingerprint: str) -> Layout | None:
        """None where nobody said what its vectors mean."""
        if fingerprint not in self._layouts:
            self._layouts = self._store.catalog.layouts()
        layout = self._layouts.get(fingerprint)
        return layout if layout is not None and "ood" in layout.signals else None
