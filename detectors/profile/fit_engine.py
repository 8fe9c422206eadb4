"""The engine of a fit: torch for the first images, OpenVINO for all others where it gives the same features.

The features of a fit are half of its time, and OpenVINO computes them in half of torch's (`detectors.engines`).
What is learned from them serves under either engine: they differ by some 1e-6 of the largest. Whether that holds here
is tested on the images themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from detectors.engines.engine import Engine, EngineError
from detectors.engines.openvino import OpenVinoEngine
from detectors.profile.backbone import Backbone

IMAGES = 1024
"""Before OpenVINO is asked for: a fit of fewer is over before its graph is compiled."""
MOST_DIFFERENT = 1e-4
"""Of the largest value of a feature in a batch."""


class EngineOfFit:
    """Gives the features of one backbone, one batch after the other; `name` is that of the engine in use."""

    def __init__(self, backbone: Backbone) -> None:
        self.name = backbone.quantised.name if backbone.quantised else "torch"
        self._backbone, self._images = backbone, 0
        self._engine: Engine | None = None

    def features(self, pixels: Tensor) -> Tensor:
        """See `Engine.features`."""
        due, self._images = self._images < IMAGES <= self._images + len(pixels), self._images + len(pixels)
        if due:
            self._engine = _tested(self._backbone, pixels)
            self.name = self._engine.name if self._engine else "torch"
        return self._run(pixels)

    def _run(self, pixels: Tensor) -> Tensor:
        return self._engine.features(pixels) if self._engine else self._backbone.eager(pixels)

    def forget(self) -> None:
        """See `Engine.forget`."""
        if self._engine:
            self._engine.forget()

    def on_grid(self, grid: int) -> Backbone:
        """The backbone on one of its grids, with the engine that is in use."""
        columns, other = self._backbone.columns(grid), self._backbone.on_grids(grid)
        other.engine = _Part(self.name, lambda pixels: self._run(pixels)[:, columns])
        return other


class _Part:
    def __init__(self, name: str, features: Callable[[Tensor], Tensor]) -> None:
        self.name, self.features = name, features

    def forget(self) -> None:
        """Nothing of its own is kept."""


def _tested(backbone: Backbone, pixels: Tensor) -> Engine | None:
    """OpenVINO, where it is installed and gives the features of these pixels as torch does."""
    try:
        engine = OpenVinoEngine(backbone)
    except EngineError:
        return None
    mine, other = backbone.eager(pixels), engine.features(pixels)
    largest = mine.abs().amax(dim=0)
    difference = float(((mine - other).abs() / largest.clamp(min=1e-3 * float(largest.max()))).max())
    if difference <= MOST_DIFFERENT:
        return engine
    engine.forget()  # the kept graph may be at fault
    return None
