"""What engines have in common: the computation that they compile, and where the result is kept."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from detectors.profile.backbone import Backbone

GRAPH_VERSION = 2
"""Of what is compiled: raised when the computation changes, so that kept graphs are made again."""


class Graph(torch.nn.Module):
    """From (N, H, W, 3) uint8 pixels to (N, D) float32 pooled features: all that can be compiled as one."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self._backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise, run the network, average over the cells of the grids."""
        return self._backbone.pooled(self._backbone.forward(pixels))


def example(backbone: Backbone) -> Tensor:
    """Two black images: one would let a tracer take the batch for a constant."""
    return torch.zeros((2, *backbone.shape, 3), dtype=torch.uint8)


def name_of(backbone: Backbone) -> str:
    """Names what is compiled for a backbone: another one for other weights, another size, grid or version."""
    facts = {
        "version": GRAPH_VERSION,
        "digest": backbone.digest,
        "spec": backbone.spec.to_json(),
        "grids": backbone.grids,
        "versions": {name: _version(name) for name in ("openvino", "torch", "timm")},
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def first_line(error: Exception) -> str:
    """Of a message that goes on with the internals of a compiler."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
