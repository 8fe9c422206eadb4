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
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.methods.diffusion import PublishedLFDN, diffuse, paper_levels
from detectors.methods.registry import NotFittedError

T = 100
STEP = 5
"""Where z_t is taken: the best of 5, 50, 90 and 99 for `mfsim` by its mean over three backbones (AUROC .777, .753,
.722, .717; benchmarks/ood_accuracy.py), and near the first steps, which the authors' code runs."""
PRESET: dict[str, Any] = {"width": 1440, "blocks": 16, "epochs": 150, "batch": 128, "learning_rate": 1e-4}
"""The paper's training: AdamW at a constant rate. Meant for a GPU: 16 blocks of 1440 are 66 million weights."""


class Published:
    """The network, its training and its one noisy step; the subclasses say the score."""

    def __init__(
        self,
        layers: tuple[int, ...],
        width: int = 512,
        blocks: int = 2,
        epochs: int = 20,
        batch: int = 256,
        learning_rate: float = 1e-3,
        step: int = STEP,
        seed: int = 0,
    ) -> None:
        """The default size and training fit a CPU; PRESET holds the paper's."""
        self.layers, self.step, self.seed = layers, step, seed
        self._shape = (sum(layers), width, blocks)
        self._epochs, self._batch, self._rate = epochs, batch, learning_rate
        self._levels = paper_levels(T).float()
        self._networks: dict[str, PublishedLFDN] = {}
        self._noise = torch.empty(0)

    def fit(self, features: Tensor, progress: Callable[[float], None] | None = None) -> Self:
        """Train on (N, D) float32 ID features; seeded.

        Raises:
            ValueError: fewer than two features.
        """
        if len(features) < 2:
            raise ValueError(f"DLSR needs at least 2 images to fit (got {len(features)})")
        generator = torch.Generator().manual_seed(self.seed)
        clean = standardise(features.float(), self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = PublishedLFDN(*self._shape)
        self._networks = self._train(network, clean, generator, progress or (lambda _: None))
        self._noise = torch.randn(1, clean.shape[1], generator=generator)
        return self

    def reconstruct(self, clean: Tensor, weights: str = "final") -> Tensor:
        """z~ of (N, D) standardised features by one noisy step; `weights` is `first` or `final`."""
        if not self._networks:
            raise NotFittedError("DLSR has no network; call fit() before score()")
        noisy = diffuse(clean, self._levels[self.step : self.step + 1], self._noise)
        with torch.inference_mode():
            answer: Tensor = self._networks[weights](noisy, torch.tensor([self.step]))
        return answer

    def state(self) -> dict[str, Tensor]:
        """Both sets of weights and the noise: the three scores share one state."""
        if not self._networks:
            raise NotFittedError("DLSR has no network; call fit() before state()")
        weights = {
            f"{name}.{key}": tensor.detach().contiguous()
            for name, network in self._networks.items()
            for key, tensor in network.state_dict().items()
        }
        return {**weights, "noise": self._noise}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        for name in ("first", "final"):
            network = PublishedLFDN(*self._shape)
            prefix = f"{name}."
            network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            self._networks[name] = _freeze(network)
        self._noise = state["noise"]
        return self

    def _train(
        self, network: PublishedLFDN, clean: Tensor, generator: torch.Generator, progress: Callable[[float], None]
    ) -> dict[str, PublishedLFDN]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=self._rate, weight_decay=0.02, fused=True)
        average, first, step = copy.deepcopy(network), None, 0
        for epoch in range(self._epochs):
            for rows in torch.split(torch.randperm(len(clean), generator=generator), self._batch):
                times = torch.randint(T, (len(rows),), generator=generator)
                noise = torch.randn(len(rows), clean.shape[1], generator=generator)
                noisy = diffuse(clean[rows], self._levels[times], noise)
                loss = functional.mse_loss(network(noisy, times), clean[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                step += 1
                _follow(average, network, min(0.999, (1 + step) / (10 + step)))
            # The regret is measured against the weights themselves: their average still holds the random start.
            first = first or copy.deepcopy(network)
            progress((epoch + 1) / self._epochs)
        return {"first": _freeze(first or network), "final": _freeze(average)}


class PaperMSE(Published):
    """mse = ||z_0 - z~||^2."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float32; higher = more OOD."""
        return self.layer_scores(features).sum(dim=1)

    def layer_scores(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, L) float32 squared error of each layer."""
        clean = standardise(features.float(), self.layers)
        return _sums((clean - self.reconstruct(clean)).square(), self.layers)


class PaperLR(Published):
    """lr = mse(first epoch's weights) - mse(final weights)."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float32; higher = more OOD."""
        clean = standardise(features.float(), self.layers)
        first, final = ((clean - self.reconstruct(clean, w)).square().sum(dim=1) for w in ("first", "final"))
        return first - final


class PaperMFsim(Published):
    """mfsim = -mean over layers 2..M of cos(z_0^m, z~^m); with a single layer, of that one."""

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float32 in [-1, 1]; higher = more OOD."""
        scores = self.layer_scores(features)
        return (scores[:, 1:] if len(self.layers) > 1 else scores).mean(dim=1)

    def layer_scores(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, L) float32 minus the cosine of each layer."""
        clean = standardise(features.float(), self.layers)
        pairs = zip(*(torch.split(z, list(self.layers), dim=1) for z in (clean, self.reconstruct(clean))), strict=True)
        return torch.stack([-functional.cosine_similarity(z, again, dim=1) for z, again in pairs], dim=1)


def standardise(features: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Each layer of each row to mean 0 and sample standard deviation 1 over its channels."""
    centred = [part - part.mean(1, keepdim=True) for part in torch.split(features, list(layers), dim=1)]
    # Not Tensor.std: it warns where there are no rows.
    deviations = [(part.square().sum(1, keepdim=True) / max(part.shape[1] - 1, 1)).sqrt() for part in centred]
    return torch.cat([part / (deviation + 1e-5) for part, deviation in zip(centred, deviations, strict=True)], dim=1)


def _sums(values: Tensor, layers: tuple[int, ...]) -> Tensor:
    return torch.stack([part.sum(dim=1) for part in torch.split(values, list(layers), dim=1)], dim=1)


@torch.no_grad()
def _follow(average: PublishedLFDN, network: PublishedLFDN, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)


def _freeze(network: PublishedLFDN) -> PublishedLFDN:
    network.eval().requires_grad_(False)
    return network
