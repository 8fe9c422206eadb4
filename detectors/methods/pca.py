"""What the principal components of the reference cannot explain.

Source: Guan, Liu and Shen, "Revisit PCA-based technique for out-of-distribution detection", ICCV 2023; the residual is
the Q statistic of Jackson and Mudholkar, "Control procedures for residuals associated with principal component
analysis", Technometrics 21 (1979).

    score(z) = || (I - V V^T) x ||^2,   x = (z - mean) / sd per channel

V holds the leading components that explain `explained` of the variance of x. Channels are brought to equal variance
first: pooled layers differ a hundredfold in scale, and the largest would dominate.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from detectors.methods.detector import LearnedTensors

EXPLAINED = 0.9


class PCAResidual(LearnedTensors):
    """Squared residual off the principal subspace, in float64."""

    def __init__(self, layers: tuple[int, ...], explained: float = EXPLAINED) -> None:
        super().__init__(layers)
        self.explained = explained

    def fit(self, features: Tensor) -> Self:
        """Principal components of (N, D) ID features, N >= 2."""
        values = features.double()
        mean = values.mean(dim=0)
        std = values.std(dim=0).clamp(min=1e-6)  # a dead channel must not become a division by zero
        centred = (values - mean) / std
        eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(values))
        shares = eigenvalues.flip(0).clamp(min=0).cumsum(0) / eigenvalues.clamp(min=0).sum().clamp(min=1e-300)
        kept = min(int((shares < self.explained).sum()) + 1, len(shares) - 1)
        self.learned = {"mean": mean, "std": std, "components": vectors.flip(1)[:, :kept].contiguous()}
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64 squared residual; higher = more OOD."""
        components = self.learned["components"]
        centred = (features.double() - self.learned["mean"]) / self.learned["std"]
        # The residual itself, not ||x||^2 - ||V^T x||^2: that difference loses all digits near the subspace.
        return (centred - (centred @ components) @ components.T).square().sum(dim=1)
