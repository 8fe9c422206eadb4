"""The feature spaces in which layers are reconstructed: three views of the same pooled features, each (N, D).

    bn  each layer of each image standardised over its own channels, as the paper does: what is active, not how strongly
    rz  each channel z-scored over the reference
    sw  signed square root, then each layer whitened over the reference

Each view sees what another misses: together they beat each alone on every backbone measured, and adding raw
distances (Mahalanobis, kNN) to them does not help (benchmarks/ood_accuracy.py).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.methods.detector import LearnedTensors

NAMES = ("bn", "rz", "sw")
_FAR = 30.0
"""Z-scores are cut here: far outside they run into the hundreds, say nothing more and drown float32 sums."""


class Spaces(LearnedTensors):
    """Views of features whose layers have the widths `layers`; learned from the reference by fit()."""

    def fit(self, features: Tensor) -> Self:
        """Means, deviations and whitening of (N, D) float32 ID features."""
        root = _root(features)
        learned = {"mean": features.mean(0), "std": features.std(0) + 1e-5, "root_mean": root.mean(0)}
        for i, part in enumerate(self.split(root - learned["root_mean"])):
            covariance = part.double().T @ part.double() / len(part)
            # 1 % of the mean variance: directions that the reference hardly varies in must not be blown up to noise.
            ridge = 0.01 * covariance.diagonal().mean() + 1e-9
            values, vectors = torch.linalg.eigh(covariance)
            learned[f"whiten{i}"] = ((vectors * (values + ridge).rsqrt()) @ vectors.T).float()
        self.learned = learned
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (K, N, D) in the order of NAMES."""
        learned = self.learned
        bn = [functional.layer_norm(part, part.shape[1:]) for part in self.split(features)]
        rz = (features - learned["mean"]) / learned["std"]
        root = self.split(_root(features) - learned["root_mean"])
        sw = [part @ learned[f"whiten{i}"] for i, part in enumerate(root)]
        return torch.stack([torch.cat(bn, dim=1), rz.clamp(-_FAR, _FAR), torch.cat(sw, dim=1).clamp(-_FAR, _FAR)])


def _root(features: Tensor) -> Tensor:
    return features.sign() * features.abs().sqrt()
