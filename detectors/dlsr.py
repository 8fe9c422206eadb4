"""Diffusion-based layer-wise semantic reconstruction (DLSR), noise-free and in several feature spaces.

Source of the method: Yang et al., "Diffusion-based Layer-wise Semantic Reconstruction for Unsupervised
Out-of-Distribution Detection", NeurIPS 2024, arXiv 2411.10701. A network (LFDN) learns to predict a clean feature z_0
from z_t = sqrt(a) z_0 + sqrt(1 - a) eps at all levels a. At scoring time it is given sqrt(a) z_0 and the level, without
noise: one forward pass, the same answer every time, and far better separation than the paper's noisy draw.

Spaces (each (N, D), the same layers side by side):
    bn  per image and layer standardised over the channels (the paper's)
    rz  each channel z-scored over the reference images
    sw  signed square root, then whitened per layer over the reference images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.calibration import Calibration
from detectors.diffusion import LFDN, training_level
from detectors.registry import NotFittedError

Progress = Callable[[float], None]
"""Called with the share of the work that is done, in [0, 1]."""

SPACES = 3
# The level that served the shipped backbone best over nine OOD sets (AUROC .898 / FPR95 .377; .874 / .409 at a = .3).
LEVEL = 0.01
EPS = 1e-5


class DLSR:
    """Per-layer errors of the one-step reconstruction, ranked on held-out ID features and joined by Fisher's method.

    layers: channel count of each layer. Score: -2 sum over layers and spaces of ln p, where p ranks the error
    ||z - z~||^2 of one layer in one space among those of `holdout` of the reference features (kept out of training).
    """

    def __init__(
        self, layers: tuple[int, ...], width: int = 512, blocks: int = 1, level: float = LEVEL, seed: int = 0
    ) -> None:
        self.layers, self.level, self.seed = layers, level, seed
        self._shape = (SPACES, sum(layers), width, blocks)
        self._network: LFDN | None = None
        self._scaling: dict[str, Tensor] = {}
        self._ranks: list[Calibration] = []
        self._holdout = torch.empty(0)

    def fit(self, features: Tensor, progress: Progress | None = None) -> Self:
        """Train on four fifths of (N, D) float32 ID features and rank errors on the rest; seeded.

        Raises:
            ValueError: fewer than 50 features.
        """
        if len(features) < 50:
            raise ValueError(f"DLSR needs at least 50 images to fit (got {len(features)})")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(features), generator=generator)
        cut = len(features) // 5
        held, train = features[order[:cut]].float(), features[order[cut:]].float()
        self._scaling = _scaling(train, self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = LFDN(*self._shape)
            _train(self._network, self._spaces(train), generator, progress or (lambda _: None))
        self._set_holdout(self._errors(held))
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) float64 Fisher statistic; higher = more OOD."""
        return -2.0 * self._log_p(features).sum(dim=(1, 2))

    def layer_scores(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, L) float64 Fisher statistic of each layer over the spaces."""
        return -2.0 * self._log_p(features).sum(dim=1)

    def state(self) -> dict[str, Tensor]:
        """Everything fit() learned."""
        if self._network is None:
            raise NotFittedError("DLSR has no network; call fit() before state()")
        network = {f"network.{k}": v for k, v in self._network.state_dict().items()}
        scaling = {f"scaling.{k}": v for k, v in self._scaling.items()}
        both = {**network, **scaling, "holdout": self._holdout}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in both.items()}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take up what state() gave."""
        self._network = LFDN(*self._shape)
        self._network.load_state_dict(_under("network.", state))
        self._network.eval().requires_grad_(False)
        self._scaling = _under("scaling.", state)
        self._set_holdout(state["holdout"])
        return self

    def _set_holdout(self, errors: Tensor) -> None:
        """errors: (n, K, L) of held-out ID features."""
        self._holdout = errors
        columns = errors.reshape(len(errors), -1).double().numpy()
        zeros = torch.zeros(len(errors), dtype=torch.int64).numpy().astype("uint64")
        self._ranks = [Calibration.of(column, zeros, two_sided=False) for column in columns.T]

    def _log_p(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K, L) float64 ln of the per-layer p-values."""
        errors = self._errors(features.float())
        columns = errors.reshape(len(errors), len(self._ranks)).double().numpy()
        # All bits zero: an error equal to a held-out one counts as not beyond it.
        zeros = torch.zeros(len(errors), dtype=torch.int64).numpy().astype("uint64")
        p = [_smooth(rank, columns[:, i], rank.p_values(columns[:, i], zeros)) for i, rank in enumerate(self._ranks)]
        return torch.log(torch.stack(p, dim=1)).view(errors.shape)

    @torch.inference_mode()
    def _errors(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K, L) float32 squared reconstruction error of each layer in each space."""
        if self._network is None:
            raise NotFittedError("DLSR has no network; call fit() before score()")
        clean = self._spaces(features)
        level = torch.tensor([self.level])
        squared = (clean - self._network(level.sqrt() * clean, level)).square()
        return torch.stack(
            [part.sum(dim=2) for part in torch.split(squared, list(self.layers), dim=2)], dim=2
        ).transpose(0, 1)

    def _spaces(self, features: Tensor) -> Tensor:
        """(N, D) -> (K, N, D): bn, rz, sw."""
        s = self._scaling
        bn = [functional.layer_norm(part, part.shape[1:]) for part in torch.split(features, list(self.layers), dim=1)]
        rz = (features - s["mean"]) / s["std"]
        root = features.sign() * features.abs().sqrt() - s["root_mean"]
        sw = [part @ s[f"whiten{i}"] for i, part in enumerate(torch.split(root, list(self.layers), dim=1))]
        # Far outside, z-scores run into the hundreds and say nothing more; they would drown float32 sums.
        return torch.stack([torch.cat(bn, dim=1), rz.clamp(-30, 30), torch.cat(sw, dim=1).clamp(-30, 30)])


def _scaling(train: Tensor, layers: tuple[int, ...]) -> dict[str, Tensor]:
    root = train.sign() * train.abs().sqrt()
    scaling = {"mean": train.mean(0), "std": train.std(0) + EPS, "root_mean": root.mean(0)}
    for i, part in enumerate(torch.split(root - scaling["root_mean"], list(layers), dim=1)):
        covariance = (part.double().T @ part.double()) / len(part)
        # 1 % of the mean variance: directions that the reference hardly varies in must not be blown up to noise.
        ridge = 0.01 * covariance.diagonal().mean() + 1e-9
        values, vectors = torch.linalg.eigh(covariance)
        scaling[f"whiten{i}"] = (vectors * (values + ridge).rsqrt()).mm(vectors.T).float()
    return scaling


def _train(network: LFDN, train: Tensor, generator: torch.Generator, progress: Progress) -> None:
    """MSE on z_0 over all levels; AdamW, one cycle, EMA; 20 passes, within 600 to 3,200 steps."""
    batch = max(16, min(256, train.shape[1] // 4))
    steps = int(min(3200, max(600, 20 * train.shape[1] / batch)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for step in range(steps):
        rows = torch.randint(train.shape[1], (batch,), generator=generator)
        clean = train[:, rows]
        level = training_level(torch.rand(batch, generator=generator))
        noise = torch.randn(clean.shape, generator=generator)
        noisy = level.sqrt()[:, None] * clean + (1 - level).sqrt()[:, None] * noise
        loss = (network(noisy, level) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.995, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                average[name].lerp_(tensor, 1 - decay)
        if step % 20 == 0:
            progress(step / steps)
    network.load_state_dict(average)
    network.eval().requires_grad_(False)
    progress(1.0)


def _smooth(rank: Calibration, errors: object, p: object) -> Tensor:
    """p-values below the resolution 1 / (n + 1) go on falling with the ratio of the error to the largest held-out one.

    Without it every image beyond all held-out errors would tie, and the joined score could not tell far from farther.
    """
    values, p_values = torch.as_tensor(errors), torch.as_tensor(p)
    largest = max(float(rank.values[-1]), 1e-12)
    return torch.where(values > largest, p_values * (largest / values.clamp(min=1e-12)), p_values)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
