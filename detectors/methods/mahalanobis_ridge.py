"""Mahalanobis distance of z-scored features with a fixed ridge, over all layers at once and for each layer.

    y = (z - mu) / sigma per channel,   d(z)^2 = y^T (C + r I)^-1 y

C is the covariance of y over the reference, so its mean eigenvalue is one, and the ridge r = .01 says which directions
count as unseen: an image that leaves the reference in one of them is far away however little of its energy lies there.
That is what small faults on otherwise even surfaces do (`detectors.profile.choice` tells when). Against the shrinkage
of Ledoit and Wolf (`mahalanobis`) the z-scores give a layer of faint channels the same weight as a loud one.

Source: Lee et al., NeurIPS 2018, arXiv 1807.03888, with one class, and Defard et al., "PaDiM", ICPR 2020, arXiv
2011.08785, for features that keep their place; the closed form of leaving one image out is Sherman and Morrison's,
"Adjustment of an inverse matrix corresponding to a change in one element", Annals of Mathematical Statistics 21 (1950).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from detectors.methods.detector import LayerDetector, LearnedTensors, LeaveOneOut, NotFittedError

RIDGE = 0.01
"""In units of the variance of a z-scored channel; .001 is better by .002 AUROC on factory images without a grid, and
not at all on one."""
_CHUNK = 1024


class MahalanobisRidge(LearnedTensors, LayerDetector, LeaveOneOut):
    """One distance over all layers, which is the score, and one of each layer by itself; in float32.

    layers: channels (times cells) of each layer. ridge: r > 0.
    """

    def __init__(self, layers: tuple[int, ...], ridge: float = RIDGE) -> None:
        super().__init__(layers)
        if ridge <= 0:
            raise ValueError(f"the ridge must be positive, not {ridge}")
        self.ridge = ridge
        self._reference: _Reference | None = None

    def fit(self, features: Tensor) -> Self:
        """Mean, deviation and whitening of (N, D) ID features, N >= 2, of all layers and of each."""
        mean, scale = features.mean(dim=0), features.std(dim=0) + 1e-5
        whitened = [
            inverse_root(((features[:, part] - mean[part]) / scale[part]).double(), self.ridge)
            for part in self._parts()
        ]
        self.learned = {
            "mean": mean,
            "scale": scale,
            **{f"whiten{i}": whiten.float() for i, whiten in enumerate(whitened)},
        }
        self._reference = _Reference(features, whitened)
        return self

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N,) squared distances over all layers and (N, L) of each layer."""
        learned = self.learned
        standard = (features.float() - learned["mean"]) / learned["scale"]
        columns = [
            (standard[:, part] @ learned[f"whiten{i}"]).square().sum(dim=1) for i, part in enumerate(self._parts())
        ]
        return columns[0], torch.stack(columns[1:], dim=1)

    def left_out(self, copies: Tensor, rows: Tensor) -> Tensor:
        """Distances by what would have been learned without the row that each copy was made of: exact, no refit.

        With S = C + r I over n rows, u the row, v the copy less the mean of the others and c = n / (n - 1),
        the inverse without the row is that of n S - c u u^T, so v's squared distance is
        (n - 1) (q + c x^2 / (1 - c h)) with h = u^T S^-1 u / n, q = v^T S^-1 v / n and x = u^T S^-1 v / n.
        Only the deviations by which channels are divided still contain the row.
        """
        if self._reference is None:
            raise NotFittedError(self)
        pairs = zip(copies.split(_CHUNK), rows.split(_CHUNK), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self._left_out(*pair, self._reference) for pair in pairs])

    def _left_out(self, copies: Tensor, rows: Tensor, reference: _Reference) -> Tensor:
        learned, n = self.learned, len(reference.features)
        rate = n / (n - 1.0)
        columns = []
        for part, whiten in zip(self._parts(), reference.whitened, strict=True):
            mean, scale = learned["mean"][part], learned["scale"][part]
            row = ((reference.features[rows][:, part] - mean) / scale).double()
            copy = ((copies[:, part] - mean) / scale).double() + row / (n - 1.0)
            u, v = row @ whiten, copy @ whiten
            h, q, x = (u * u).sum(dim=1) / n, (v * v).sum(dim=1) / n, (u * v).sum(dim=1) / n
            columns.append((n - 1.0) * (q + rate * x * x / (1.0 - rate * h)))
        return torch.stack(columns, dim=1)

    def _parts(self) -> list[slice]:
        """The columns of all layers, then those of each."""
        ends = [sum(self.layers[:i]) for i in range(len(self.layers) + 1)]
        return [slice(0, ends[-1]), *(slice(*pair) for pair in pairwise(ends))]


@dataclass(frozen=True)
class _Reference:
    """What leaving out needs, and scoring does not: (N, D) features, and each part's whitening in float64."""

    features: Tensor
    whitened: list[Tensor]


def inverse_root(standard: Tensor, ridge: float) -> Tensor:
    """(N, D) float64 z-scores -> (D, D) symmetric W with W W = (C + ridge I)^-1, C their covariance.

    Fewer images than columns leave a subspace in which the reference does not vary at all: there W is ridge^-1/2, and
    the decomposition of the (N, N) products is enough for the rest.
    """
    n, width = standard.shape
    flat = torch.eye(width, dtype=standard.dtype) * ridge**-0.5
    if n >= width:
        values, vectors = torch.linalg.eigh(standard.T @ standard / n)
        return congruent(vectors, (values.clamp(min=0.0) + ridge).rsqrt())
    values, products = torch.linalg.eigh(standard @ standard.T / n)
    seen = values > 1e-9 * values[-1].clamp(min=1e-9)
    vectors = standard.T @ (products[:, seen] * (n * values[seen]).rsqrt())
    whiten: Tensor = flat + congruent(vectors, (values[seen] + ridge).rsqrt() - ridge**-0.5)
    return whiten


def congruent(vectors: Tensor, values: Tensor) -> Tensor:
    """(D, K) vectors and (K,) values -> (D, D): V diag(values) V^T."""
    return (vectors * values) @ vectors.T
