"""Exact confidence bounds shared by the rules: of an observed share, and of a cut's rate in distribution."""

from __future__ import annotations

from functools import lru_cache

from scipy.special import betaincinv


def share_lower(passed: float, total: float, risk: float) -> float:
    """Clopper-Pearson: the true share lies below this with probability at most `risk`.

    Counts may be fractional (counts divided by the variance inflation D of dependent images; then it is an
    approximation that treats m images as m / D independent ones).
    """
    return float(betaincinv(passed, total - passed + 1, risk)) if passed > 0 else 0.0


def share_upper(passed: float, total: float, risk: float) -> float:
    """Clopper-Pearson: the true share lies above this with probability at most `risk`."""
    return float(betaincinv(passed + 1, total - passed, 1 - risk)) if passed < total else 1.0


@lru_cache(maxsize=4096)
def reference_bounds(k: int, n: int, risk: float) -> tuple[float, float]:
    """(lower, upper) for the in-distribution rate of a cut, Beta(k, n + 1 - k); each fails with probability `risk`."""
    return float(betaincinv(k, n + 1 - k, risk)), float(betaincinv(k, n + 1 - k, 1 - risk))


def drifted_share(rate: float, reference: float) -> float:
    """Share of drifted images that explains `rate` when all of them pass a cut that normal ones pass at `reference`."""
    return min(1.0, max(0.0, (rate - reference) / (1 - reference)))
