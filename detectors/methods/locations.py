"""Where an image is unusual: each place compared with the same place of normal images.

Source: Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR
2020, arXiv 2011.08785. Features x of every place of a grid, over the channels of a frozen network's early layers:

    z = (x - mu) / sigma,   d(x)^2 = z^T (C + r I)^-1 z

mu is the mean at that place, sigma the deviation from it over all places, C the covariance of z at that place. Where
all C would take too much room, square cells of places share theirs; the mean stays that of the place.

    unusual = d^2 / q

q is set so that one in twenty normal images that were not learned from reaches 1 anywhere: 1 is as unusual as normal
images hardly ever get, and the same for every image and every camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.methods.detector import LearnedTensors

RIDGE = 0.1
HELD_SHARE = 0.25
QUANTILE = 0.95
MAX_VALUES = 8_000_000
"""Of all covariances together: 16 MB in the file."""
_FAR = 30.0
"""Where z is cut: a channel that never varied is far away as soon as it does."""


class Locations(LearnedTensors):
    """Squared distance of each place to what is normal there, in units of what normal images hardly ever reach.

    layers: the channels of the local features.
    """

    def fit(self, local: Tensor) -> Self:
        """Learn from (N, h, w, C) local features of N >= 8 ID images in random order; the last quarter is held out."""
        cut = len(local) - int(HELD_SHARE * len(local))
        learned, held = local[:cut], local[cut:]
        mean = torch.stack([row.float().mean(dim=0) for row in learned.unbind(dim=1)])
        variance = [(row.float() - mean[i]).square().mean(dim=(0, 1)) for i, row in enumerate(learned.unbind(dim=1))]
        self.learned = {"mean": mean, "std": torch.stack(variance).mean(dim=0).sqrt() + 1e-5}
        whiten = [_whiten(_covariance(standard, size)) for standard, size in self._standard(learned)]
        self.learned |= {"whiten": torch.cat(whiten).half()}
        highest = self._distance(held).flatten(1).amax(dim=1)
        self.learned["unit"] = highest.quantile(QUANTILE).clamp(min=1e-3).reshape(1)
        return self

    def unusual(self, local: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w) float32, at least 0."""
        return self._distance(local) / self.learned["unit"]

    def _distance(self, local: Tensor) -> Tensor:
        whiten, parts, first = self.learned["whiten"], list[Tensor](), 0
        for standard, size in self._standard(local):
            cells = _cells(standard, size)
            distance = torch.bmm(cells, whiten[first : first + len(cells)].float()).square().sum(dim=2)
            parts.append(_from_cells(distance, len(local), size)[:, : standard.shape[1], : standard.shape[2]])
            first += len(cells)
        return torch.cat(parts, dim=1)

    def _standard(self, local: Tensor) -> Iterator[tuple[Tensor, int]]:
        """z of each row of cells, (N, <= size, w, C), and the size; one by one, as all of z would take much memory."""
        mean, std = self.learned["mean"], self.learned["std"]
        size = _cell_size(*local.shape[1:])
        for top in range(0, local.shape[1], size):
            row = slice(top, top + size)
            yield ((local[:, row].float() - mean[row]) / std).clamp(-_FAR, _FAR), size


def _cell_size(height: int, width: int, channels: int) -> int:
    """Places a side that share a covariance."""
    size = 1
    while -(-height // size) * -(-width // size) * channels**2 > MAX_VALUES:
        size += 1
    return size


def _cells(row: Tensor, size: int) -> Tensor:
    """(N, <= size, w, C) -> (cells, N size size, C); what lies beyond the edge is zero."""
    n, height, width, channels = row.shape
    padded = functional.pad(row, (0, 0, 0, -width % size, 0, size - height))
    return padded.reshape(n, size, -1, size, channels).permute(2, 0, 1, 3, 4).reshape(-1, n * size * size, channels)


def _from_cells(values: Tensor, n: int, size: int) -> Tensor:
    """(cells, N size size) -> (N, size, cells size): the inverse of `_cells`."""
    return values.reshape(-1, n, size, size).permute(1, 2, 0, 3).reshape(n, size, -1)


def _covariance(standard: Tensor, size: int) -> Tensor:
    """(cells, C, C) of a row of cells."""
    cells = _cells(standard, size)
    inside = _cells(torch.ones_like(standard[:, :, :, :1]), size).sum(dim=1, keepdim=True)
    return cells.transpose(1, 2) @ cells / inside


def _whiten(covariance: Tensor) -> Tensor:
    """(cells, C, C) W with W W^T = (C + r I)^-1."""
    identity = torch.eye(covariance.shape[1])
    lower = torch.linalg.cholesky(covariance + RIDGE * identity)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return inverse.transpose(1, 2)
