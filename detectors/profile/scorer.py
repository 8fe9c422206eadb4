"""From pixels to the signals that a profile has learned, on one device: up go uint8 pixels, down come signals.

    pixels (N, H, W, 3) -> maps -> features (N, D) -> OOD score and layer scores (N, 1 + L), mix (N, K)

Each signal is float64. The numbers of an image that are not learned (its properties, `seen`) and the p-values, which
are ranks among the calibration, are made on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.engines.cuda_graphs import CudaGraphs
from detectors.engines.engine import Engine
from detectors.engines.pipeline import Pipeline, Pixels
from detectors.methods.detector import Detector, scores_of
from detectors.profile.backbone import Backbone
from detectors.profile.mix import Mix
from detectors.profile.pooling import averaged


class Scorer:
    """The network of a backbone, a fitted detector and a mix; shared by a profile and its conditions.

    pipeline: what moves the data, with its counts.
    """

    def __init__(self, backbone: Backbone, detector: Detector, mix: Mix | None) -> None:
        self.pipeline = Pipeline(backbone.device, self.signals)
        self._backbone = backbone
        self._there = _Head(detector, mix, backbone)
        self._here = _Head(detector, mix, backbone, move=False)

    def __call__(self, images: Sequence[Pixels] | Pixels) -> NDArray[np.float64]:
        """(H, W, 3) images, N >= 1, that were prepared -> (N, 1 + L + K): score, layers, mix."""
        return np.asarray(self.pipeline(images).numpy())

    def signals(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 on the device -> (N, 1 + L + K) float64 there; no host waits for it, or is asked."""
        return self._there(self._backbone.run(pixels))

    def of_features(self, features: Tensor) -> NDArray[np.float64]:
        """(N, D) features on the host -> (N, 1 + L + K), computed there."""
        return np.asarray(self._here(features).numpy())

    def use(self, engine: Engine | CudaGraphs | None) -> None:
        """Let an engine run the network, or graphs all of it; None is torch."""
        graphs = engine if isinstance(engine, CudaGraphs) else None
        self._backbone.engine = None if isinstance(engine, CudaGraphs) else engine
        self.pipeline = Pipeline(self._backbone.device, graphs or self.signals)


class _Head:
    """Detector and mix on one device: moved there when first used, as one that has not been fitted cannot be."""

    def __init__(self, detector: Detector, mix: Mix | None, backbone: Backbone, move: bool = True) -> None:
        self._detector, self._mix = detector, mix
        self._channels, self._grid = backbone.channels, backbone.spec.grid
        self._moves = backbone.device if move and backbone.device.type != "cpu" else None

    def __call__(self, features: Tensor) -> Tensor:
        if self._moves is not None:
            self._detector = self._detector.to(self._moves)
            self._mix, self._moves = self._mix and self._mix.to(self._moves), None
        scores = scores_of(self._detector, features)
        if self._mix is None:
            return scores
        pooled = averaged(features, self._channels, self._grid)
        return torch.cat([scores, self._mix.coordinates(pooled)], dim=1)
