"""What closed buckets say about every stream: over a sliding window, and since counting began. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrik

from monitor.core.buckets import (
    BINS,
    IMAGES,
    LEVELS,
    Layout,
    cut_index,
    distance_from_uniform,
    histogram,
    images,
    reference_counts,
)
from monitor.core.types import Vector
from monitor.core.windows import Windows
from monitor.rules.bounds import reference_bounds
from monitor.rules.evidence import moved_signals, triage

SHOWN_LEVELS = (0.05, 0.01)
"""Of the OOD share: what on-call looks at, and a stricter one that a small share of strange images still moves."""
BAND_RISK = 0.0025
"""Four of them make 1 %: the calibration set and the window may each be unlucky on either side."""

Counts = NDArray[np.int64]
Sealed = Mapping[str, Mapping[str, Vector]]


@dataclass(frozen=True, slots=True)
class Share:
    """OOD share of a window at one level, and the band in which it lies in distribution."""

    level: float
    share: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Movement:
    """How far each signal of a stream has moved, and what that looks like."""

    effects: tuple[tuple[str, bool, float], ...]
    """(signal, whether it is learned, effect)."""
    triage: str | None


class FleetCounts:
    """Takes closed buckets in and answers per stream.

    Whole vectors are kept only of the streams that `watch` names: those of 5,000 streams would fill 120 MB.

    Args:
        window_ms: how far back the window reaches.
    """

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._until_ms = 0
        self._whole = Windows(window_ms)
        self._held: deque[tuple[int, str, dict[str, Counts]]] = deque()
        self._sums: dict[tuple[str, str], Counts] = {}
        self._watched: set[str] = set()
        self._layouts: dict[str, Layout] = {}
        self._narrow: dict[str, Layout] = {}
        self._judged_by: dict[str, str] = {}
        self.p_values: dict[str, Counts] = {}
        """{stream: (9,) images per bin of the OOD p-value since counting began}."""
        self.signals: dict[str, Counts] = {}
        """{signal: (9,) likewise, over all streams}."""

    def know(self, layouts: Mapping[str, Layout]) -> None:
        """Learn what vectors mean; those of an unknown profile are passed over."""
        for fingerprint, layout in layouts.items():
            if fingerprint not in self._layouts and "ood" in layout.signals:
                self._layouts[fingerprint] = layout
                self._narrow[fingerprint] = _only_ood(layout)
                for signal in layout.signals:
                    self.signals.setdefault(signal, np.zeros(BINS, dtype=np.int64))

    def watch(self, streams: Collection[str]) -> None:
        """Keep whole vectors of these streams from the next bucket on."""
        self._watched = set(streams)

    def add(self, bucket_ms: int, sealed: Sealed, count: bool = True) -> None:
        """Take in one closed bucket, oldest first; `count=False` fills the window alone."""
        known = {fingerprint: streams for fingerprint, streams in sealed.items() if fingerprint in self._layouts}
        for fingerprint, streams in known.items():
            layout = self._layouts[fingerprint]
            self._slide(bucket_ms, fingerprint, {s: _ood_of(layout, vector) for s, vector in streams.items()})
            self._judged_by.update(dict.fromkeys(streams, fingerprint))
            if count and streams:
                self._count(layout, streams)
        self._until_ms = bucket_ms
        while self._held and self._held[0][0] <= bucket_ms - self._window_ms:
            _, fingerprint, gone = self._held.popleft()
            for stream, counted in gone.items():
                left = self._sums[fingerprint, stream] - counted
                if left.any():
                    self._sums[fingerprint, stream] = left
                else:
                    del self._sums[fingerprint, stream]
        whole = {f: {s: v for s, v in streams.items() if s in self._watched} for f, streams in known.items()}
        self._whole.add(bucket_ms, whole)

    def _count(self, layout: Layout, streams: Mapping[str, Vector]) -> None:
        for stream, vector in streams.items():
            held = self.p_values.setdefault(stream, np.zeros(BINS, dtype=np.int64))
            held += histogram(layout, vector, "ood")
        total: Counts = np.stack(list(streams.values())).sum(axis=0, dtype=np.int64)
        for i, signal in enumerate(layout.signals):
            self.signals[signal] += total[i * BINS : (i + 1) * BINS]

    def _slide(self, bucket_ms: int, fingerprint: str, counts: dict[str, Counts]) -> None:
        # sums that slide: adding thirty buckets up anew for 5,000 streams takes half a second
        self._held.append((bucket_ms, fingerprint, counts))
        for stream, counted in counts.items():
            held = self._sums.get((fingerprint, stream))
            self._sums[fingerprint, stream] = counted if held is None else held + counted

    def shares(self) -> dict[str, tuple[Share, ...]]:
        """OOD share of the window at each of SHOWN_LEVELS, of every stream that had images in it."""
        found: dict[str, tuple[Share, ...]] = {}
        for fingerprint, layout in self._narrow.items():
            mine = [s for f, s in self._sums if f == fingerprint and self._judged_by[s] == fingerprint]
            rows = np.array([self._sums[fingerprint, stream] for stream in mine]).reshape(len(mine), BINS + 1)
            counted = rows[:, -1]
            passed = np.flip(np.cumsum(np.flip(rows[:, 1:-1], 1), axis=1), 1)
            per_level = []
            for level in SHOWN_LEVELS:
                lower, upper = _bands(layout, level, np.maximum(counted, 1))
                share = passed[:, cut_index(level)] / np.maximum(counted, 1)
                per_level.append([level, share.tolist(), lower.tolist(), upper.tolist()])
            for i, stream in enumerate(mine):
                if counted[i]:
                    found[stream] = tuple(Share(lv, s[i], lo[i], up[i]) for lv, s, lo, up in per_level)
        return found

    def movement(self, stream: str) -> Movement | None:
        """How far the signals of a watched stream have moved in the window; None where nothing is known yet."""
        fingerprint = self._judged_by.get(stream)
        if fingerprint is None:
            return None
        layout = self._layouts[fingerprint]
        window = self._whole.sum(layout, fingerprint, stream, self._until_ms - self._window_ms)
        if images(window) == 0:
            return None
        effects = [
            (signal, learned, float(distance_from_uniform(layout, window, signal)))
            for signal, learned in zip(layout.signals, layout.learned, strict=True)
        ]
        return Movement(tuple(effects), triage(moved_signals(layout, window)))


def cumulative(counts: Iterable[int]) -> list[tuple[str, float]]:
    """(9,) counts per bin as a Prometheus histogram: (upper edge, images with a p-value up to it)."""
    from_low = np.cumsum(np.asarray(list(counts))[::-1]).tolist()
    edges = [*(f"{level:g}" for level in reversed(LEVELS)), "+Inf"]
    return list(zip(edges, map(float, from_low), strict=True))


def _only_ood(layout: Layout) -> Layout:
    i = layout.index("ood")
    return Layout(
        ("ood",), (layout.calibration_sizes[i],), (layout.two_sided[i],), (layout.learned[i],), (layout.dependence[i],)
    )


def _ood_of(layout: Layout, vector: Vector) -> Counts:
    """(10,) images per bin of the OOD p-value, and images."""
    return np.append(histogram(layout, vector, "ood"), vector[IMAGES]).astype(np.int64)


def band(layout: Layout, level: float, counted: int) -> tuple[float, float]:
    """(lower, upper) share of a window of `counted` normal images, calibration by as many images as the profile's."""
    lower, upper = _bands(layout, level, np.array([counted]))
    return float(lower[0]), float(upper[0])


def _bands(layout: Layout, level: float, counted: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`band` of many windows at once: (N,) lower and (N,) upper shares."""
    i, cut = layout.index("ood"), cut_index(level)
    n, k = layout.calibration_sizes[i], int(reference_counts(layout, "ood")[cut])
    if k == 0:
        return np.zeros(len(counted)), np.ones(len(counted))
    low, high = reference_bounds(k, n, BAND_RISK)
    independent = counted / layout.dependence[i]
    # bdtrik is the number of successes at which the binomial's distribution reaches a probability; NaN below the first
    fewest = np.nan_to_num(bdtrik(BAND_RISK, independent, low))
    most = bdtrik(1 - BAND_RISK, independent, high)
    most = np.where(np.isnan(most), independent, most)
    lower = np.clip(np.floor(fewest) / independent, 0.0, 1.0)
    upper = np.clip(np.ceil(most) / independent, 0.0, 1.0)
    return lower, upper
