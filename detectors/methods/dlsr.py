"""Diffusion-based layer-wise semantic reconstruction (DLSR), noise-free and in several feature spaces. The default.

Source of the method: Yang et al., "Diffusion-based Layer-wise Semantic Reconstruction for Unsupervised
Out-of-Distribution Detection", NeurIPS 2024, arXiv 2411.10701 (as published: `detectors.methods.dlsr_paper`). A network
learns to predict a clean feature z_0 from z_t = sqrt(a) z_0 + sqrt(1 - a) eps at all levels a. At scoring time it is
given sqrt(a) z_0 and the level, without noise: one forward pass, the same answer every time. Then

    e[k, l] = || z_0 - z~ ||^2 over the channels of layer l in space k                 (`Spaces`)
    p[k, l] = rank of e[k, l] among the errors of held-out ID features, in (0, 1]
    score   = -2 sum over k and l of ln p[k, l]                                (Fisher, 1925)

Why no noise: docs/explanation/score.md. Why Fisher: over maxima, top-k means, log-sums and Cauchy, it separates best.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from detectors.evaluation.metrics import auroc
from detectors.methods.detector import (
    FitContext,
    LayerDetector,
    LearnedTensors,
    NotFittedError,
    TrainableDetector,
    Turned,
    nested,
    under,
)
from detectors.methods.diffusion import LFDN, train

LEVELS = (0.3, 0.03)
"""Levels a that a fit chooses from: the high one serves the ImageNet backbone, the low one the distilled net. Only two,
far apart: turned images separate .3 from .03 by .02 to .04 AUROC, .3 from .1 by .002 or, in another sample, -.013."""
DEFAULT_LEVEL = 0.1
"""Used where turned images do not decide: the level that loses least on the backbone it suits worst."""
MIN_IMAGES = 50
HELD_SHARE = 0.2
WIDE, NARROW, WIDE_FROM = 512, 256, 2000
"""Width of the LFDN: 512 from 2,000 images on, else 256, which trains in a quarter of the time."""
SPACES = ("bn", "rz", "sw")
_FAR = 30.0
"""Z-scores are cut here: far outside they run into the hundreds, say nothing more and drown float32 sums."""


class DLSR(TrainableDetector, LayerDetector):
    """Noise-free one-step reconstruction errors per layer and space, ranked on held-out ID features and joined.

    layers: channels of each layer. level: a of the scoring step; None chooses it at fit. width, blocks: of the LFDN;
    width None chooses it by the number of images. After fit(), `level` is the level in use and `report` says how it
    was chosen and how training went.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        level: float | None = None,
        width: int | None = None,
        blocks: int = 1,
        seed: int = 0,
    ) -> None:
        self.layers, self.level, self.seed = layers, level, seed
        self.report: dict[str, object] = {}
        self.spaces = Spaces(layers)
        self._width, self._blocks = width, blocks
        self._network: LFDN | None = None
        self._held = torch.empty(0)

    @property
    def network(self) -> LFDN:
        """The trained network.

        Raises:
            NotFittedError: there is none yet.
        """
        if self._network is None:
            raise NotFittedError(self)
        return self._network

    def train(self, features: Tensor, context: FitContext) -> Self:
        """Train on four fifths of (N, D) float32 ID features and rank errors on the rest; seeded.

        Where no level was given, the images that `context` turns are kept out of training, and the level is the one
        that best separates them from their turned copies (see `choose_level`); DEFAULT_LEVEL without turned images.

        Raises:
            ValueError: fewer than MIN_IMAGES features.
        """
        if len(features) < MIN_IMAGES:
            raise ValueError(f"DLSR needs at least {MIN_IMAGES} images to fit (got {len(features)})")
        turned = context.turned() if self.level is None else None
        upright, rest = _set_apart(features.float(), turned)
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.seed))]
        cut = int(len(rest) * HELD_SHARE)
        held, learned = rest[:cut], rest[cut:]
        self.spaces.fit(learned)
        self._network = self._build(self._width or (WIDE if len(learned) >= WIDE_FROM else NARROW))
        views = self.spaces(learned), self.spaces(held)
        trained = train(self._network, *views, self.seed, context.progress)
        self.report = {"steps": trained.steps, "held_out_error": round(trained.error, 4)}
        if self.level is None:
            self.level = self._choose_level(held, upright, turned)
        self._held = sorted_columns(self.errors(torch.cat([held, upright])))
        self.report["level"] = self.level
        return self

    def settled(self) -> dict[str, Any]:
        """The level, which turned images chose."""
        return {"level": self.level}

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N,) the score and (N, L) float64 its parts by layer, which add up to it."""
        per_layer = layer_statistics(self.errors(features.float()), self._held)
        return per_layer.sum(dim=1), per_layer

    def state(self) -> dict[str, Tensor]:
        network, views = nested("network.", self.network.state_dict()), nested("spaces.", self.spaces.state())
        level = torch.tensor(self.level, dtype=torch.float64)
        return {**network, **views, "held": self._held, "level": level}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        self._network = self._build(state["network.outward.weight"].shape[1])
        self._network.load_state_dict(under("network.", state))
        self._network.eval().requires_grad_(False)
        self.spaces.restore(under("spaces.", state))
        self._held, self.level = state["held"], float(state["level"])
        return self

    def to(self, device: torch.device) -> Self:
        """A copy with network, spaces and held-out errors on a device."""
        other = copy.copy(self)
        other._network, other.spaces = copy.deepcopy(self.network).to(device), self.spaces.to(device)
        other._held = self._held.to(device)
        return other

    def _build(self, width: int) -> LFDN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LFDN(len(SPACES), sum(self.layers), width, self._blocks)

    @torch.inference_mode()
    def errors(self, features: Tensor, level: float | None = None) -> Tensor:
        """(N, D) -> (N, K, L) float32 squared reconstruction error of each layer in each space.

        level: a of the input; that of the fit by default.
        """
        network, clean = self.network, self.spaces(features)
        # filled where the features are: a tensor of the host would have to be copied up for each batch
        a = torch.full((1,), cast(float, self.level if level is None else level), device=features.device)
        squared = (clean - network(a.sqrt() * clean, a)).square()
        errors = [part.sum(dim=2) for part in torch.split(squared, list(self.layers), dim=2)]
        return torch.stack(errors, dim=2).transpose(0, 1)

    def _choose_level(self, held: Tensor, upright: Tensor, turned: Turned | None) -> float:
        """`choose_level` on upright images and their turned copies; both are new to the network."""
        found: dict[float, float] = {}
        parts = (upright, *turned.features) if turned else ()
        for level in LEVELS if parts else ():
            ranks = sorted_columns(self.errors(held, level))
            upright_scores, *turned_scores = (
                layer_statistics(self.errors(part, level), ranks).sum(dim=1).numpy() for part in parts
            )
            found[level] = sum(auroc(upright_scores, scores) for scores in turned_scores) / len(turned_scores)
        self.report["turned_auroc"] = {str(level): round(value, 4) for level, value in found.items()}
        return choose_level(found, len(upright))


class Spaces(LearnedTensors):
    """The feature spaces in which layers are reconstructed: three views of the same pooled features, each (N, D).

        bn  each layer of each image standardised over its own channels, as the paper does: what is active, not how
            strongly
        rz  each channel z-scored over the reference
        sw  signed square root, then each layer whitened over the reference

    Each view separates images that another does not: together they beat each alone on every backbone measured, and
    adding raw distances (Mahalanobis, kNN) to them does not help (benchmarks/ood_accuracy.py).
    """

    def fit(self, features: Tensor) -> Self:
        """Means, deviations and whitening of (N, D) float32 ID features."""
        root = _root(features)
        learned = {"mean": features.mean(0), "std": features.std(0) + 1e-5, "root_mean": root.mean(0)}
        for i, part in enumerate(self.split(root - learned["root_mean"])):
            covariance = part.double().T @ part.double() / len(part)
            # 1 % of the mean variance: directions that the reference hardly varies in must not be blown up to noise.
            ridge = 0.01 * covariance.diagonal().mean() + 1e-9
            values, vectors = torch.linalg.eigh(covariance)
            learned[f"whiten{i}"] = ((vectors * (values + ridge).rsqrt()) @ vectors.T).float()
        self.learned = learned
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (K, N, D) in the order of SPACES."""
        learned = self.learned
        bn = [functional.layer_norm(part, part.shape[1:]) for part in self.split(features)]
        rz = (features - learned["mean"]) / learned["std"]
        root = self.split(_root(features) - learned["root_mean"])
        sw = [part @ learned[f"whiten{i}"] for i, part in enumerate(root)]
        return torch.stack([torch.cat(bn, dim=1), rz.clamp(-_FAR, _FAR), torch.cat(sw, dim=1).clamp(-_FAR, _FAR)])


def _root(features: Tensor) -> Tensor:
    return features.sign() * features.abs().sqrt()


def sorted_columns(errors: Tensor) -> Tensor:
    """(n, K, L) errors of held-out ID features -> (K L, n), each row ascending."""
    return errors.flatten(1).T.sort(dim=1).values.contiguous()


def layer_statistics(errors: Tensor, held: Tensor) -> Tensor:
    """(N, K, L) errors and (K L, n) sorted held-out ones -> (N, L) float64 -2 sum over spaces of ln p.

    p = (1 + #{held >= e}) / (n + 1). Beyond the largest held-out error p goes on falling with the ratio of the two:
    otherwise all images beyond it would tie, and the score could not rank them.
    """
    columns = errors.flatten(1).T.contiguous()
    n = held.shape[1]
    p = (1.0 + n - torch.searchsorted(held, columns)) / (n + 1.0)
    largest = held[:, -1:].clamp(min=1e-12)
    p = p.double() * torch.where(columns > largest, largest / columns, 1.0)
    return -2.0 * p.log().T.reshape(errors.shape).sum(dim=1)


def choose_level(turned_auroc: Mapping[float, float], images: int) -> float:
    """The level that best separates `images` images from their turned copies, or DEFAULT_LEVEL.

    The AUROC decides if it lies more than three standard errors above one half. Images without an up (surfaces,
    aerial views) and small sets fail that and keep the default.
    """
    best = max(turned_auroc, key=turned_auroc.__getitem__, default=DEFAULT_LEVEL)
    # Images and their turned copies are two samples: the error of an AUROC near one half is 1 / sqrt(6 M).
    decides = best in turned_auroc and turned_auroc[best] > 0.5 + 3.0 * (6.0 * images) ** -0.5
    return best if decides else DEFAULT_LEVEL


def _set_apart(features: Tensor, turned: Turned | None) -> tuple[Tensor, Tensor]:
    """The rows that are turned, in that order, and all others."""
    others = torch.ones(len(features), dtype=torch.bool)
    if turned is None:
        return features[:0], features
    others[turned.rows] = False
    return features[turned.rows], features[others]
