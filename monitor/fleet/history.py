"""The share of unusual images of every stream over the last hour, in memory; each sealed bucket is read once.

A sealed bucket never changes, so what was read of it stays true. An hour of 5,000 streams takes some 15 MB here and
1.4 GB to read: `follow` reads a few buckets at a time, newest first; until it is done, less of the past is known.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import IMAGES, Layout, cut_index, exceedances
from monitor.core.types import Partition
from monitor.fleet.state import read_layouts
from monitor.fleet.tables import StreamRows, added, grown
from monitor.store import Store

LEVEL = 0.05
"""An image is called unusual at p <= this."""
WINDOW_MS = 60_000
"""Length of the window of `shares`."""
REACH_MS = 3_600_000
SLOT_MS = 10_000
"""Resolution: the default bucket. Shorter slots would only take more memory."""

Slots = defaultdict[int, NDArray[np.uint32]]
"""{start ms: (N, 2) images and unusual images by row of the stream}."""
Bucket = tuple[Partition, str, int]
"""(partition, fingerprint, start ms)."""


class History:
    """Not thread-safe. `follow` and `read_open` may raise StoreError and can be called again.

    Args:
        reach_ms: how far back from the newest event time it reaches; bounds its memory.
    """

    def __init__(self, store: Store, reach_ms: int = REACH_MS) -> None:
        self._store, self._reach_ms = store, reach_ms
        self._layouts: dict[str, Layout] = {}
        self._forget()

    def _forget(self) -> None:
        self._streams = StreamRows()
        self._sealed, self._open = _no_slots(), _no_slots()
        self._read: set[Bucket] = set()
        self._judged_ms: dict[str, NDArray[np.int64]] = {}
        """{fingerprint: (N,) start of the stream's newest bucket that this profile judged, 0 for none}."""

    def follow(self, partitions: Sequence[Partition], high_ms: int, for_s: float) -> int:
        """Read sealed buckets that are not held yet, newest first; returns how many are left for another call.

        Args:
            high_ms: the newest event time of all.
            for_s: no further bucket is begun after so long; the first always is.
        """
        since_ms = high_ms - self._reach_ms
        sealed = set(self._store.counts.members(partitions, since_ms))
        if self._lost(sealed, since_ms):
            self._forget()
        self._read = {bucket for bucket in self._read if bucket[2] >= since_ms}
        for start in [start for start in self._sealed if start < since_ms - SLOT_MS]:
            del self._sealed[start]
        missing = sorted(sealed - self._read, key=lambda bucket: -bucket[2])
        until_s = time.monotonic() + for_s
        for taken, bucket in enumerate(missing):
            if taken and time.monotonic() > until_s:
                return len(missing) - taken
            self._add(bucket, self._sealed)
            self._read.add(bucket)
        return 0

    def read_open(self, partitions: Sequence[Partition], high_ms: int) -> None:
        """Read the buckets that are still open; they are read again each time."""
        opened = _no_slots()
        for bucket in self._store.counts.members(partitions, high_ms - self._reach_ms, ("open",)):
            if bucket not in self._read:  # sealed since
                self._add(bucket, opened)
        self._open = opened

    def shares(self, high_ms: int) -> dict[str, float]:
        """{stream: share of its images in the last minute before `high_ms` that are unusual}, of those with images."""
        total = np.zeros((len(self._streams), 2), dtype=np.int64)
        for _, table in self._slots(high_ms - WINDOW_MS, high_ms):
            total += table
        names = self._streams.names
        return {names[i]: float(total[i, 1] / total[i, 0]) for i in np.flatnonzero(total[:, 0])}

    def lines(self, streams: Sequence[str], high_ms: int, points: int) -> dict[str, list[tuple[int, int, int]]]:
        """{stream: [(start ms, images, unusual images), ...]} over the reach in at most `points` equal steps.

        Oldest first, without steps that had no images. The steps are the same for all streams.
        """
        slots = self._slots(high_ms - self._reach_ms + 1)
        known = [stream for stream in streams if stream in self._streams]
        if not slots or not known:
            return {}
        rows, (first_ms, _), (last_ms, _) = self._streams.of(known), slots[0], slots[-1]
        step_ms = SLOT_MS * -(-((last_ms - first_ms) // SLOT_MS + 1) // points)
        steps: dict[int, NDArray[np.int64]] = {}
        for start, table in slots:
            step = steps.setdefault(start // step_ms * step_ms, np.zeros((len(rows), 2), dtype=np.int64))
            step += table[rows]
        counted = np.stack(list(steps.values())).tolist()
        return {
            stream: [(start, *row[i]) for start, row in zip(steps, counted, strict=True) if row[i][0]]
            for i, stream in enumerate(known)
        }

    def judged_by(self) -> dict[str, list[str]]:
        """{fingerprint: streams whose newest images that profile judged}, as far as is held."""
        names = self._streams.names
        latest = {fingerprint: grown(judged, len(names)) for fingerprint, judged in self._judged_ms.items()}
        newest = np.maximum.reduce([np.zeros(len(names), dtype=np.int64), *latest.values()])
        return {
            fingerprint: sorted(names[i] for i in np.flatnonzero((judged == newest) & (judged > 0)))
            for fingerprint, judged in latest.items()
        }

    def conditions(self) -> dict[str, tuple[str, ...]]:
        """{stream: conditions of its newest images}, of the streams that have some; several share one bucket."""
        if not any(layout.condition for layout in self._layouts.values()):
            return {}
        found: dict[str, tuple[str, ...]] = {}
        for fingerprint, streams in self.judged_by().items():
            layout = self._layouts.get(fingerprint)
            if layout and (condition := layout.condition):
                found |= {stream: tuple(sorted({condition, *found.get(stream, ())})) for stream in streams}
        return found

    def _slots(self, since_ms: int, until_ms: float = math.inf) -> list[tuple[int, NDArray[np.uint32]]]:
        """(start, (N, 2) table) of what is sealed and what is open in [since, until], oldest first."""
        held = [*self._sealed.items(), *self._open.items()]
        inside = [(start, table) for start, table in held if since_ms <= start <= until_ms]
        return [(start, grown(table, len(self._streams))) for start, table in sorted(inside, key=itemgetter(0))]

    def _lost(self, sealed: set[Bucket], since_ms: int) -> bool:
        """Whether Redis has lost a bucket that was read (its last writes are gone): its images will be counted again.

        Its retention removes the oldest first, so a bucket that is gone while an older one stands was lost.
        """
        gone = {bucket for bucket in self._read if bucket[2] >= since_ms} - sealed
        oldest = min((start for _, _, start in sealed), default=None)
        return bool(gone) and (oldest is None or any(start > oldest for _, _, start in gone))

    def _add(self, bucket: Bucket, slots: Slots) -> None:
        _, fingerprint, start = bucket
        if fingerprint not in self._layouts:
            self._layouts = read_layouts(self._store)
        layout = self._layouts.get(fingerprint)
        names, table = self._store.counts.table(bucket)
        if layout is None or not names:
            return
        rows, known = self._streams.of(names), len(self._streams)
        judged = grown(self._judged_ms.get(fingerprint, np.zeros(0, dtype=np.int64)), known)
        with_images = rows[table[:, IMAGES] > 0]  # records that could not be read have no condition
        judged[with_images] = np.maximum(judged[with_images], start)
        self._judged_ms[fingerprint] = judged
        slot_ms = start // SLOT_MS * SLOT_MS
        passed = exceedances(layout, table, "ood")[:, cut_index(LEVEL)].astype(np.uint32)
        slots[slot_ms] = added(slots[slot_ms], rows, np.column_stack([table[:, IMAGES], passed]))


def _no_slots() -> Slots:
    return defaultdict(lambda: np.zeros((0, 2), dtype=np.uint32))
