"""The noise levels, and the networks that predict a clean feature from a scaled or noisy one.

    z_t = sqrt(a) z_0 + sqrt(1 - a) eps,  eps ~ N(0, I)

LFDN (latent feature diffusion network; Yang et al., NeurIPS 2024, arXiv 2411.10701): input projection, time embedding,
residual blocks of norm - SiLU - linear with the time embedding added, output projection; it predicts z_0. `LFDN` is
ours: small, and standing for K feature spaces at once as batched products. `PublishedLFDN` has the paper's size and
the layout of its authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
