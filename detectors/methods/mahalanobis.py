"""Mahalanobis distance to the reference features, over all layers at once or layer by layer.

Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018, arXiv 1807.03888, with one class, as there are no labels. Per layer: Rippel, Mertens and Merhof,
"Modeling the distribution of normal data in pre-trained deep features for anomaly detection", ICPR 2020,
arXiv 2005.14140.

    m(z)^2 = (z - mu)^T S^-1 (z - mu),   S = (1 - r) C + r tr(C) / D I

C is the covariance of the reference and r the shrinkage intensity of Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices", Journal of Multivariate Analysis 88 (2004): never singular, whatever N and D.
Everything is computed in float64: the condition number of pooled features reaches 1e8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from detectors.methods.detector import LayerDetector, LearnedTensors


class Mahalanobis(LearnedTensors):
    """Squared distance over all layers together, in float64."""

    def fit(self, features: Tensor) -> Self:
        """Mean and shrunk covariance of (N, D) ID features, N >= 2."""
        mean, whiten = gaussian(features)
        self.learned = {"mean": mean, "whiten": whiten}
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64 squared distances; higher = more OOD."""
        return squared_distance(features, self.learned["mean"], self.learned["whiten"])


class MahalanobisLayers(LearnedTensors, LayerDetector):
    """One distance per layer; the score is their sum, each divided by its mean over the reference.

    The division makes a layer of 16 channels count as much as one of 576: a squared distance grows with the width.
    """

    def fit(self, features: Tensor) -> Self:
        """Mean and shrunk covariance of each layer of (N, D) ID features, N >= 2."""
        learned = {}
        for i, part in enumerate(self.split(features)):
            learned[f"mean{i}"], learned[f"whiten{i}"] = gaussian(part)
        learned["scale"] = self._distances(features, learned).mean(dim=0).clamp(min=1e-12)
        self.learned = learned
        return self

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> sums (N,) and per layer (N, L) float64 squared distances, in units of their reference means."""
        layers = self._distances(features, self.learned) / self.learned["scale"]
        return layers.sum(dim=1), layers

    def _distances(self, features: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        parts = enumerate(self.split(features))
        columns = [squared_distance(part, learned[f"mean{i}"], learned[f"whiten{i}"]) for i, part in parts]
        return torch.stack(columns, dim=1)


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and whitening W (D, D) in float64 with W W^T = S^-1, S the Ledoit-Wolf covariance."""
    values = features.double()
    mean = values.mean(dim=0)
    centred = values - mean
    covariance = centred.T @ centred / len(values)
    shrunk = shrink(centred, covariance)
    eigenvalues, vectors = torch.linalg.eigh(shrunk)
    # Constant features leave a zero covariance: a tiny floor keeps the distance finite, and zero at the constant.
    # Contiguous, as it comes back from a file: another layout would sum in another order.
    return mean, (vectors * eigenvalues.clamp(min=1e-12).rsqrt()).contiguous()


def shrink(centred: Tensor, covariance: Tensor) -> Tensor:
    """Ledoit-Wolf: (1 - r) C + r m I with m = tr(C) / D, r = min(1, b / d).

    d = ||C - m I||^2 / D and b = (1 / N^2) sum_k ||x_k x_k^T - C||^2 / D, both in Frobenius norm.
    """
    n, width = centred.shape
    m = covariance.diagonal().mean()
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    d = (covariance - m * identity).square().sum() / width
    # ||x x^T - C||^2 summed over k = sum_k ||x_k||^4 - N ||C||^2, as the mean of x x^T is C.
    b = (centred.square().sum(dim=1).square().sum() - n * covariance.square().sum()) / (width * n * n)
    intensity = (b / d.clamp(min=1e-300)).clamp(0.0, 1.0)
    return (1.0 - intensity) * covariance + intensity * m * identity


def squared_distance(features: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """(N, D), (D,), (D, D) -> (N,) float64 ||(z - mu) W||^2."""
    return ((features.double() - mean) @ whiten).square().sum(dim=1)
