"""Pooled layer features of a frozen timm backbone: uint8 pixels -> (N, D).

The feature map of each chosen layer is averaged (`pooling.py`) and the layers are laid side by side. The stride-2 layer
is left out by default: its features encode brightness and stripes, and on nine OOD sets it cost the joined score one to
three AUROC points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.engines.device import arithmetic, check_precision, choose_device
from detectors.engines.engine import Engine
from detectors.engines.int8 import Int8Engine
from detectors.engines.pipeline import Pipeline
from detectors.images.decode import Limits
from detectors.images.prepare import Filter, InputSize, Preparer, shape_of
from detectors.images.tones import Tones
from detectors.profile.embedded import EmbeddedNetwork
from detectors.profile.network import Network, build, lean, tensor_digest
from detectors.profile.pooling import pool, widths
from detectors.profile.spec import BackboneError, BackboneSpec, size_text

See = Callable[[Sequence[Tensor], tuple[int, int]], None]
"""Gets the maps of a batch, or of the part of it that fits into memory, and (height, width) of the images."""


class Backbone:
    """A frozen network on a device, and how its maps are pooled.

    spec: complete (nothing left to defaults). channels: of each layer. grids: cells a side; one, except while a fit
    chooses. layers: values of each layer, on each grid in turn. engine, quantised: give the features instead of torch.
    """

    def __init__(self, spec: BackboneSpec, device: str = "auto") -> None:
        """Build the network and load its weights.

        A network of a fixed input size is built for the size that is asked for, where timm can do that.

        Raises:
            BackboneError: the network cannot be built as asked, or does not take that input size.
            DeviceError: the device is not there, or does not compute in the precision of the specification.
        """
        self.device = choose_device(device)
        check_precision(self.device, spec.precision)
        self.engine: Engine | None = None
        self.quantised: Int8Engine | None = None
        self._set_up(spec)
        if (failure := self._failure(self.shape)) is None:
            return
        if self.shape == self._own or self._failure(self._own) is not None:
            raise BackboneError(f"backbone {spec.model!r} cannot be used: {failure}") from failure
        refusal = self._refusal(failure)
        if not self._is_adapted(spec):
            raise refusal from failure

    def _set_up(self, spec: BackboneSpec) -> None:
        """Build what the specification says, whatever the input size."""
        network, indices = build(spec)
        config = network.config if isinstance(network, EmbeddedNetwork) else lean.resolve_model_data_config(network)
        self._own = shape_of(_size(spec.args.get("img_size", config["input_size"][-2:])))
        self.input_px = _size(self._own if spec.input_px is None else spec.input_px)
        self.shape = shape_of(self.input_px)
        known = config["interpolation"] in get_args(Filter)
        self.filter: Filter = spec.filter or cast(Filter, config["interpolation"] if known else "bicubic")
        mean, std = spec.mean or tuple(config["mean"]), spec.std or tuple(config["std"])
        self.spec = replace(
            spec, layers=indices, strides=(), mean=mean, std=std, input_px=self.input_px, filter=self.filter
        )
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        self.grids: tuple[int, ...] = (spec.grid,)
        self.layers: tuple[int, ...] = widths(self.channels, spec.grid)
        weights = {n: t for n, t in network.state_dict().items() if "num_batches_tracked" not in n}
        self.digest = tensor_digest(weights, n_bytes=16)
        # Channels-last throughout: 2.7 times as fast as NCHW for depthwise convolutions on a CPU.
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self._scale = (1.0 / (255.0 * torch.tensor(std))).to(self.device)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).to(self.device)
        # Swin and its relatives give (N, H, W, C) maps, all others (N, C, H, W).
        self._channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")

    def _failure(self, shape: tuple[int, int]) -> Exception | None:
        """Why the network does not take images of this (height, width); None where it does."""
        try:
            pixels = torch.zeros((1, *shape, 3), dtype=torch.uint8, device=self.device)
            with torch.inference_mode():
                channels = tuple(m.shape[1] for m in self.forward(pixels))
        except Exception as error:  # a network raises whatever its layers do
            return error
        if channels != self.channels:
            return ValueError(f"it gives layers of {channels} channels where timm promises {self.channels}")
        return None

    def _is_adapted(self, spec: BackboneSpec) -> bool:
        """Try to build the network for an input size that is not its own."""
        patch = _patch(self.network)
        if any(side % step for side, step in zip(self.shape, patch, strict=True)):
            return False  # timm would cut off what is left beside the last whole patch
        # First the one that keeps the weights as they are, and with them the digest: ViTs resample their positions in
        # each pass. Others are built for one size; a list, as it comes back from a saved profile.
        size = self.input_px if isinstance(self.input_px, int) else [*self.input_px]
        for more in ({"dynamic_img_size": True}, {"img_size": size}):
            if more.keys() & spec.args.keys():
                continue
            try:
                self._set_up(replace(spec, args={**spec.args, **more}))
            except BackboneError:  # a network without such an argument, or weights for another window
                continue
            if self._failure(self.shape) is None:
                return True
        return False

    def _refusal(self, failure: Exception) -> BackboneError:
        """Says which sizes the network takes."""
        step = max(int(r) for r in self.network.feature_info.reduction())
        near = tuple(max(step, round(side / step) * step) for side in self.shape)
        others = "" if near == self.shape else f", or multiples of {step} px such as {size_text(_size(near))}"
        fixed = " or leave out its argument img_size" if "img_size" in self.spec.args else ""
        return BackboneError(
            f"backbone {self.spec.model!r} does not take images of {size_text(self.input_px)} px: {failure}; "
            f"give the image size {size_text(_size(self._own))}{others}{fixed}"
        )

    def preparer(self, limits: Limits, tones: Tones) -> Preparer:
        """What turns images into the pixels that this backbone takes."""
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.spec.mean or ())
        fill, spec = (red, green, blue), self.spec
        return Preparer(self.input_px, limits, self.filter, tones, spec.resize, fill, spec.decoding)

    @torch.inference_mode()
    def run(self, pixels: Tensor, see: See | None = None) -> Tensor:
        """(N, H, W, 3) uint8 on the device -> (N, D) float32 pooled features there; `see` gets the maps."""
        if self.spec.precision == "int8" and self.quantised is None:
            raise BackboneError(f"backbone {self.spec.model!r} has no quantised network; load its profile")
        engine = self.quantised or (self.engine if see is None else None)
        if engine is None or see is not None:
            features = self.eager(pixels, see)
        return features if engine is None else engine.features(pixels)

    @torch.inference_mode()
    def eager(self, pixels: Tensor, see: See | None = None) -> Tensor:
        """What `run` gives, by torch whatever the engine."""
        maps = self.forward(pixels)
        if see is not None:
            see(maps, (pixels.shape[1], pixels.shape[2]))
        return self.pooled(maps)

    def pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """One (N, C, H, W) map per layer -> (N, D), averaged over the cells of each grid."""
        return torch.cat([pool(maps, grid) for grid in self.grids], dim=1)

    def on_grids(self, *grids: int) -> Backbone:
        """The same network, pooled on other grids; with several, their features lie side by side."""
        if grids == self.grids:
            return self
        other = copy.copy(self)
        other.spec = replace(self.spec, grid=grids[0])
        other.grids, other.engine, other.quantised = grids, None, None
        other.layers = tuple(width for grid in grids for width in widths(self.channels, grid))
        return other

    def columns(self, grid: int) -> slice:
        """Where the features of one of `grids` lie."""
        before = self.grids[: self.grids.index(grid)]
        start = sum(sum(widths(self.channels, other)) for other in before)
        return slice(start, start + sum(widths(self.channels, grid)))

    @torch.inference_mode()
    def maps(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        """(N, H, W, 3) uint8 -> one (N, C, H, W) map per layer, on the backbone's device, whatever the network gives.

        Class and register tokens are dropped. Values are float32, or bfloat16 where the precision is.
        """
        return self.forward(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """`maps` of pixels on the device."""
        # permuted after, not before: no engine then moves the pixels to another layout and back
        images = torch.addcmul(self._shift, pixels.float(), self._scale).permute(0, 3, 1, 2)
        with arithmetic(self.device, self.spec.precision):
            given = self.network(images)
        # what a network gives beyond its layers is left to _failure, which compares the channels
        reductions = zip(given, self.network.feature_info.reduction(), strict=False)
        return [self._as_map(m, (images.shape[2] // int(r), images.shape[3] // int(r))) for m, r in reductions]

    def _as_map(self, given: Tensor, grid: tuple[int, int]) -> Tensor:
        """(N, C, H, W) of a map in the format of the network, or of tokens (N, L, C) that begin with their prefix."""
        if given.ndim == 4:
            return given.permute(0, 3, 1, 2) if self._channels_last else given
        patches = grid[0] * grid[1]
        if given.ndim != 3 or given.shape[1] < patches:
            raise ValueError(f"a layer gives {tuple(given.shape)}, which is no map and no tokens of {grid} patches")
        return given[:, -patches:].transpose(1, 2).reshape(len(given), -1, *grid)

    def features(self, pixels: NDArray[np.uint8], see: See | None = None) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 pooled features on the CPU, for a fit; `see` gets the maps.

        The batch is halved where the device is out of memory.
        """
        return Pipeline(self.device, partial(self.run, see=see), sizes=())(pixels)

    def device_memory(self) -> dict[str, int]:
        """Bytes `used` (held by this process) and `total` of its CUDA device; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        # reserved, not allocated: what torch keeps cached is as lost to others as what it uses
        return {"used": torch.cuda.memory_reserved(self.device), "total": torch.cuda.mem_get_info(self.device)[1]}


def _size(sides: int | Sequence[int]) -> InputSize:
    """The shortest way to say it: a number where both sides are equal."""
    height, width = (sides, sides) if isinstance(sides, int) else (int(side) for side in sides)
    return height if height == width else (height, width)


def _patch(network: Network) -> tuple[int, int]:
    """(height, width) of the patches that a network cuts images into; (1, 1) where it does not."""
    embedding = getattr(getattr(network, "model", network), "patch_embed", None)
    return shape_of(_size(getattr(embedding, "patch_size", 1)))
