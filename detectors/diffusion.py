"""The noise levels and the network that predicts a clean feature from a scaled or noisy one.

    z_t = sqrt(a) z_0 + sqrt(1 - a) eps,  eps ~ N(0, I)

LFDN (latent feature diffusion network; Yang et al., NeurIPS 2024, arXiv 2411.10701): input projection, time embedding,
residual blocks of norm - SiLU - linear with the time embedding added, output projection; it predicts z_0. Here it
stands for K feature spaces at once: K independent networks whose matrix products run as one batched product.
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
    """(T,) cumulative a_t of the paper: betas linear in their square roots from `first` to `last`."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def embed_level(level: Tensor, width: int) -> Tensor:
    """(N,) levels a in (0, 1) -> (N, width) sines and cosines of 1000 (1 - a), as for the steps of a transformer."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=level.device) * (-math.log(10_000.0) / half))
    angles = 1000.0 * (1.0 - level)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class LFDN(nn.Module):
    """K one-step reconstruction networks side by side, (K, N, D) -> (K, N, D)."""

    def __init__(self, spaces: int, features: int, width: int = 512, blocks: int = 1) -> None:
        super().__init__()
        self.time = nn.ModuleList([Linears(spaces, 128, width), Linears(spaces, width, width)])
        self.inward = Linears(spaces, features, width)
        self.blocks = nn.ModuleList([Linears(spaces, width, width) for _ in range(blocks)])
        self.outward = Linears(spaces, width, features)

    def forward(self, scaled: Tensor, level: Tensor) -> Tensor:
        """Predict z_0 from z_t (K, N, D) at its levels a: (N,), or (1,) for one level shared by all."""
        embedded = embed_level(level, 128).expand(scaled.shape[0], -1, -1)
        time = self.time[1](functional.silu(self.time[0](embedded)))
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
