"""Distance to the k-th nearest reference feature.

Source: Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022, arXiv 2204.06507.

    score(z) = || z / ||z|| - n_(k)(z) ||

where n_(k) is the k-th nearest among the normalised reference features. The paper takes one layer; here each layer is
normalised by itself and divided by the square root of the number of layers, so that the whole has length one and each
layer has the same weight.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.methods.detector import LearnedTensors

K = 10
"""Small, as the reference has no labels and modes may be rare; the ranking hardly changes between 5 and 50."""
MAX_BANK = 20_000
"""References kept; more are thinned evenly, since every score reads the whole bank."""
_CHUNK = 1024


class KNN(LearnedTensors):
    """k-th neighbour distance on per-layer normalised features, in float32."""

    def __init__(self, layers: tuple[int, ...], k: int = K) -> None:
        super().__init__(layers)
        self.k = k

    def fit(self, features: Tensor) -> Self:
        """Keep (N, D) ID features as the bank.

        Raises:
            ValueError: fewer than k features.
        """
        if len(features) < self.k:
            raise ValueError(f"KNN needs at least k = {self.k} images to fit (got {len(features)})")
        step = -(-len(features) // MAX_BANK)
        self.learned = {"bank": self._normalise(features[::step])}
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float32 distance in [0, 2]; higher = more OOD."""
        bank = self.learned["bank"]
        parts = [self._distance(part, bank) for part in torch.split(self._normalise(features), _CHUNK)]
        return torch.cat(parts) if parts else torch.empty(0, device=features.device)

    def _distance(self, queries: Tensor, bank: Tensor) -> Tensor:
        # Both sides have length one: ||a - b||^2 = 2 - 2 a.b, one matrix product.
        nearest: Tensor = (queries @ bank.T).topk(self.k, dim=1).values
        squared: Tensor = (2.0 - 2.0 * nearest[:, -1]).clamp(min=0.0)
        return squared.sqrt()

    def _normalise(self, features: Tensor) -> Tensor:
        parts = [functional.normalize(part, dim=1) for part in self.split(features.float())]
        return torch.cat(parts, dim=1) / math.sqrt(len(self.layers))
