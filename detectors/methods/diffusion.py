"""The noise levels, the networks that predict a clean feature from a scaled or noisy one, and their training.

    z_t = sqrt(a) z_0 + sqrt(1 - a) eps,  eps ~ N(0, I)

LFDN (latent feature diffusion network; Yang et al., NeurIPS 2024, arXiv 2411.10701): input projection, time embedding,
residual blocks of norm - SiLU - linear with the time embedding added, output projection; it predicts z_0. `LFDN` is
ours: small, and standing for K feature spaces at once as batched products. `PublishedLFDN` has the paper's size and
the layout of its authors' code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.methods.detector import Progress

BATCH = 256
GROUP = 8
"""Rows of a batch that share a level: the time embedding then costs an eighth, and the levels still cover the range."""
MIN_STEPS, MAX_STEPS = 200, 600
"""More than 600 steps make the network a better denoiser and a worse detector (1,250 steps: -.007 AUROC)."""
CHECK_EVERY = 50
DRAWN = 10
"""Steps whose noise is drawn while those before are taken: 20 MB with the embedded backbone."""
PEAK_RATE = 2e-3
PATIENCE = 2
"""Checks without improvement before training ends."""


def training_level(uniform: Tensor) -> Tensor:
    """a = .01 + .98 cos^2(pi u / 2): all levels from almost clean to almost pure noise, u uniform on [0, 1]."""
    return 0.01 + 0.98 * torch.cos(uniform * (math.pi / 2)) ** 2


def paper_levels(steps: int = 100, first: float = 0.0015, last: float = 0.0195) -> Tensor:
    """(T,) float64 cumulative a_t of the paper: betas linear in their square roots from `first` to `last`."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def diffuse(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """z_t of clean features (..., N, D) at levels a (N,) or (1,), with the given standard normal noise (..., N, D)."""
    return level.sqrt()[:, None] * clean + (1.0 - level).sqrt()[:, None] * noise


def embed_time(time: Tensor, width: int) -> Tensor:
    """(N,) times -> (N, width) sines and cosines at frequencies 10000^(-i / (width / 2)), as in a transformer."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000.0) / half))
    angles = time[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class LFDN(nn.Module):
    """K one-step reconstruction networks side by side, (K, N, D) -> (K, N, D)."""

    def __init__(self, spaces: int, features: int, width: int, blocks: int = 1) -> None:
        super().__init__()
        self.time = nn.ModuleList([Linears(spaces, 128, width), Linears(spaces, width, width)])
        self.inward = Linears(spaces, features, width)
        self.blocks = nn.ModuleList([Linears(spaces, width, width) for _ in range(blocks)])
        self.outward = Linears(spaces, width, features)

    def forward(self, scaled: Tensor, level: Tensor) -> Tensor:
        """Predict z_0 from z_t (K, N, D).

        level: (M,) levels a, where M divides N and each stands for N / M rows in a row: M = 1 for one level shared by
        all, and few levels in a training batch cost a fraction of one for every row.
        """
        embedded = embed_time(1000.0 * (1.0 - level), 128).expand(scaled.shape[0], -1, -1)
        time = self.time[1](functional.silu(self.time[0](embedded)))
        if 1 < len(level) < scaled.shape[1]:
            time = time.repeat_interleave(scaled.shape[1] // len(level), dim=1)
        hidden: Tensor = self.inward(scaled)
        for block in self.blocks:
            hidden = hidden + block(functional.silu(functional.layer_norm(hidden + time, hidden.shape[-1:])))
        out: Tensor = self.outward(functional.silu(functional.layer_norm(hidden, hidden.shape[-1:])))
        return out

    def of_space(self, k: int) -> LFDN:
        """A network of the k-th space alone, with weights of its own."""
        other = copy.deepcopy(self)
        for parameter in other.parameters():
            parameter.data = parameter.data[k : k + 1].clone()
        return other


class Linears(nn.Module):
    """K linear maps as one batched product: (K, N, in) -> (K, N, out)."""

    def __init__(self, spaces: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(spaces, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(spaces, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """bias + inputs @ weight, space by space."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class PublishedLFDN(nn.Module):
    """The network of the paper, (N, D) -> (N, D): SiLU and a projection, `blocks` residual blocks, a norm and a
    projection out. The time embedding is as wide as the network; blocks start as the identity, the output as zero."""

    def __init__(self, features: int, width: int = 1440, blocks: int = 16) -> None:
        super().__init__()
        self.width = width
        self.inward = nn.Linear(features, width)
        self.time = nn.Sequential(nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features))
        self.blocks = nn.ModuleList([_PublishedBlock(width, features) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.outward = _zero(nn.Linear(width, features))

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """Predict z_0 from z_t (N, D) at steps t (N,) or (1,), counted from 0."""
        time = self.time(embed_time(step.float(), self.width))
        hidden: Tensor = self.inward(functional.silu(noisy))
        for block in self.blocks:
            hidden = block(hidden, time)
        out: Tensor = self.outward(functional.silu(self.norm(hidden)))
        return out


class _PublishedBlock(nn.Module):
    """h + W2 silu(norm(W1 silu(norm(h)) + W3 silu(time)))."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)
        self.second = _zero(nn.Linear(width, width))

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = self.first(functional.silu(self.norm_in(hidden))) + self.time(functional.silu(time))
        out: Tensor = hidden + self.second(functional.silu(self.norm_out(inner)))
        return out


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Descent:
    """AdamW on `network`; `average` is the same network with the exponential moving average of its weights.

    max_decay: of the average after many steps; the first steps average over fewer, as (1 + t) / (10 + t) is lower.
    """

    def __init__(self, network: nn.Module, rate: float, weight_decay: float, max_decay: float) -> None:
        self.network, self.average = network, copy.deepcopy(network)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay, fused=True)
        self.steps = 0
        self._max_decay = max_decay

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.steps += 1
        decay = min(self._max_decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay)


@dataclass(frozen=True)
class Trained:
    """Result of a training: steps taken, and the lowest held-out error per value in units of the features."""

    steps: int
    error: float


def train(network: LFDN, clean: Tensor, held: Tensor, seed: int, progress: Progress) -> Trained:
    """Train an `LFDN` in place on (K, N, D) clean features; keeps the averaged weights that did best on `held`.

    Loss: ||LFDN(z_t, a) - z_0||^2, a as in `training_level`, stratified over each batch. AdamW, one cycle, EMA.

    The K spaces share nothing but the draws, so each has a thread of its own. Each computes in one thread: the products
    are small, and on busy cores threads that wait for each other within a product cost ten times the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(clean), "train") as pool:
            return _train(pool, network, clean, held, torch.Generator().manual_seed(seed), progress)
    finally:
        torch.set_num_threads(threads)


def _train(
    pool: ThreadPoolExecutor,
    network: LFDN,
    clean: Tensor,
    held: Tensor,
    generator: torch.Generator,
    progress: Progress,
) -> Trained:
    batch = max(16, min(BATCH, clean.shape[1] // 4 // GROUP * GROUP))
    steps = int(min(MAX_STEPS, max(MIN_STEPS, 12 * clean.shape[1] / batch)))
    held = held[:, :512]
    check_levels = training_level((torch.arange(held.shape[1]) + 0.5) / held.shape[1])
    check = _noisy(held, check_levels, generator)  # fixed noise and levels, so that two checks compare
    spaces = [_Space(network, k, clean, steps) for k in range(len(clean))]
    best, best_step, best_weights, taken = float("inf"), 0, [space.weights() for space in spaces], 0
    while taken < steps:
        end = min(steps, (taken // CHECK_EVERY + 1) * CHECK_EVERY)
        running: list[Future[None]] = []
        while taken < end:
            draws = [_Draw.of(clean, batch, generator) for _ in range(min(DRAWN, end - taken))]
            _wait(running)
            running = [pool.submit(space.take, draws) for space in spaces]
            taken += len(draws)
        _wait(running)
        progress(taken / steps)
        errors = pool.map(
            lambda k: spaces[k].error(check[k : k + 1], check_levels, held[k : k + 1]), range(len(spaces))
        )
        error = sum(errors) / len(spaces)
        if error < best:
            best, best_step, best_weights = error, taken, [space.weights() for space in spaces]
        elif taken - best_step >= PATIENCE * CHECK_EVERY:
            break
    network.load_state_dict({name: torch.cat([each[name] for each in best_weights]) for name in network.state_dict()})
    network.eval().requires_grad_(False)
    progress(1.0)
    return Trained(taken, best)


class _Space:
    """The network of one space of an `LFDN`, and its training."""

    def __init__(self, whole: LFDN, k: int, clean: Tensor, steps: int) -> None:
        network = whole.of_space(k)
        self._k, self._clean, self._share = k, clean, len(clean)
        self._descent = Descent(network, rate=1e-3, weight_decay=1e-4, max_decay=0.99)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._descent.optimizer, PEAK_RATE, total_steps=steps)

    def take(self, draws: Sequence[_Draw]) -> None:
        """One step on each batch."""
        for draw in draws:
            rows = self._clean[self._k : self._k + 1, draw.rows]
            noisy = diffuse(
                rows, draw.levels.repeat_interleave(len(draw.rows) // len(draw.levels)), draw.noise[self._k]
            )
            # its part of the mean over all spaces
            self._descent.step((self._descent.network(noisy, draw.levels) - rows).square().mean() / self._share)
            self._schedule.step()

    @torch.no_grad()
    def error(self, noisy: Tensor, levels: Tensor, clean: Tensor) -> float:
        """Of the averaged weights, per value."""
        return float((self._descent.average(noisy, levels) - clean).square().mean())

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged weights."""
        return copy.deepcopy(self._descent.average.state_dict())


@dataclass(frozen=True)
class _Draw:
    """What chance decides of a step: rows (N,), levels (M,), noise (K, N, D)."""

    rows: Tensor
    levels: Tensor
    noise: Tensor

    @classmethod
    def of(cls, clean: Tensor, batch: int, generator: torch.Generator) -> _Draw:
        rows = torch.randint(clean.shape[1], (batch,), generator=generator)
        spread = torch.arange(batch // GROUP) / (batch // GROUP) + torch.rand(1, generator=generator)
        noise = torch.randn((len(clean), batch, clean.shape[2]), generator=generator)
        return cls(rows, training_level(spread % 1.0), noise)


def _wait(running: Iterable[Future[None]]) -> None:
    """Until all are done; raises what one of them raised."""
    for each in running:
        each.result()


def _noisy(clean: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """z_t of (K, N, D) clean features at (M,) levels, each for N / M rows in a row."""
    level = levels.repeat_interleave(clean.shape[1] // len(levels))
    return diffuse(clean, level, torch.randn(clean.shape, generator=generator))
