"""DLSR as published, with its three scores.

Source: Yang et al., "Diffusion-based Layer-wise Semantic Reconstruction for Unsupervised Out-of-Distribution
Detection", NeurIPS 2024, arXiv 2411.10701. z_0 holds the layers side by side, each standardised per image over its
own channels (sample standard deviation); the LFDN is trained to predict it from

    z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps,   eps ~ N(0, I),   t uniform on 0..T-1, T = 100

by mean squared error. With z~ the answer to one noisy z_t, the scores are (higher = more OOD):

    mse    sum over channels of (z_0 - z~)^2
    lr     mse under the weights after the first epoch minus mse under the final weights (likelihood regret)
    mfsim  minus the mean over layers 2..M of the cosine between z_0 and z~ of that layer; the first layer is left out,
           as the authors' code does

eps at scoring time is one vector drawn at fit and kept: the paper draws afresh, but a score that changes from run to
run or with the batch cannot be calibrated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.methods.detector import FitContext, LayerDetector, NotFittedError, TrainableDetector
from detectors.methods.diffusion import Descent, PublishedLFDN, diffuse, paper_levels

T = 100
LEVELS = paper_levels(T).float()
_LEVELS: list[float] = LEVELS.tolist()
STEP = 5
"""Where z_t is taken: the best of 5, 50, 90 and 99 for `mfsim` by its mean over three backbones (AUROC .777, .753,
.722, .717; benchmarks/ood_accuracy.py), and near the first steps, which the authors' code runs."""
PRESET: dict[str, int | float] = {"width": 1440, "blocks": 16, "epochs": 150, "batch": 128, "learning_rate": 1e-4}
"""The paper's training: AdamW at a constant rate. Meant for a GPU: 16 blocks of 1440 are 66 million weights."""


@dataclass(eq=False)
class Published(TrainableDetector):
    """The network, its training and its one noisy step; the subclasses define the score.

    layers: channels of each layer. width, blocks: of the network. epochs, batch, learning_rate: of the training. step:
    t of the scoring step. The default size and training fit a CPU; PRESET holds the paper's.
    """

    layers: tuple[int, ...]
    width: int = 512
    blocks: int = 2
    epochs: int = 20
    batch: int = 256
    learning_rate: float = 1e-3
    step: int = STEP
    seed: int = 0
    report: dict[str, object] = field(default_factory=dict, init=False)
    _learned: _Learned | None = field(default=None, init=False, repr=False)

    def train(self, features: Tensor, context: FitContext) -> Self:
        """Train on (N, D) float32 ID features; seeded.

        Raises:
            ValueError: fewer than two features.
        """
        if len(features) < 2:
            raise ValueError(f"DLSR needs at least 2 images to fit (got {len(features)})")
        generator = torch.Generator().manual_seed(self.seed)
        clean = standardise(features.float(), self.layers)
        network, first = self._build(), None
        descent = Descent(network, self.learning_rate, weight_decay=0.02, max_decay=0.999)
        for epoch in range(self.epochs):
            for rows in torch.split(torch.randperm(len(clean), generator=generator), self.batch):
                times = torch.randint(T, (len(rows),), generator=generator)
                noise = torch.randn(len(rows), clean.shape[1], generator=generator)
                noisy = diffuse(clean[rows], LEVELS[times], noise)
                descent.step(functional.mse_loss(network(noisy, times), clean[rows]))
            # The regret is measured against the weights themselves: their average still holds the random start.
            first = first or copy.deepcopy(network)
            context.progress((epoch + 1) / self.epochs)
        self.report = {"steps": descent.steps}
        noise = torch.randn(1, clean.shape[1], generator=generator)
        self._learned = _Learned(first or network, descent.average, noise)
        return self

    def reconstruct(self, clean: Tensor, weights: str = "final") -> Tensor:
        """z~ of (N, D) standardised features by one noisy step; `weights` is `first` or `final`."""
        learned = self._fitted()
        # filled where the features are: tensors of the host would have to be copied up for each batch
        level = torch.full((1,), _LEVELS[self.step], device=clean.device)
        step = torch.full((1,), self.step, device=clean.device)
        with torch.inference_mode():
            answer: Tensor = getattr(learned, weights)(diffuse(clean, level, learned.noise), step)
        return answer

    def state(self) -> dict[str, Tensor]:
        """Both sets of weights and the noise: the three scores share one state."""
        return {name: tensor.contiguous() for name, tensor in self._fitted().state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        self._learned = _Learned(self._build(), self._build(), torch.empty(1, sum(self.layers)))
        self._learned.load_state_dict(state)
        return self

    def to(self, device: torch.device) -> Self:
        """A copy with both sets of weights and the noise on a device."""
        other = copy.copy(self)
        other._learned = copy.deepcopy(self._fitted()).to(device)
        return other

    def _fitted(self) -> _Learned:
        if self._learned is None:
            raise NotFittedError(self)
        return self._learned

    def _build(self) -> PublishedLFDN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return PublishedLFDN(sum(self.layers), self.width, self.blocks)


class _Learned(nn.Module):
    """What a training leaves: the weights after the first epoch, the final ones, and the noise (1, D) of all scores."""

    noise: Tensor

    def __init__(self, first: nn.Module, final: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.first, self.final = first, final
        self.register_buffer("noise", noise)
        self.eval().requires_grad_(False)


class PaperMSE(Published, LayerDetector):
    """mse = ||z_0 - z~||^2; float32."""

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N,) the score and (N, L) float32 the squared error of each layer."""
        clean = standardise(features.float(), self.layers)
        errors = torch.split((clean - self.reconstruct(clean)).square(), list(self.layers), dim=1)
        per_layer = torch.stack([part.sum(dim=1) for part in errors], dim=1)
        return per_layer.sum(dim=1), per_layer


class PaperLR(Published):
    """lr = mse(first epoch's weights) - mse(final weights)."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float32; higher = more OOD."""
        clean = standardise(features.float(), self.layers)
        first, final = ((clean - self.reconstruct(clean, w)).square().sum(dim=1) for w in ("first", "final"))
        return first - final


class PaperMFsim(Published, LayerDetector):
    """mfsim = -mean over layers 2..M of cos(z_0^m, z~^m), in [-1, 1]; with a single layer, of that one."""

    def score_and_layers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N,) the score and (N, L) float32 minus the cosine of each layer."""
        clean = standardise(features.float(), self.layers)
        pairs = zip(*(torch.split(z, list(self.layers), dim=1) for z in (clean, self.reconstruct(clean))), strict=True)
        per_layer = torch.stack([-functional.cosine_similarity(z, again, dim=1) for z, again in pairs], dim=1)
        return (per_layer[:, 1:] if len(self.layers) > 1 else per_layer).mean(dim=1), per_layer


def standardise(features: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Each layer of each row to mean 0 and sample standard deviation 1 over its channels."""
    centred = [part - part.mean(1, keepdim=True) for part in torch.split(features, list(layers), dim=1)]
    # Not Tensor.std: it warns where there are no rows.
    deviations = [(part.square().sum(1, keepdim=True) / max(part.shape[1] - 1, 1)).sqrt() for part in centred]
    return torch.cat([part / (deviation + 1e-5) for part, deviation in zip(centred, deviations, strict=True)], dim=1)
