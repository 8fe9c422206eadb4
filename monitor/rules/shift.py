"""Shift rule: the distribution of a signal's p-values differs from the one in distribution by at least an effect size.

The effect is the total variation distance: the smallest share of images that must have changed to turn the normal
histogram into the observed one, max over sets A of bins of |P(A) - Q(A)|. P is observed in m images, Q is known from n
calibration images. The rule uses a lower bound of it that holds at any sample size; over all runs A of adjacent bins,

    bound = max_A  L_A - U_A      L_A Clopper-Pearson lower bound of P(A), U_A quantile of Beta(k_A, n + 1 - k_A)

each at (1 - confidence) / 2 over the number of runs (the gaps between calibration scores are exchangeable, so any
k_A of them together are Beta distributed). Runs of adjacent bins cover the shifts that matter (a heavier tail, a
peak in the middle, too many p-values near 1), and their maximum is at most the distance over all sets, so the bound is
conservative. One window is breached wrongly with probability at most 1 - confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from detectors.deferred import Deferred
from monitor.core.buckets import (
    BINS,
    IMAGES,
    LEVELS,
    Layout,
    distance_from_uniform,
    histogram,
    images,
    reference_counts,
    sum_vectors,
)
from monitor.core.settings import Names, Share
from monitor.core.types import Vector, Verdict
from monitor.rules.bounds import Floats, change_start
from monitor.rules.rule import WindowRule, one_window

special = Deferred("scipy.special")


class ShiftRule(WindowRule):
    """Breached when at least a share `effect` of the window's images must have changed, in any of the signals.

    Signals are named singly or by group (`learned`, `properties`, `*`); the error is divided among them.
    """

    kind: Literal["shift"]
    signals: Names = ("ood",)
    window_s: PositiveFloat = 3600.0
    effect: Share = 0.15
    min_images: PositiveInt = 500

    def check_numbers(self, bucket_s: int) -> None:
        """Raise ValueError where no signal is named, or the confidence is below one half."""
        if not self.signals:
            raise ValueError("shift: needs at least one signal")
        super().check_numbers(bucket_s)

    def check(self, layout: Layout) -> None:
        """Raise KeyError where the profile lacks a signal."""
        layout.select(self.signals)

    @property
    def promise(self) -> str:
        """Of one window; how many windows there are is not limited."""
        return one_window(self.confidence)

    def may_breach(self, layout: Layout, windows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """(K,) whether the observed share of some bins exceeds the one in distribution by `effect`: a bound is less."""
        found = np.zeros(len(windows), dtype=bool)
        for signal in layout.select(self.signals):
            gaps = layout.calibration_sizes[layout.index(signal)] + 1
            normal = -np.diff([gaps, *reference_counts(layout, signal), 0]) / gaps
            shares = histogram(layout, windows, signal) / np.maximum(windows[:, IMAGES, None], 1)
            found |= np.maximum(shares - normal, 0).sum(axis=1) > self.effect
        return found & (windows[:, IMAGES] >= self.min_images)

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:
        """Verdict on the signal with the highest bound; `value` is its estimated distance."""
        total = images(window)
        if total < self.min_images:
            return self.too_few(total, 0.0, self.effect)
        bound, (first, last), signal = self._most_moved(layout, window)
        value = float(distance_from_uniform(layout, window, signal))
        cause = f"{signal}: too many images with p-values {_span(first, last)}"
        summary = f"{signal} moved in at least {bound:.1%} of {total} images (estimate {value:.1%}; {cause})"
        severity = (bound, max(bound, value), 1.0)
        return Verdict(bound > self.effect, value, bound, self.effect, total, summary, severity, cause)

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:  # noqa: ARG002
        """Start of the bucket from which on too many p-values lie where the window had too many."""
        if not buckets:
            return None
        after_ms = buckets[-1][0] - self.window_ms
        window = sum_vectors(vector for start, vector in buckets if start > after_ms)
        _, (first, last), signal = self._most_moved(layout, window)
        counts = np.stack([vector for _, vector in buckets])
        edges = [layout.calibration_sizes[layout.index(signal)] + 1, *reference_counts(layout, signal).tolist(), 0]
        normal = min((edges[first] - edges[last]) / edges[0], 1 - 1 / edges[0])  # a run may cover all gaps
        inside = histogram(layout, counts, signal)[:, first:last].sum(axis=1, dtype=np.float64)
        return buckets[change_start(inside, counts[:, IMAGES].astype(np.float64), normal)][0]

    def _most_moved(self, layout: Layout, window: Vector) -> tuple[float, tuple[int, int], str]:
        """(lower bound of its distance, run of bins with too many images, the signal)."""
        signals = layout.select(self.signals)
        risk = (1 - self.confidence) / len(signals)
        return max((*distance_bound(layout, window, s, risk), s) for s in signals)


def _span(first: int, last: int) -> str:
    """Bins first .. last-1 as a range of p-values."""
    low = 0.0 if last == BINS else LEVELS[last - 1]
    return f"above {low:g}" if first == 0 else f"from {low:g} to {LEVELS[first - 1]:g}"


@lru_cache(maxsize=1024)
def _reference(layout: Layout, signal: str, risk: float) -> tuple[tuple[tuple[int, int], ...], Floats]:
    """Runs [first, last) of bins, without the run of all bins, and (R,) upper bounds of their share in distribution."""
    n1 = layout.calibration_sizes[layout.index(signal)] + 1
    edges = np.concatenate([[n1], reference_counts(layout, signal), [0]])
    runs = tuple(
        (first, last)
        for first in range(BINS)
        for last in range(first + 1, BINS + 1)
        # a run with no calibration image of its own has no reference
        if last - first < BINS and edges[first] > edges[last]
    )
    k = np.array([edges[first] - edges[last] for first, last in runs], dtype=np.float64)
    # a run that covers all n + 1 gaps may hold all images (the bins left out are narrower than one image)
    upper = np.where(k < n1, special.betaincinv(k, np.maximum(n1 - k, 1), 1 - risk / (2 * len(runs))), 1.0)
    return runs, upper


def distance_bound(layout: Layout, vector: Vector, signal: str, risk: float) -> tuple[float, tuple[int, int]]:
    """Lower bound of the total variation distance at probability 1 - risk, and the run of bins with too many images."""
    d = layout.dependence[layout.index(signal)]
    runs, upper = _reference(layout, signal, risk)
    counts = np.concatenate([[0], np.cumsum(histogram(layout, vector, signal), dtype=np.float64)]) / d
    passed = np.array([counts[last] - counts[first] for first, last in runs])
    lower = np.where(
        passed > 0, special.betaincinv(np.maximum(passed, 1e-9), counts[-1] - passed + 1, risk / (2 * len(runs))), 0
    )
    best = int(np.argmax(lower - upper))
    return max(0.0, float(lower[best] - upper[best])), runs[best]
