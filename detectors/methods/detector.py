"""What every detector promises, and a base for those that learn nothing but a few tensors.

A detector gets features only: (N, D) float32 pooled backbone features as `detectors.profile.backbone` gives them, the
layers side by side, not standardised in any way. What a method needs of them (per-image standardisation, whitening,
norms) is part of the method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor


class NotFittedError(RuntimeError):
    """A detector was asked for scores or for its state before it was fitted or restored."""

    def __init__(self, detector: object) -> None:
        super().__init__(f"{type(detector).__name__} has learned nothing; call fit() before score() or state()")


class Detector(Protocol):
    """Learns from ID features; scores any features, higher = more OOD.

    The constructor takes the widths of the layers as `layers` and its options by name. A score depends on its own row
    alone. `restore(state())` on an instance built alike gives the same scores bit for bit.

    >>> import detectors
    >>> normal = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> fitted = detectors.create("mahalanobis", layers=(2, 4)).fit(normal)
    >>> restored = detectors.create("mahalanobis", layers=(2, 4)).restore(fitted.state())
    >>> torch.equal(restored.score(normal), fitted.score(normal))
    True
    """

    def fit(self, features: Tensor) -> Self:
        """Learn from (N, D) float32 ID features."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) float32 -> (N,) scores, float32 or float64; (0, D) gives (0,)."""

    def state(self) -> dict[str, Tensor]:
        """Everything fit() learned, as contiguous tensors that safetensors can hold."""

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Continue from what state() returned."""

    def to(self, device: torch.device) -> Self:
        """One that scores features on a device, without a copy to the host in between; itself stays where it is.

        Called only where a profile scores on another device than the CPU.
        """


@runtime_checkable
class LayerDetector(Detector, Protocol):
    """A detector that also scores each layer; profiles make a signal of each."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) float32 -> (N,) scores, float32 or float64; (0, D) gives (0,)."""
        return self.score_and_layers(features)[0]

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float32 -> (N,) scores and (N, L) scores of each layer, higher = more OOD."""


@dataclass(frozen=True)
class Turned:
    """Some of the images that a detector learns from, and the features of their turned copies.

    rows: (M,) int64, which rows of the features given to train(). features: one (M, D) tensor per angle.
    """

    rows: Tensor
    features: Sequence[Tensor]


Progress = Callable[[float], None]
"""Called with the share of the work that is done, in [0, 1]."""


@dataclass(frozen=True)
class FitContext:
    """What a fit gives to a detector that trains. turned: computes the features of turned copies, at the cost of
    backbone passes; returns None where there are no such images."""

    progress: Progress = lambda _: None
    turned: Callable[[], Turned | None] = lambda: None


@runtime_checkable
class TrainableDetector(Detector, Protocol):
    """A detector that trains a network: it reports progress and may use turned copies. `report` goes into profiles."""

    report: dict[str, object]

    def fit(self, features: Tensor) -> Self:
        """train() without turned copies and without a report of progress."""
        return self.train(features, FitContext())

    def train(self, features: Tensor, context: FitContext) -> Self:
        """fit() with the help of `context`."""

    def settled(self) -> dict[str, Any]:
        """Options that train() has settled, for another training of the same kind."""
        return {}


@runtime_checkable
class LeaveOneOut(Detector, Protocol):
    """A detector that knows in closed form what it would say had it not learned a row; only after fit(), as the rows
    are not part of its state."""

    def left_out(self, copies: Tensor, rows: Tensor) -> Tensor:
        """(M, D) copies of learned rows (M,) int64 -> (M, 1 + L) float64 score and layer scores of each copy, by a
        detector that has learned all rows but its own."""


def scores_of(detector: Detector, features: Tensor) -> Tensor:
    """(N, D) -> (N, 1 + L) float64: the score, then those of the layers, if the detector gives any."""
    if isinstance(detector, LayerDetector):
        score, layers = detector.score_and_layers(features)
        return torch.cat([score[:, None], layers], dim=1).double()
    return detector.score(features)[:, None].double()


class LearnedTensors:
    """Base of a detector whose state is a few named tensors; the detector adds fit() and score()."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._learned: dict[str, Tensor] = {}

    @property
    def learned(self) -> dict[str, Tensor]:
        """What fit() learned, by name.

        Raises:
            NotFittedError: nothing yet.
        """
        if not self._learned:
            raise NotFittedError(self)
        return self._learned

    @learned.setter
    def learned(self, tensors: Mapping[str, Tensor]) -> None:
        self._learned = dict(tensors)

    def state(self) -> dict[str, Tensor]:
        """Everything fit() learned."""
        return {name: tensor.contiguous() for name, tensor in self.learned.items()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Continue from what state() returned."""
        self.learned = state
        return self

    def to(self, device: torch.device) -> Self:
        """A copy with what was learned on a device; what only a fit needs stays on the host."""
        other = copy.copy(self)
        other.learned = {name: tensor.to(device) for name, tensor in self.learned.items()}
        return other

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """(N, D) -> the (N, channels) part of each layer."""
        return torch.split(features, list(self.layers), dim=1)


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `tensors` whose names begin with `prefix`, without it: the inverse of `nested`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
