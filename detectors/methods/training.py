"""Training of the LFDN of `dlsr`: denoising at all levels, seeded, ended by the error on held-out features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    check = _Check(held, generator)
    average = [parameter.detach().clone() for parameter in parameters]
    best, best_step, best_weights, taken = float("inf"), 0, average, 0
    for step in range(1, steps + 1):
        taken = step
        rows = torch.randint(clean.shape[1], (batch,), generator=generator)
        loss = _loss(network, clean[:, rows], generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1.0 - min(0.99, (1 + step) / (10 + step)))
        if step % CHECK_EVERY and step < steps:
            continue
        progress(step / steps)
        error = check(network, parameters, average)
        if error < best:
            best, best_step, best_weights = error, step, [tensor.clone() for tensor in average]
        elif step - best_step >= PATIENCE * CHECK_EVERY:
            break
    _assign(parameters, best_weights)
    network.eval().requires_grad_(False)
    progress(1.0)
    return Trained(taken, best)


def _loss(network: LFDN, clean: Tensor, generator: torch.Generator) -> Tensor:
    batch = clean.shape[1]
    groups = batch // GROUP
    spread = (torch.arange(groups) / groups + torch.rand(1, generator=generator)) % 1.0
    level = training_level(spread)
    noisy = diffuse(clean, level.repeat_interleave(GROUP), torch.randn(clean.shape, generator=generator))
    loss: Tensor = (network(noisy, level) - clean).square().mean()
    return loss


class _Check:
    """Held-out error of the averaged weights, at fixed noise and levels so that two checks compare."""

    def __init__(self, held: Tensor, generator: torch.Generator) -> None:
        rows = min(512, held.shape[1])
        self._clean = held[:, :rows]
        self._level = training_level((torch.arange(rows) + 0.5) / rows)
        self._noisy = diffuse(self._clean, self._level, torch.randn(self._clean.shape, generator=generator))

    @torch.no_grad()
    def __call__(self, network: LFDN, parameters: list[torch.nn.Parameter], average: list[Tensor]) -> float:
        current = [parameter.detach().clone() for parameter in parameters]
        _assign(parameters, average)
        error = float((network(self._noisy, self._level) - self._clean).square().mean())
        _assign(parameters, current)
        return error


@torch.no_grad()
def _assign(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
