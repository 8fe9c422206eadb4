"""Do the images of a stream depend on each other? How much its counts vary, from the buckets that are stored. Pure.

Counts c_b of images beyond a cut, in B blocks of m_b images, vary around their own rate r in the window by

    V = sum_b (c_b - m_b r)^2 / sum_b m_b r (1 - r) * B / (B - 1)

times as much as those of independent images do; (B - 1) V is about chi-squared with B - 1 degrees of freedom for these,
which gives a lower bound. Frames that resemble each other over longer than a bucket show in blocks of several buckets:
blocks of 1, 2, 4, ... buckets are looked at, as long as BLOCKS are left, and the largest bound counts. The cuts are
those at the middle of the distribution, where counts are large.

This is a hint and no measurement of D: a stream whose rate itself comes and goes (day and night) varies, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred
from monitor.core.buckets import IMAGES, LEVELS, Layout, exceedances
from monitor.core.types import Vector

special = Deferred("scipy.special")

Floats = NDArray[np.float64]
CUTS = (0.5, 0.2)
BLOCKS = 20
RISK = 0.001
"""Of one cut and one length of blocks. An hour of independent images has no signal of thirty with a bound above 1.2."""
CLEARLY = 1.5
"""Times the dependence in force from which on it is worth a word."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the counts of one signal vary, in units of what those of independent images do.

    observed: V. at_least: its lower bound. assumed: the dependence D of the profile.
    """

    signal: str
    observed: float
    at_least: float
    assumed: float

    @property
    def clear(self) -> bool:
        """Whether the profile assumes too little."""
        return self.at_least > CLEARLY * self.assumed


def widest(layout: Layout, buckets: Mapping[int, Vector]) -> Spread | None:
    """The signal whose counts vary most for what the profile assumes of it; None with too few buckets of images.

    Args:
        buckets: {start ms: counts of the stream}.
    """
    held = [vector for _, vector in sorted(buckets.items()) if vector[IMAGES]]
    if len(held) < BLOCKS:
        return None
    vectors = np.stack(held)
    found = [_spread(layout, signal, vectors) for signal in layout.signals]
    return max(found, key=lambda spread: spread.at_least / spread.assumed)


def _spread(layout: Layout, signal: str, vectors: Vector) -> Spread:
    assumed = layout.dependence[layout.index(signal)]
    passed = exceedances(layout, vectors, signal)[:, [LEVELS.index(cut) for cut in CUTS]].astype(np.float64)
    images, found = vectors[:, IMAGES].astype(np.float64), [(0.0, 0.0)]
    while len(images) >= BLOCKS:
        found += [_variation(column, images) for column in passed.T]
        even = len(images) // 2 * 2
        images, passed = images[:even].reshape(-1, 2).sum(1), passed[:even].reshape(-1, 2, len(CUTS)).sum(1)
    at_least, observed = max(found)
    return Spread(signal, observed, at_least, assumed)


def _variation(passed: Floats, images: Floats) -> tuple[float, float]:
    """(lower bound, V) of (B,) counts; (0, 0) where none or all images pass."""
    total, blocks = images.sum(), len(images)
    rate = passed.sum() / total
    if not 0 < rate < 1:
        return 0.0, 0.0
    observed = ((passed - images * rate) ** 2).sum() / (total * rate * (1 - rate)) * blocks / (blocks - 1)
    degrees = blocks - 1
    return float(observed * degrees / (2 * special.gammaincinv(degrees / 2, 1 - RISK))), float(observed)
