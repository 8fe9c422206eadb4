"""Where an image lies within the reference: a few coordinates whose distribution over images is the mix of a stream.

An OOD score asks of each image whether it is unusual. A stream can change while none is: a variant of the product is
no longer made, one kind floods in, the crop moves. Then the images that arrive are spread otherwise over the places
that normal images take, and the mean of a coordinate moves. The coordinates are principal components of pooled
features,

    x = (s(f) - mean) / sd    per channel of all layers, s the signed square root
    y_k = x . v_k / sqrt(l_k)    v_k, l_k: the eigenvectors of the largest eigenvalues of the covariance of x

Neither end of a coordinate is unusual, and the sign of a component is arbitrary: here the longer tail points upwards.
Its p-value is the rank of one tail all the same, near 0 at one end and near 1 at the other: a small shift of the mean
fills one tail and empties the other, and the smaller of the two tails, as of a property, would hardly show that.
Learned and calibrated on the same images, a component would look a little wider than it is to new ones; `left_out`
gives each image the coordinates of components that have not seen it.

Source: principal components for the detection of shifts: Rabanser, Günnemann and Lipton, "Failing Loudly: An
Empirical Study of Methods for Detecting Dataset Shift", NeurIPS 2019.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.methods.detector import LearnedTensors

COORDINATES = 8
FOLDS, FOLDS_OF_FEW, FEW = 5, 20, 1000
"""Up to FEW images, components without a fifth of them are worse than those of all."""
FLAT = 1e-6
"""Variance of a direction that counts as none, in units of the largest."""


class Mix(LearnedTensors):
    """K coordinates of pooled features; `layers` are their channels."""

    @property
    def count(self) -> int:
        """K, at most COORDINATES."""
        return self.learned["axes"].shape[1]

    def fit(self, features: Tensor, limit: int = COORDINATES) -> Self:
        """Learn up to `limit` coordinates from (N, D) float32 pooled features, N >= 2."""
        root = _root(features.double())
        mean, scale = root.mean(dim=0), root.std(dim=0) + 1e-5
        standard = (root - mean) / scale
        values, vectors = _leading(standard)
        # images that hardly differ have few directions to differ in: noise must not be blown up to a coordinate
        kept = min(limit, max(1, int((values > FLAT * values[-1]).sum())))
        axes = vectors[:, -kept:].flip(1) * values[-kept:].flip(0).rsqrt()
        skew = (standard @ axes).pow(3).mean(dim=0)
        axes = axes * torch.where(skew < 0, -1.0, 1.0)
        self.learned = {"mean": mean.float(), "axes": (axes / scale[:, None]).float().contiguous()}
        return self

    def coordinates(self, features: Tensor) -> Tensor:
        """(N, D) float32 pooled features -> (N, K) float64."""
        return ((_root(features.float()) - self.learned["mean"]) @ self.learned["axes"]).double()

    def left_out(self, features: Tensor) -> Tensor:
        """(N, K) coordinates of the (N, D) features that were learned, each by what was learned without its fold.

        The components of a fold have another order and another sign: least squares over its images maps twice as many
        of them onto those of all. As many would lose the last: with 200 images it came out so narrow that 9 % of new
        ones, not 5 %, lay beyond each of its 5 % cuts, and with twice as many 5 to 6 % do.
        """
        count = FOLDS_OF_FEW if len(features) < FEW else FOLDS
        folds, found = torch.arange(len(features)) % count, self.coordinates(features)
        for fold in range(count):
            rest, held = features[folds != fold], features[folds == fold]
            other = Mix(self.layers).fit(rest, 2 * COORDINATES)
            known, new = (functional.pad(other.coordinates(part), (0, 1), value=1.0) for part in (rest, held))
            found[folds == fold] = new @ torch.linalg.lstsq(known, self.coordinates(rest)).solution
        return found


def names_of(mix: Mix | None) -> tuple[str, ...]:
    """The signals of the coordinates: mix1, mix2, ..."""
    return tuple(f"mix{i + 1}" for i in range(mix.count)) if mix else ()


def _leading(standard: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues of the covariance of (N, D) float64 columns and their vectors (D, min(N, D))."""
    n, width = standard.shape
    if n >= width:
        values, vectors = torch.linalg.eigh(standard.T @ standard / n)
        return values.clamp(min=1e-12), vectors
    values, products = torch.linalg.eigh(standard @ standard.T / n)
    values = values.clamp(min=1e-12)
    return values, standard.T @ (products * (n * values).rsqrt())


def _root(features: Tensor) -> Tensor:
    return features.abs().sqrt_().copysign_(features)
