"""Confidence bounds shared by the rules: of an observed share, and of the rate of a cut in distribution."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred

special = Deferred("scipy.special")

Floats = NDArray[np.float64]


def share_bounds(passed: float, total: float, risk: float) -> tuple[float, float]:
    """(lower, upper) Clopper-Pearson bounds of a true share; each fails with probability at most `risk`.

    Counts may be fractional (counts divided by the variance inflation D of dependent images; then it is an
    approximation that treats m images as m / D independent ones).
    """
    lower = special.betaincinv(passed, total - passed + 1, risk) if passed > 0 else 0.0
    upper = special.betaincinv(passed + 1, total - passed, 1 - risk) if passed < total else 1.0
    return float(lower), float(upper)


@lru_cache(maxsize=4096)
def reference_bounds(k: int, n: int, risk: float) -> tuple[float, float]:
    """(lower, upper) for the in-distribution rate of a cut, Beta(k, n + 1 - k); each fails with probability `risk`."""
    return float(special.betaincinv(k, n + 1 - k, risk)), float(special.betaincinv(k, n + 1 - k, 1 - risk))


def drifted_share(rate: float, reference: float) -> float:
    """Share of drifted images that explains `rate` when all of them pass a cut that normal ones pass at `reference`."""
    return min(1.0, max(0.0, (rate - reference) / (1 - reference)))


def change_start(passed: Floats, total: Floats, normal: float) -> int:
    """Position of the bucket from which on more images pass than normal, by maximum likelihood; the last if none do.

    max over t and q of the log likelihood ratio of a share q from bucket t on to `normal`, which is M KL(C/M, normal)
    for C of M images from t to the end. Of equal ones the latest: empty buckets are not part of the change.

    Args:
        passed: (B,) images that count for a change, oldest first; total: (B,) all images; B >= 1.
        normal: the share that passes without a change, in (0, 1).
    """
    c, m = np.cumsum(passed[::-1]), np.cumsum(total[::-1])
    rate = c / np.maximum(m, 1)
    ratio = m * (special.xlogy(rate, rate / normal) + special.xlogy(1 - rate, (1 - rate) / (1 - normal)))
    return int(len(m) - 1 - np.argmax(np.where(rate > normal, ratio, 0.0)))


def anytime_interval(passed: Floats, total: Floats, risk: float) -> tuple[Floats, Floats]:
    """(lower, upper) for a true share, valid at all sizes of a growing sample together with probability 1 - risk.

    {p : B(1/2 + c, 1/2 + m - c) / B(1/2, 1/2) < p^c (1-p)^(m-c) / risk}: the likelihood ratio of Jeffreys' mixture to p
    is a test martingale under p and exceeds 1 / risk at any time with probability at most `risk` (Ville). Counts may be
    fractional, as in `share_bounds`.

    Args:
        passed: (R,) c.
        total: (R,) m; where it is 0 the interval is (0, 1).
    """
    floor = special.betaln(0.5 + passed, 0.5 + total - passed) - special.betaln(0.5, 0.5) + np.log(risk)
    best = passed / np.maximum(total, 1e-12)
    # The log likelihood rises up to c/m and falls beyond it: find by bisection where it crosses `floor` on each side.
    sides = []
    for end in (0.0, 1.0):
        outside, inside = np.full_like(best, end), best
        for _ in range(40):  # 2**-40: far finer than any share shown
            middle = (outside + inside) / 2
            holds = special.xlogy(passed, middle) + special.xlog1py(total - passed, -middle) > floor
            outside, inside = np.where(holds, outside, middle), np.where(holds, middle, inside)
        sides.append(outside)
    lower, upper = sides
    return np.where(total > 0, lower, 0.0), np.where(total > 0, upper, 1.0)
