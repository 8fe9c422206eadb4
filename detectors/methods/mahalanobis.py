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

from detectors.methods.registry import NotFittedError


class Mahalanobis:
    """Squared distance over all layers together, in float64."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._mean, self._whiten = torch.empty(0), torch.empty(0)

    def fit(self, features: Tensor) -> Self:
        """Mean and shrunk covariance of (N, D) ID features, N >= 2."""
        self._mean, self._whiten = gaussian(features)
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64 squared distances; higher = more OOD."""
        return squared_distance(features, self._mean, self._whiten)

    def state(self) -> dict[str, Tensor]:
        """Mean and whitening matrix."""
        _fitted(self._mean)
        return {"mean": self._mean.contiguous(), "whiten": self._whiten.contiguous()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        self._mean, self._whiten = state["mean"], state["whiten"]
        return self


class MahalanobisLayers:
    """One distance per layer; the score is their sum, each divided by its mean over the reference.

    The division makes a layer of 16 channels count as much as one of 576: a squared distance grows with the width.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._scale = torch.empty(0)

    def fit(self, features: Tensor) -> Self:
        """Mean and shrunk covariance of each layer of (N, D) ID features, N >= 2."""
        self._parts = [gaussian(part) for part in self._split(features)]
        self._scale = torch.ones(len(self.layers), dtype=torch.float64)
        self._scale = self.layer_scores(features).mean(dim=0).clamp(min=1e-12)
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64; higher = more OOD."""
        return self.layer_scores(features).sum(dim=1)

    def layer_scores(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, L) float64 squared distances in units of their mean over the reference."""
        _fitted(self._scale)
        parts = zip(self._split(features), self._parts, strict=True)
        distances = [squared_distance(part, mean, whiten) for part, (mean, whiten) in parts]
        return torch.stack(distances, dim=1) / self._scale

    def state(self) -> dict[str, Tensor]:
        """Mean and whitening matrix of each layer, and the scales."""
        _fitted(self._scale)
        means = {f"mean{i}": mean.contiguous() for i, (mean, _) in enumerate(self._parts)}
        whitens = {f"whiten{i}": whiten.contiguous() for i, (_, whiten) in enumerate(self._parts)}
        return {**means, **whitens, "scale": self._scale.contiguous()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        self._parts = [(state[f"mean{i}"], state[f"whiten{i}"]) for i in range(len(self.layers))]
        self._scale = state["scale"]
        return self

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        return torch.split(features, list(self.layers), dim=1)


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
    _fitted(mean)
    return ((features.double() - mean) @ whiten).square().sum(dim=1)


def _fitted(learned: Tensor) -> None:
    if not learned.numel():
        raise NotFittedError("Mahalanobis has no mean; call fit() before score()")
