"""How well OOD scores separate ID from OOD images. Pure NumPy; every score is higher for more OOD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auroc(id_scores: Floats, ood_scores: Floats) -> float:
    """P(OOD score > ID score) + P(equal) / 2: the area under the ROC curve.

    Args:
        id_scores: (N,) OOD scores of ID samples. ood_scores: (M,) likewise for OOD samples.

    Raises:
        ValueError: either array is empty or holds NaN.

    >>> auroc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 5.0]))
    0.8125
    """
    _check(id_scores, ood_scores)
    ordered = np.sort(id_scores)
    below = np.searchsorted(ordered, ood_scores, side="left") + np.searchsorted(ordered, ood_scores, side="right")
    return float(below.mean() / (2 * len(ordered)))


def fpr_at_tpr(id_scores: Floats, ood_scores: Floats, tpr: float = 0.95) -> float:
    """Fraction of OOD samples accepted when a share of at least `tpr` of ID samples is accepted.

    ID is the positive class (the convention of OpenOOD and DLSR); some papers swap it and get other numbers. A sample
    is accepted when its score is at most the ceil(tpr N)-th smallest ID score.

    Raises:
        ValueError: either array is empty or holds NaN.

    >>> fpr_at_tpr(np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 4.0]), tpr=0.75)
    0.5
    """
    _check(id_scores, ood_scores)
    kept = min(len(id_scores), max(1, int(np.ceil(tpr * len(id_scores) - 1e-9))))
    threshold = np.partition(id_scores, kept - 1)[kept - 1]
    return float((ood_scores <= threshold).mean())


def aupr(id_scores: Floats, ood_scores: Floats) -> float:
    """Average precision with OOD as the positive class; equal scores enter together.

    AP = sum over distinct thresholds of (recall_k - recall_(k-1)) precision_k. It depends on the mix of ID and OOD.

    Raises:
        ValueError: either array is empty or holds NaN.

    >>> aupr(np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 4.0]))
    0.75
    """
    _check(id_scores, ood_scores)
    scores = np.concatenate([id_scores, ood_scores])
    positive = np.concatenate([np.zeros(len(id_scores)), np.ones(len(ood_scores))])
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the end of each run of equal scores
    found = np.cumsum(positive)[last]
    gained = np.diff(found, prepend=0.0) / len(ood_scores)
    return float((gained * found / (last + 1)).sum())


def roc_curve(id_scores: Floats, ood_scores: Floats, points: int = 200) -> tuple[Floats, Floats]:
    """(points,) share of ID flagged and of OOD flagged as the threshold falls: x and y of the ROC curve."""
    _check(id_scores, ood_scores)
    thresholds = np.quantile(np.concatenate([id_scores, ood_scores]), np.linspace(1, 0, points))
    flagged_id = 1.0 - np.searchsorted(np.sort(id_scores), thresholds, side="left") / len(id_scores)
    flagged_ood = 1.0 - np.searchsorted(np.sort(ood_scores), thresholds, side="left") / len(ood_scores)
    return np.append(0.0, flagged_id), np.append(0.0, flagged_ood)


METRICS: dict[str, Callable[[Floats, Floats], float]] = {"auroc": auroc, "fpr95": fpr_at_tpr, "aupr": aupr}


def measure(
    id_scores: Floats, ood_scores: Floats, resamples: int = 200, seed: int = 0
) -> dict[str, float | tuple[float, float]]:
    """Every metric with its 95 % percentile bootstrap interval: {"auroc": x, "auroc_interval": (low, high), ...}.

    ID and OOD samples are drawn with replacement, each among themselves; the same seed gives the same draws, so that
    detectors compared on one set meet the same samples.
    """
    rng = np.random.default_rng(seed)
    draws = [
        (id_scores[rng.integers(len(id_scores), size=len(id_scores))],
         ood_scores[rng.integers(len(ood_scores), size=len(ood_scores))])
        for _ in range(resamples)
    ]  # fmt: skip
    measured: dict[str, float | tuple[float, float]] = {}
    for name, metric in METRICS.items():
        measured[name] = metric(id_scores, ood_scores)
        if draws:
            low, high = np.quantile([metric(a, b) for a, b in draws], [0.025, 0.975])
            measured[f"{name}_interval"] = (float(low), float(high))
    return measured


def _check(id_scores: Floats, ood_scores: Floats) -> None:
    if len(id_scores) == 0 or len(ood_scores) == 0:
        raise ValueError("both ID and OOD scores are needed")
    if np.isnan(id_scores).any() or np.isnan(ood_scores).any():
        raise ValueError("scores must not be NaN")
