"""Training of denoising networks: AdamW with averaged weights; `train` ends by the error on held-out features."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detectors.methods.detector import Progress
from detectors.methods.diffusion import LFDN, diffuse, training_level

BATCH = 256
GROUP = 8
"""Rows of a batch that share a level: the time embedding then costs an eighth, and the levels still cover the range."""
MIN_STEPS, MAX_STEPS = 200, 600
"""More than 600 steps make the network a better denoiser and a worse detector (1,250 steps: -.007 AUROC)."""
CHECK_EVERY = 50
PEAK_RATE = 2e-3
PATIENCE = 2
"""Checks without improvement before training ends."""


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
    """Train `network` in place on (K, N, D) clean features; keeps the averaged weights that did best on `held`.

    Loss: ||LFDN(z_t, a) - z_0||^2, a as in `training_level`, stratified over each batch. AdamW, one cycle, EMA.
    """
    # One thread: the products are small, and on busy cores threads that wait for each other cost ten times the work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(network, clean, held, torch.Generator().manual_seed(seed), progress)
    finally:
        torch.set_num_threads(threads)


def _train(network: LFDN, clean: Tensor, held: Tensor, generator: torch.Generator, progress: Progress) -> Trained:
    batch = max(16, min(BATCH, clean.shape[1] // 4 // GROUP * GROUP))
    steps = int(min(MAX_STEPS, max(MIN_STEPS, 12 * clean.shape[1] / batch)))
    descent = Descent(network, rate=1e-3, weight_decay=1e-4, max_decay=0.99)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent.optimizer, PEAK_RATE, total_steps=steps)
    held = held[:, :512]
    check_levels = training_level((torch.arange(held.shape[1]) + 0.5) / held.shape[1])
    check = _noisy(held, check_levels, generator)  # fixed noise and levels, so that two checks compare
    best, best_step, best_weights = float("inf"), 0, descent.average.state_dict()
    while descent.steps < steps:
        rows = clean[:, torch.randint(clean.shape[1], (batch,), generator=generator)]
        spread = torch.arange(batch // GROUP) / (batch // GROUP) + torch.rand(1, generator=generator)
        levels = training_level(spread % 1.0)
        descent.step((network(_noisy(rows, levels, generator), levels) - rows).square().mean())
        schedule.step()
        if descent.steps % CHECK_EVERY and descent.steps < steps:
            continue
        progress(descent.steps / steps)
        with torch.no_grad():
            error = float((descent.average(check, check_levels) - held).square().mean())
        if error < best:
            best, best_step, best_weights = error, descent.steps, copy.deepcopy(descent.average.state_dict())
        elif descent.steps - best_step >= PATIENCE * CHECK_EVERY:
            break
    network.load_state_dict(best_weights)
    network.eval().requires_grad_(False)
    progress(1.0)
    return Trained(descent.steps, best)


def _noisy(clean: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """z_t of (K, N, D) clean features at (M,) levels, each for N / M rows in a row."""
    level = levels.repeat_interleave(clean.shape[1] // len(levels))
    return diffuse(clean, level, torch.randn(clean.shape, generator=generator))
