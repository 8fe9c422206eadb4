"""The feature spaces in which layers are reconstructed: three views of the same pooled features, each (N, D).

    bn  each layer of each image standardised over its own channels, as the paper does: what is active, not how strongly
    rz  each channel z-scored over the reference
    sw  signed square root, then each layer whitened over the reference

One view's blind spot is another's strength: joined they beat each alone on every backbone measured, and adding raw
distances (Mahalanobis, kNN) to them does not help (benchmarks/ood_accuracy.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

NAMES = ("bn", "rz", "sw")
_FAR = 30.0
"""Z-scores are cut here: far outside they run into the hundreds, say nothing more and drown float32 sums."""


class Spaces:
    """Views of features whose layers have the widths `layers`; learned from the reference by fit()."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = list(layers)
        self._learned: dict[str, Tensor] = {}

    def fit(self, features: Tensor) -> Self:
        """Means, deviations and whitening of (N, D) float32 ID features."""
        root = _root(features)
        learned = {"mean": features.mean(0), "std": features.std(0) + 1e-5, "root_mean": root.mean(0)}
        for i, part in enumerate(torch.split(root - learned["root_mean"], self.layers, dim=1)):
            covariance = part.double().T @ part.double() / len(part)
            # 1 % of the mean variance: directions that the reference hardly varies in must not be blown up to noise.
            ridge = 0.01 * covariance.diagonal().mean() + 1e-9
            values, vectors = torch.linalg.eigh(covariance)
            learned[f"whiten{i}"] = ((vectors * (values + ridge).rsqrt()) @ vectors.T).float()
        self._learned = learned
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (K, N, D) in the order of NAMES."""
        learned = self._learned
        bn = [functional.layer_norm(part, part.shape[1:]) for part in torch.split(features, self.layers, dim=1)]
        rz = (features - learned["mean"]) / learned["std"]
        root = torch.split(_root(features) - learned["root_mean"], self.layers, dim=1)
        sw = [part @ learned[f"whiten{i}"] for i, part in enumerate(root)]
        return torch.stack([torch.cat(bn, dim=1), rz.clamp(-_FAR, _FAR), torch.cat(sw, dim=1).clamp(-_FAR, _FAR)])

    def state(self) -> dict[str, Tensor]:
        """Everything fit() learned."""
        return {name: tensor.contiguous() for name, tensor in self._learned.items()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        self._learned = dict(state)
        return self


def _root(features: Tensor) -> Tensor:
    return features.sign() * features.abs().sqrt()
