"""What the principal components of the reference cannot explain.

Source: Guan, Liu and Shen, "Revisit PCA-based technique for out-of-distribution detection", ICCV 2023; the residual is
the Q statistic of Jackson and Mudholkar, "Control procedures for residuals associated with principal component
analysis", Technometrics 21 (1979).

    score(z) = || (I - V V^T) x ||^2,   x = (z - mean) / sd per channel

V holds the leading components that explain `explained` of the variance of x. Channels are brought to equal variance
first: pooled layers differ a hundredfold in scale, and the largest would be all that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from detectors.methods.registry import NotFittedError

EXPLAINED = 0.9


class PCAResidual:
    """Squared residual off the principal subspace, in float64."""

    def __init__(self, layers: tuple[int, ...], explained: float = EXPLAINED) -> None:
        self.layers, self.explained = layers, explained
        self._mean, self._std, self._components = torch.empty(0), torch.empty(0), torch.empty(0)

    def fit(self, features: Tensor) -> Self:
        """Principal components of (N, D) ID features, N >= 2."""
        values = features.double()
        self._mean = values.mean(dim=0)
        self._std = values.std(dim=0).clamp(min=1e-6)  # a dead channel must not become a division by zero
        centred = (values - self._mean) / self._std
        eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(values))
        shares = eigenvalues.flip(0).clamp(min=0).cumsum(0) / eigenvalues.clamp(min=0).sum().clamp(min=1e-300)
        kept = min(int((shares < self.explained).sum()) + 1, len(shares) - 1)
        self._components = vectors.flip(1)[:, :kept].contiguous()
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64 squared residual; higher = more OOD."""
        if not self._mean.numel():
            raise NotFittedError("PCAResidual has no components; call fit() before score()")
        centred = (features.double() - self._mean) / self._std
        # The residual itself, not ||x||^2 - ||V^T x||^2: that difference loses all digits near the subspace.
        return (centred - (centred @ self._components) @ self._components.T).square().sum(dim=1)

    def state(self) -> dict[str, Tensor]:
        """Mean, standard deviation and components."""
        if not self._mean.numel():
            raise NotFittedError("PCAResidual has no components; call fit() before state()")
        parts = {"mean": self._mean, "std": self._std, "components": self._components}
        return {name: tensor.contiguous() for name, tensor in parts.items()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        self._mean, self._std, self._components = state["mean"], state["std"], state["components"]
        return self
