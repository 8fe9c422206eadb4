"""From feature maps to features: averages over the cells of an n x n grid, the layers side by side.

One cell, the whole map, is what most detectors expect. A finer grid keeps where something is, so that a small fault is
not averaged away; which one helps is chosen at fit (`detectors.profile.choice`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

GRIDS = (1, 2, 4)
"""Cells a side that a fit chooses from. On factory images 3 x 3 is .006 to .01 AUROC below 4 x 4, and 6 x 6 costs four
times as much for +.006 on one backbone and nothing on the other."""
NARROW = 120
"""Layers of more channels are averaged over the whole map on every grid: on a grid they would be most of the features,
and their places are coarse."""


def cells(channels: int, grid: int) -> int:
    """Cells of a layer with this many channels."""
    return grid * grid if channels <= NARROW else 1


def widths(channels: Sequence[int], grid: int) -> tuple[int, ...]:
    """Values of each layer: channels times cells."""
    return tuple(count * cells(count, grid) for count in channels)


def pool(maps: Sequence[Tensor], grid: int) -> Tensor:
    """L maps (N, C, H, W) -> (N, D) float32, channel by channel, the cells of a channel in reading order.

    Maps that the grid does not divide evenly have cells that overlap by a row or a column.
    """
    averages = [
        functional.adaptive_avg_pool2d(each.float(), grid).flatten(1)
        if cells(each.shape[1], grid) > 1
        else each.mean(dim=(2, 3), dtype=torch.float32)
        for each in maps
    ]
    return torch.cat(averages, dim=1)


def averaged(features: Tensor, channels: Sequence[int], grid: int) -> Tensor:
    """(N, D) features of a grid -> (N, sum of channels), each the mean of its cells: for methods without places."""
    if grid == 1:
        return features
    parts = zip(channels, features.split(list(widths(channels, grid)), dim=1), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([part.unflatten(1, (count, -1)).mean(dim=2) for count, part in parts], dim=1)
