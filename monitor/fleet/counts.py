"""OOD shares, histograms and moved signals of every stream, from closed buckets. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred
from monitor.core.alert_document import Triage
from monitor.core.buckets import (
    BINS,
    IMAGES,
    Layout,
    cut_index,
    distance_from_uniform,
    histogram,
    images,
    reference_counts,
)
from monitor.core.types import Vector
from monitor.core.windows import Windows
from monitor.fleet.tables import Rows, StreamRows, added, grown
from monitor.rules.bounds import reference_bounds
from monitor.rules.evidence import moved_signals, triage

special = Deferred("scipy.special")

SHOWN_LEVELS = (0.05, 0.01)
"""Of the OOD share: the usual one, and a stricter one on which a small share of unusual images shows."""
BAND_RISK = 0.0025
"""Four of them make 1 %: the calibration set and the window may each deviate to either side."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """OOD share of a window at one level, and the band in which it lies in distribution."""

    level: float
    share: float
    lower: float
    upper: float


class ClosedCounts:
    """Sums closed buckets per stream, over a sliding window and since counting began.

    Whole vectors are kept only of the streams that `watch` names: those of 5,000 streams would fill 120 MB.

    Args:
        window_ms: length of the window, which ends with the newest bucket.
    """

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._until_ms = 0
        self._layouts: dict[str, Layout] = {}
        self._judged_by: dict[str, str] = {}
        self._watched: set[str] = set()
        self._vectors = Windows(window_ms)
        self._buckets: deque[tuple[int, str, Rows, NDArray[np.uint32]]] = deque()
        self._sums = defaultdict[str, Counts](lambda: np.zeros((0, BINS + 1), dtype=np.int64))
        """{fingerprint: (N, 10)} images per bin of the OOD p-value, and images, over the window."""
        self.streams = StreamRows()
        self._p_values: Counts = np.zeros((0, BINS), dtype=np.int64)
        self.signals: dict[str, Counts] = {}
        """{signal: (9,) images per bin of its p-value since counting began, over all streams}."""

    @property
    def p_values(self) -> Counts:
        """(N, 9) images per bin of the OOD p-value since counting began, by row of `streams`."""
        return grown(self._p_values, len(self.streams))

    def set_layouts(self, layouts: Mapping[str, Layout]) -> None:
        """{fingerprint: layout} of the known profiles; buckets of others are ignored."""
        self._layouts = dict(layouts)
        for layout in layouts.values():
            for signal in layout.signals:
                self.signals.setdefault(signal, np.zeros(BINS, dtype=np.int64))

    def watch(self, streams: Collection[str]) -> None:
        """Keep whole vectors of these streams from the next bucket on."""
        self._watched = set(streams)

    def add(self, bucket_ms: int, fingerprint: str, names: Sequence[str], table: Vector, count: bool = True) -> None:
        """Add one partition's closed bucket; buckets come oldest first.

        Args:
            names, table: K streams and their (K, V) counts.
            count: False adds to the window alone.
        """
        if fingerprint in self._layouts and names:
            layout, rows = self._layouts[fingerprint], self.streams.of(names)
            seen = table[:, IMAGES] > 0  # records that could not be read have no condition
            self._judged_by.update({name: fingerprint for name, some in zip(names, seen, strict=True) if some})
            bins = histogram(layout, table, "ood")
            # kept as running sums: summing thirty buckets of 5,000 streams at each read takes half a second
            counted = np.column_stack([bins, table[:, IMAGES]])
            self._sums[fingerprint] = added(self._sums[fingerprint], rows, counted)
            self._buckets.append((bucket_ms, fingerprint, rows, counted))
            # copies: a view of one row would keep the whole bucket in memory
            whole = {name: table[i].copy() for i, name in enumerate(names) if name in self._watched}
            self._vectors.add(bucket_ms, {fingerprint: whole})
            if count:
                self._p_values = added(self._p_values, rows, bins)
                for signal in layout.signals:
                    self.signals[signal] += histogram(layout, table, signal).sum(axis=0, dtype=np.int64)
        self._until_ms = bucket_ms
        while self._buckets and self._buckets[0][0] <= bucket_ms - self._window_ms:
            _, fingerprint, rows, counted = self._buckets.popleft()
            self._sums[fingerprint][rows] -= counted

    def shares(self) -> dict[str, tuple[Share, ...]]:
        """OOD share of the window at each of SHOWN_LEVELS, of every stream that had images in it."""
        found: dict[str, tuple[Share, ...]] = {}
        names = self.streams.names
        # of all profiles together, as images of several conditions may lie in one bucket; the band is the newest one's
        sums = sum((grown(one, len(names)) for one in self._sums.values()), np.zeros((len(names), BINS + 1), np.int64))
        for fingerprint in self._sums:
            layout = self._layouts[fingerprint]
            mine = [i for i in np.flatnonzero(sums[:, -1]) if self._judged_by.get(names[i]) == fingerprint]
            counted = sums[mine, -1]
            per_level = []
            for level in SHOWN_LEVELS:
                share = sums[mine, cut_index(level) + 1 : -1].sum(axis=1) / counted
                lower, upper = bands(layout, level, counted)
                per_level.append(
                    [Share(level, *row) for row in zip(share.tolist(), lower.tolist(), upper.tolist(), strict=True)]
                )
            found.update({names[i]: shares for i, *shares in zip(mine, *per_level, strict=True)})
        return found

    def movement(self, stream: str) -> tuple[dict[tuple[str, str], float], Triage | None]:
        """How far each signal of a watched stream has moved in the window, and what that looks like.

        Returns: ({(signal, "learned", "property" or "mix"): effect}, triage); ({}, None) while nothing can be judged.
        """
        fingerprint = self._judged_by.get(stream)
        if fingerprint is None:
            return {}, None
        layout = self._layouts[fingerprint]
        window = self._vectors.sum(layout, fingerprint, stream, self._until_ms - self._window_ms)
        if images(window) == 0:
            return {}, None
        effects = {
            (signal, kind): float(distance_from_uniform(layout, window, signal))
            for signal, kind in zip(layout.signals, layout.kinds, strict=True)
        }
        return effects, triage(moved_signals(layout, window))


def bands(layout: Layout, level: float, counted: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) lower and (N,) upper share of unusual images in windows of that many normal images.

    Takes into account that the profile's calibration set is finite and that images depend on each other.

    Args:
        counted: (N,) images of each window; at least 1.
    """
    i, cut = layout.index("ood"), cut_index(level)
    n, k = layout.calibration_sizes[i], int(reference_counts(layout, "ood")[cut])
    if k == 0:
        return np.zeros(len(counted)), np.ones(len(counted))
    low, high = reference_bounds(k, n, BAND_RISK)
    independent = counted / layout.dependence[i]
    # bdtrik is the number of successes at which the binomial's distribution reaches a probability; NaN below the first
    fewest = np.nan_to_num(special.bdtrik(BAND_RISK, independent, low))
    most = special.bdtrik(1 - BAND_RISK, independent, high)
    most = np.where(np.isnan(most), independent, most)
    lower = np.clip(np.floor(fewest) / independent, 0.0, 1.0)
    upper = np.clip(np.ceil(most) / independent, 0.0, 1.0)
    return lower, upper
