"""The heat maps of a profile: local features of a backbone, and the file of what was learned about them.

Local features are the maps of strides 4 to 16 on one grid, each value averaged with its neighbours: finer layers see
noise, coarser ones cannot say where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from detectors.engines.pipeline import Pipeline
from detectors.methods.locations import Locations
from detectors.profile.backbone import Backbone
from detectors.profile.files import replace_file
from detectors.profile.steady import steady_features

PLACES = "places.safetensors"
VERSION = "1"
STRIDES = (4, 16)
GRID_STRIDE, MAX_GRID = 8, 32
WIDEST = 320
"""Channels; wider layers are left out, unless there are no others."""
NARROWED = 48
"""Of a layer where all are wide, as in a ViT: four of them make the 192 channels of a usual network."""
BATCH = 32
MAX_IMAGES, MAX_BYTES = 600, 144 * 2**20
"""Of the sample to learn from."""
MAX_PIXEL_BYTES = 512 * 2**20
"""Of the pixels of that sample, while images are read: all 600 up to 546 px."""


class HeatMapError(ValueError):
    """A profile has no heat maps, or their file cannot be used; the message says which and what to do."""


class LocalSample:
    """Local features of images evenly spread over a run of any length, in bounded memory; `kept` holds them."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self._seen, self._every = 0, 1

    def skip_to(self, image: int) -> None:
        """Pass over images, up to the one with that number: they are in no sample of so many."""
        self._seen = image

    def show(self, pixels: Mapping[int, NDArray[np.uint8]], backbone: Backbone) -> None:
        """Let it see the maps of the images with these numbers, in order, as if it had seen all before them."""
        for start in range(0, len(pixels), 2 * BATCH):
            rows = sorted(pixels)[start : start + 2 * BATCH]

            def see(maps: Sequence[Tensor], input_px: tuple[int, int], rows: Sequence[int] = rows) -> None:
                for i, row in enumerate(rows):
                    self.skip_to(row)
                    self.see([each[i : i + 1] for each in maps], input_px)

            steady_features(backbone, np.stack([pixels[row] for row in rows]), see)

    def see(self, maps: Sequence[Tensor], input_px: tuple[int, int]) -> None:
        """Take from the maps of the next images what belongs into the sample."""
        rows = [i for i in range(len(maps[0])) if (self._seen + i) % self._every == 0]
        if rows:
            self.kept.extend(local_features([m[rows] for m in maps], input_px).half().cpu().unbind())
        self._seen += len(maps[0])
        while len(self.kept) > min(MAX_IMAGES, MAX_BYTES // (2 * self.kept[0].numel())):
            self.kept, self._every = self.kept[::2], 2 * self._every


class PixelSample:
    """The pixels of every so-many-th image of a run of any length; `kept` has them by number."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.kept: dict[int, NDArray[np.uint8]] = {}
        self._seen, self._every, self._most = 0, 1, _most(shape)

    def see(self, pixels: NDArray[np.uint8]) -> None:
        """Take from the next (N, H, W, 3) images what belongs into the sample."""
        for image in pixels:
            if self._seen % self._every == 0:
                self.kept[self._seen] = image.copy()
            self._seen += 1
            while len(self.kept) > self._most:
                self._every *= 2
                self.kept = {row: kept for row, kept in self.kept.items() if row % self._every == 0}


def sampled_rows(images: int, shape: tuple[int, int]) -> range:
    """Which of so many images of (height, width) a `PixelSample` keeps; a `LocalSample` keeps these or fewer."""
    every = 1
    while -(-images // every) > _most(shape):
        every *= 2
    return range(0, images, every)


def _most(shape: tuple[int, int]) -> int:
    return max(8, min(MAX_IMAGES, MAX_PIXEL_BYTES // (3 * shape[0] * shape[1])))


class Places:
    """Heat maps by a backbone and what was learned of its local features; reads its file on first use."""

    def __init__(self, backbone: Backbone, learned: Locations | Path | None = None) -> None:
        """`learned`: None where a profile has no heat maps."""
        self._backbone = backbone
        self._learned = learned
        self._there: Locations | None = None

    @classmethod
    def learn(cls, backbone: Backbone, sample: LocalSample, ordered: bool = False) -> Places:
        """From local features of ID images. ordered: they are in time order, and the last part sets the unit."""
        local = torch.stack(sample.kept)
        if not ordered:
            local = local[torch.randperm(len(local), generator=torch.Generator().manual_seed(0))]
        return cls(backbone, Locations((local.shape[-1],)).fit(local))

    def maps(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) -> (N, h, w) how unusual each place is.

        Raises:
            HeatMapError: there are no heat maps, or their file cannot be read.
        """
        learned, backbone = self._on_device(), self._backbone

        def unusual(some: Tensor) -> Tensor:
            return learned.unusual(local_features(backbone.forward(some), (some.shape[1], some.shape[2])))

        maps = Pipeline(backbone.device, unusual, sizes=())
        return torch.cat([maps(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]).numpy()

    def __bool__(self) -> bool:
        """Whether there are heat maps."""
        return self._learned.exists() if isinstance(self._learned, Path) else self._learned is not None

    def save(self, folder: Path) -> None:
        """Write them into the folder of a profile, if there are any."""
        if self:
            facts = {"version": VERSION, "backbone_digest": self._backbone.digest}
            replace_file(folder / PLACES, save(self._loaded().state(), metadata=facts))

    def _on_device(self) -> Locations:
        """What was learned, where the backbone is: maps come down, not what they are made of."""
        if self._there is None:
            learned, device = self._loaded(), self._backbone.device
            self._there = learned if device.type == "cpu" else learned.to(device)
        return self._there

    def _loaded(self) -> Locations:
        if self._learned is None or not self:
            raise HeatMapError("the profile has no heat maps; fit again, without --no-heat-maps")
        if isinstance(self._learned, Path):
            self._learned = _read(self._learned, self._backbone.digest)
        return self._learned


def _read(path: Path, digest: str) -> Locations:
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise HeatMapError(f"{path}: cannot be read: {error}") from error
    if facts.get("version") != VERSION:
        raise HeatMapError(f"{path}: version {facts.get('version')!r}; this program reads version {VERSION}")
    if facts.get("backbone_digest") != digest:
        raise HeatMapError(f"{path}: was made with another backbone than the profile's")
    return Locations((tensors["mean"].shape[-1],)).restore(tensors)


@torch.inference_mode()
def local_features(maps: Sequence[Tensor], input_px: tuple[int, int]) -> Tensor:
    """Maps (N, C, H, W) of images of `input_px` (height, width) -> (N, h, w, C) float32, on one grid."""
    chosen = [m.float() for m in maps if _is_local(m, input_px)] or [_narrowed(m.float()) for m in maps]
    finest = max(chosen, key=lambda m: m.shape[2]).shape[2:]
    height, width = (
        min(pair[0], math.ceil(pair[1] / GRID_STRIDE), MAX_GRID) for pair in zip(finest, input_px, strict=True)
    )
    grid = (height, width)
    local = torch.cat([_on_grid(m, grid) for m in chosen], dim=1)
    return functional.avg_pool2d(local, 3, stride=1, padding=1, count_include_pad=False).permute(0, 2, 3, 1)


def _is_local(layer: Tensor, input_px: tuple[int, int]) -> bool:
    return layer.shape[1] <= WIDEST and STRIDES[0] <= round(input_px[0] / layer.shape[2]) <= STRIDES[1]


def _on_grid(layer: Tensor, grid: tuple[int, int]) -> Tensor:
    if layer.shape[2] >= grid[0]:
        return functional.adaptive_avg_pool2d(layer, grid)
    return functional.interpolate(layer, size=grid, mode="bilinear", align_corners=False)


def _narrowed(layer: Tensor) -> Tensor:
    """(N, C, H, W) -> at most NARROWED random directions of the channels, always the same ones: distances survive."""
    channels = layer.shape[1]
    if channels <= NARROWED:
        return layer
    directions = np.random.RandomState(0).standard_normal((NARROWED, channels)) / NARROWED**0.5
    return torch.einsum("kc,nchw->nkhw", torch.from_numpy(directions).float().to(layer.device), layer)
