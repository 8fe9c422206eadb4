"""Scores a batch by one profile, and beside it by those in shadow; what does not fit into memory is halved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from detectors.images.prepare import Prepared
from detectors.profile.beside import p_values_beside, score_for
from monitor.core.buckets import counted_under
from monitor.core.shadow import shadow_of
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

if TYPE_CHECKING:  # loads torch
    from detectors import Profile
    from detectors.profile.calibration import Scores

log = structlog.get_logger(__name__)

MEMORY_WORDS = ("out of memory", "not enough memory", "allocate memory")
Beside = tuple[str, NDArray[np.float64]] | None
"""As `Judged.shadow`."""


def score_halving(
    profile: Profile, images: Sequence[Prepared], counted: str, shadows: Sequence[Profile | None]
) -> tuple[Scores, list[Beside]]:
    """The scores of the images, and what profiles in shadow say; what does not fit into memory is scored in halves.

    A device's memory is looked after where its batches are made (`detectors.engines.pipeline`); here it is the host's.

    Args:
        counted: fingerprint that the metric names; raw scores are the same in all conditions.
        shadows: one for each image.
    """
    halvings = profile.scorer.pipeline.halvings
    try:
        failpoint("score")
        scores, features = score_for(profile, images, shadows)
        metrics.HALVED.inc(profile.scorer.pipeline.halvings - halvings)
    except (MemoryError, RuntimeError) as error:
        exhausted = isinstance(error, MemoryError) or any(word in str(error) for word in MEMORY_WORDS)
        if not exhausted or len(images) < 2:
            raise
        metrics.HALVED.inc()
        half = len(images) // 2
        parts = ((images[:half], shadows[:half]), (images[half:], shadows[half:]))
        (one, first), (two, second) = (score_halving(profile, some, counted, others) for some, others in parts)
        both = np.concatenate([one.values, two.values]), np.concatenate([one.p_values, two.p_values])
        return type(one)(*both), [*first, *second]
    for i in np.flatnonzero(profile.learned):
        histogram = metrics.SCORES.labels(counted, profile.signals[i])
        for value in scores.values[:, i].tolist():
            histogram.observe(value)
    beside: list[Beside] = [None] * len(images)
    if any(shadows):
        try:
            rows = p_values_beside(profile, features, images, shadows)
            beside = [
                (shadow_of(counted_under(one.fingerprint)), p) if one is not None and p is not None else None
                for one, p in zip(shadows, rows, strict=True)
            ]
        except Exception:  # it is compared, and counts for nothing: no reason to score no more
            metrics.SHADOW_FAILURES.inc(len(images))
            log.exception("scoring.shadow_failed", images=len(images))
    return scores, beside
