"""Rate rule: the share of unusual images in a window exceeds a threshold, by a lower confidence bound.

Let r be the stream's true share of images beyond the cut, pi the share that the same cut has in distribution. pi is
not known: it is Beta(k, n + 1 - k) over calibration sets, with mean k / (n + 1), the level. The rule tests

    H0:  r - pi <= threshold - k / (n + 1)         (no more excess over normal than the threshold allows)

and is breached when

    bound = L - (U - k / (n + 1)) > threshold

with L the Clopper-Pearson lower bound of r and U the upper Beta quantile of pi, each at half of 1 - confidence. Under
H0 a window is breached with probability at most 1 - confidence over the draw of calibration set and window: if
neither bound fails, r - pi >= L - U. The threshold is in the user's unit (the share of images below the level), and
a small calibration set makes the rule more conservative instead of wrong.

This holds for one window: each window that closes may be breached wrongly with that probability. The sequential rule
bounds the number of false alarms over time instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import IMAGES, LEVELS, Layout, cut_index, exceedances, images, reference_counts, usable_cuts
from monitor.core.settings import Share
from monitor.core.types import Vector, Verdict
from monitor.rules.bounds import change_start, drifted_share, reference_bounds, share_bounds
from monitor.rules.rule import WindowRule, one_window


class RateRule(WindowRule):
    """Breached when more than `threshold` of the window's images have p-values of at most `level`, by a lower bound."""

    kind: Literal["rate"]
    signal: str = "ood"
    level: float = 0.05
    threshold: Share = 0.10

    def check_numbers(self, bucket_s: int) -> None:
        """Raise ValueError where the level is not one of `buckets.LEVELS`, or the confidence is below one half."""
        cut_index(self.level)
        super().check_numbers(bucket_s)

    def check(self, layout: Layout) -> None:
        """Raise KeyError where the profile lacks the signal, ValueError where it has too few images for the level."""
        if cut_index(self.level) not in usable_cuts(layout, self.signal):
            n = layout.calibration_sizes[layout.index(self.signal)]
            usable = [LEVELS[i] for i in usable_cuts(layout, self.signal)]
            raise ValueError(
                f"rate: {n} calibration images of {self.signal!r} are too few for level {self.level}; "
                f"calibrate on more, or use one of {usable}"
            )

    @property
    def promise(self) -> str:
        """Of one window; how many windows there are is not limited."""
        return one_window(self.confidence)

    def smallest_fault(self, layout: Layout) -> float:
        """The share that a window without end must hold: threshold and uncertainty of the calibration together."""
        self.check(layout)
        n = layout.calibration_sizes[layout.index(self.signal)]
        k = int(reference_counts(layout, self.signal)[cut_index(self.level)])
        nominal = k / (n + 1)
        _, id_upper = reference_bounds(k, n, (1 - self.confidence) / 2)
        return drifted_share(self.threshold + id_upper - nominal, nominal)

    def may_breach(self, layout: Layout, windows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """(K,) whether the observed share is beyond the threshold: its lower bound is less."""
        passed = exceedances(layout, windows, self.signal)[:, cut_index(self.level)]
        total = windows[:, IMAGES]
        return (total >= self.min_images) & (passed > self.threshold * total)

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:
        """Verdict on the summed window; `value` is the observed share, `bound` its lower bound.

        Raises: as `check`.
        """
        self.check(layout)
        i, cut = layout.index(self.signal), cut_index(self.level)
        total, passed = images(window), int(exceedances(layout, window, self.signal)[cut])
        if total < self.min_images:
            return self.too_few(total, passed / total if total else 0.0, self.threshold)
        risk = (1 - self.confidence) / 2
        n, k = layout.calibration_sizes[i], int(reference_counts(layout, self.signal)[cut])
        nominal = k / (n + 1)
        id_lower, id_upper = reference_bounds(k, n, risk)
        d = layout.dependence[i]
        lower, upper = share_bounds(passed / d, total / d, risk)
        bound = max(0.0, lower - (id_upper - nominal))
        severity = (
            drifted_share(lower, id_upper),
            drifted_share(passed / total, nominal),
            drifted_share(upper, id_lower),
        )
        summary = (
            f"{passed / total:.1%} of {total} images are beyond the {self.level:.1%} cut of {self.signal} "
            f"(at least {bound:.1%} with {self.confidence:.1%} confidence; threshold {self.threshold:.1%})"
        )
        cause = f"{self.signal}: more images beyond the {100 * self.level:g} % cut than normal"
        return Verdict(bound > self.threshold, passed / total, bound, self.threshold, total, summary, severity, cause)

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:  # noqa: ARG002
        """Start of the bucket from which on more images than normal are beyond the cut."""
        if not buckets:
            return None
        cut, counts = cut_index(self.level), np.stack([vector for _, vector in buckets])
        normal = int(reference_counts(layout, self.signal)[cut]) / (
            layout.calibration_sizes[layout.index(self.signal)] + 1
        )
        beyond = exceedances(layout, counts, self.signal)[:, cut].astype(np.float64)
        return buckets[change_start(beyond, counts[:, IMAGES].astype(np.float64), normal)][0]
