"""Where an image is unusual: each place compared with the same place of normal images.

Source: Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR
2020, arXiv 2011.08785. One Gaussian per place of a grid, over the channels x of a frozen network's early layers:

    d(x)^2 = (x - mu)^T (C + r D) ^-1 (x - mu),   mu, C of that place over the reference, D = diag of all places

The unit of the result is the hottest place of normal images, not learned from: a value of 1 is reached anywhere in one
normal image of twenty.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from detectors.methods.detector import LearnedTensors

RIDGE = 0.1
QUANTILE = 0.95
HELD_SHARE = 0.25


class Locations(LearnedTensors):
    """Distance of each place to what is normal there, in units of what normal images reach anywhere.

    layers: the channels of the local features, as one entry.
    """

    def fit(self, local: Tensor) -> Self:
        """Learn from (N, h, w, C) local features of ID images, in random order; the last quarter sets the unit."""
        held = max(1, int(HELD_SHARE * len(local)))
        learned = local[: len(local) - held].float()
        mean = learned.mean(dim=0)
        centred = (learned - mean).flatten(1, 2).transpose(0, 1)
        scale = centred.flatten(0, 1).square().mean(dim=0).sqrt() + 1e-5
        centred = centred / scale
        covariance = centred.transpose(1, 2) @ centred / len(learned)
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors * (values.clamp(min=0.0) + RIDGE).rsqrt()[:, None]
        self.learned = {"mean": mean, "whiten": whiten / scale[:, None], "unit": torch.ones(1)}
        highest = self.unusual(local[len(local) - held :]).flatten(1).amax(dim=1)
        self.learned["unit"] = highest.quantile(QUANTILE).reshape(1).clamp(min=1e-6)
        return self

    def unusual(self, local: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w) float32 distances."""
        centred = (local.float() - self.learned["mean"]).flatten(1, 2).transpose(0, 1)
        distance = torch.bmm(centred, self.learned["whiten"]).square().sum(dim=2).sqrt()
        return distance.T.reshape(local.shape[:3]) / self.learned["unit"]
