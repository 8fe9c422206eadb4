"""What a fit can be told by name. No torch here: the command line lists them before anything is loaded."""

from __future__ import annotations

from typing import Literal, get_args

REGISTRY: dict[str, str] = {
    "dlsr": "detectors.dlsr:DLSR",
    "dlsr-mse": "detectors.dlsr_paper:PaperMSE",
    "dlsr-lr": "detectors.dlsr_paper:PaperLR",
    "dlsr-mfsim": "detectors.dlsr_paper:PaperMFsim",
    "mahalanobis": "detectors.mahalanobis:Mahalanobis",
    "mahalanobis-layers": "detectors.mahalanobis:MahalanobisLayers",
    "knn": "detectors.knn:KNN",
    "pca": "detectors.pca:PCAResidual",
}
"""Name on the command line and in profiles -> where its class lives (imported on first use)."""

NAMES = tuple(REGISTRY)
PRESETS = ("dlsr-paper",)
"""Detector, backbone, layers, size and training at once; see `detectors.commands`."""
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
