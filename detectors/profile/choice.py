"""Which detector, and on which grid: decided at fit from the normal images alone.

Two kinds of normal need two detectors. Where images are alike (parts on a line), a fault is a small departure from what
never varies, and a Mahalanobis distance with a small ridge sees it best, on a grid if the place matters. Where normal
is a world of things (natural pictures), almost every direction varies, and the layer-wise reconstruction of `dlsr` is
better. The images themselves tell which: into each goes a patch of another normal image, and the distance has to tell
the pasted image from the whole one. The best grid does so in 80 to 96 % of all pairs on plain and factory images,
and in at most 75 % on natural ones.

Measured with the other sets as outliers, 600 to 2,000 learned (benchmarks/ood_accuracy.py --normals).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from detectors.evaluation.metrics import auroc
from detectors.methods.mahalanobis_ridge import MahalanobisRidge
from detectors.profile.backbone import Backbone
from detectors.profile.pooling import GRIDS, widths
from detectors.profile.reference import Reference

SMALL_FAULTS_SHOW = 0.8
"""AUROC of pasted against whole images from which on the distance is used. Of eleven kinds of normal on two backbones
none lay between .771 and .809, and those nearest to it are told from everything by both detectors."""
LEARNED = 2000
"""Images that the candidates learn from: enough to rank grids, in seconds."""


@dataclass(frozen=True)
class Choice:
    """A detector with its options, a grid, and why: `table` goes into the manifest, empty where nothing was chosen."""

    detector: str
    options: Mapping[str, Any]
    grid: int
    table: Mapping[str, Any] = field(default_factory=dict)


def grids_of(backbone: Backbone) -> tuple[int, ...]:
    """The grids that differ on this backbone: only one where all layers are wide."""
    found = {widths(backbone.channels, grid): grid for grid in reversed(GRIDS)}
    return tuple(sorted(found.values()))


def choose(reference: Reference, backbone: Backbone, progress: Callable[[float], None]) -> Choice:
    """Decide for the features of `reference`, which are those of `backbone` on all its grids."""
    rows, copies = reference.pasted(backbone)
    others = np.setdiff1d(np.arange(len(reference)), rows)
    thinned = others[:: max(1, -(-len(others) // (LEARNED - len(rows))))]
    learned = reference.features[torch.from_numpy(np.concatenate([rows, thinned]))]
    found = {}
    for i, grid in enumerate(backbone.grids):
        progress(i / len(backbone.grids))
        columns, places = backbone.columns(grid), torch.arange(len(rows))
        detector = MahalanobisRidge(widths(backbone.channels, grid)).fit(learned[:, columns])
        whole = detector.left_out(learned[: len(rows), columns], places)[:, 0]
        pasted = detector.left_out(copies[:, columns], places)[:, 0]
        found[grid] = auroc(whole.numpy(), pasted.numpy())
    best = max(found, key=found.__getitem__)
    small_faults = found[best] >= SMALL_FAULTS_SHOW
    table = {
        "images": len(rows),
        "pasted": {str(grid): round(found[grid], 3) for grid in found},
        "from": SMALL_FAULTS_SHOW,
    }
    return Choice("mahalanobis-ridge", {}, best, table) if small_faults else Choice("dlsr", {}, 1, table)
