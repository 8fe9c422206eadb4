"""The one protocol that every detector follows, and the table of all of them.

A detector sees features only: (N, D) float32 pooled backbone features as `detectors.profile.backbone` gives them, the
layers side by side, not standardised in any way. What a method wants of them (per-image standardisation, whitening,
norms) is part of the method.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast, runtime_checkable

from torch import Tensor

from detectors.methods.names import REGISTRY

__all__ = ["REGISTRY", "Detector", "JointDetector", "LayerDetector", "NotFittedError", "create"]


class NotFittedError(RuntimeError):
    """A detector was asked to score before it was fitted or restored."""


class Detector(Protocol):
    """Learns from ID features; scores any features, higher = more OOD.

    The constructor takes the widths of the layers first: `Method(layers=(24, 40, 96), ...options)`. A score depends
    on its own row alone. `restore(state())` on an instance built alike gives the same scores bit for bit.
    """

    def fit(self, features: Tensor) -> Self:
        """Learn from (N, D) float32 ID features."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) float32 -> (N,) scores, float32 or float64; (0, D) gives (0,)."""

    def state(self) -> dict[str, Tensor]:
        """Everything fit() learned, as contiguous tensors that safetensors can hold."""

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""


@runtime_checkable
class LayerDetector(Protocol):
    """A detector that can also say which layer objects."""

    def layer_scores(self, features: Tensor) -> Tensor:
        """(N, D) float32 -> (N, L) one score per layer, higher = more OOD."""


@runtime_checkable
class JointDetector(Protocol):
    """A layer detector that gives both kinds of scores from one pass."""

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float32 -> ((N,), (N, L)): what score() and layer_scores() give."""


def create(name: str, layers: tuple[int, ...], **options: Any) -> Detector:
    """An unfitted detector for features whose layers have these widths.

    Raises:
        ValueError: no detector of that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown detector {name!r}; choose from {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return cast(Detector, getattr(importlib.import_module(module), attribute)(layers=layers, **options))
