"""What a fit can be told by name. No torch here: the command line lists them before anything is loaded."""

from __future__ import annotations

from typing import Literal, get_args

REGISTRY: dict[str, str] = {
    "dlsr": "detectors.methods.dlsr:DLSR",
    "dlsr-mse": "detectors.methods.dlsr_paper:PaperMSE",
    "dlsr-lr": "detectors.methods.dlsr_paper:PaperLR",
    "dlsr-mfsim": "detectors.methods.dlsr_paper:PaperMFsim",
    "mahalanobis": "detectors.methods.mahalanobis:Mahalanobis",
    "mahalanobis-layers": "detectors.methods.mahalanobis:MahalanobisLayers",
    "knn": "detectors.methods.knn:KNN",
    "pca": "detectors.methods.pca:PCAResidual",
}
"""Name on the command line and in profiles -> where its class lives (imported on first use)."""

NAMES = tuple(REGISTRY)
PRESETS = ("dlsr-paper",)
"""Detector, backbone, layers, size and training at once; see `monitor.cli.profile`."""
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
