"""Scores and features that do not depend on what else is in the batch, bit for bit.

A network rounds a batch of one otherwise than a batch of sixty-four: other kernels add up in another order, and most
features differ in their last bits. From FEWEST images on, those of the CPU give each image the same bits in every batch
(measured with the embedded backbone on 1 and 2 threads, batches of 16, 32 and 64 in any order). On a GPU the kernels
follow the shape, so there all batches have one size. What is missing is filled up with the last image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.prepare import Prepared
from detectors.profile.backbone import Backbone, See
from detectors.profile.calibration import Scores

if TYPE_CHECKING:
    from detectors.profile.profile import Profile

BATCH = 64
FEWEST = 16


def steady_scores(profile: Profile, images: Sequence[Prepared]) -> Scores:
    """As `Profile.score`, of 1 to BATCH prepared images."""
    filled = [*images, *[images[-1]] * _missing(profile.backbone, len(images))]
    scores = profile.score(filled)
    return Scores(scores.values[: len(images)], scores.p_values[: len(images)])


def steady_features(backbone: Backbone, pixels: NDArray[np.uint8], see: See | None = None) -> Tensor:
    """As `Backbone.features`, of (N, H, W, 3) pixels, N from 1 to BATCH."""
    missing = _missing(backbone, len(pixels))
    if not missing:
        return backbone.features(pixels, see)

    def without_filling(maps: Sequence[Tensor], input_px: tuple[int, int]) -> None:
        if see is not None:
            see([each[: len(pixels)] for each in maps], input_px)

    filled = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    return backbone.features(filled, see and without_filling)[: len(pixels)]


def use_threads(count: int) -> None:
    """Let networks of this process use so many cores; before any is built."""
    torch.set_num_threads(count)


def _missing(backbone: Backbone, images: int) -> int:
    return max(0, (FEWEST if backbone.device.type == "cpu" else BATCH) - images)
