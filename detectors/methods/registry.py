"""The table of all detectors. No torch here: the command line lists the names before anything heavy is loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds
    from detectors.methods.detector import Detector

REGISTRY: dict[str, str | type[Detector]] = {
    "dlsr": "detectors.methods.dlsr:DLSR",
    "dlsr-mse": "detectors.methods.dlsr_paper:PaperMSE",
    "dlsr-lr": "detectors.methods.dlsr_paper:PaperLR",
    "dlsr-mfsim": "detectors.methods.dlsr_paper:PaperMFsim",
    "mahalanobis": "detectors.methods.mahalanobis:Mahalanobis",
    "mahalanobis-layers": "detectors.methods.mahalanobis:MahalanobisLayers",
    "mahalanobis-ridge": "detectors.methods.mahalanobis_ridge:MahalanobisRidge",
    "knn": "detectors.methods.knn:KNN",
    "pca": "detectors.methods.pca:PCAResidual",
}
"""Name on the command line and in profiles -> class, or `module:class` to import on first use."""


AUTO = "auto"
"""Not a detector but what a fit is given when the images are to choose one (`detectors.profile.choice`)."""


def register(name: str, method: str | type[Detector]) -> None:
    """Add a detector under a new name, for `create`, `fit_profile`, `evaluate` and profiles that are loaded later.

    Args:
        name: unlike every registered name; profiles store it.
        method: the class, or `module:class`; called with `layers=` and the options of the fit.

    Raises:
        ValueError: the name is taken.
    """
    if name in {AUTO, *REGISTRY}:
        raise ValueError(f"a detector named {name!r} is already registered: {REGISTRY.get(name, AUTO)}")
    REGISTRY[name] = method


def create(name: str, layers: tuple[int, ...], **options: Any) -> Detector:
    """An unfitted detector for features whose layers have these widths.

    Args:
        name: of the registry.
        layers: channels of each layer; they add up to D.
        options: what the method's class takes besides the layers.

    Raises:
        ValueError: no detector of that name.

    >>> import torch
    >>> normal = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> detector = create("knn", layers=(2, 4), k=5).fit(normal)
    >>> detector.score(torch.stack([normal[0], -normal[0]])).argmax().item()
    1
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown detector {name!r}; choose from {', '.join(REGISTRY)}")
    method = REGISTRY[name]
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    detector: Detector = method(layers=layers, **options)  # type: ignore[call-arg]
    return detector
