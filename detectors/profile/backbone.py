"""Pooled layer features of a frozen timm backbone: uint8 pixels -> (N, D).

The feature map of each chosen layer is averaged (`pooling.py`) and the layers are laid side by side. The stride-2 layer
is left out by default: its features encode brightness and stripes, and on nine OOD sets it cost the joined score one to
three AUROC points.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detectors.deferred import Deferred
from detectors.engines.engine import Engine
from detectors.engines.int8 import Int8Engine
from detectors.images.decode import Limits
from detectors.images.prepare import Filter, InputSize, Preparer, shape_of
from detectors.images.tones import Tones
from detectors.profile.embedded import EmbeddedNetwork
from detectors.profile.pooling import pool, widths
from detectors.profile.spec import EMBEDDED, BackboneError, BackboneSpec, size_text

lean = Deferred("detectors.profile.lean_timm")
Network = Any
"""A timm network built with `features_only`: an nn.Module with attributes that timm does not declare."""
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
        """
        self.device = choose_device(device)
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
        network, indices = _build(spec)
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
        self._scale = (1.0 / (255.0 * torch.tensor(std))).view(1, 3, 1, 1).to(self.device)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1).to(self.device)
        # Swin and its relatives give (N, H, W, C) maps, all others (N, C, H, W).
        self._channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")

    def _failure(self, shape: tuple[int, int]) -> Exception | None:
        """Why the network does not take images of this (height, width); None where it does."""
        try:
            channels = tuple(m.shape[1] for m in self.maps(np.zeros((1, *shape, 3), dtype=np.uint8)))
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
    def __call__(self, pixels: NDArray[np.uint8], see: See | None = None) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 pooled features on the backbone's device; `see` gets the maps."""
        if self.spec.precision == "int8" and self.quantised is None:
            raise BackboneError(f"backbone {self.spec.model!r} has no quantised network; load its profile")
        engine = self.quantised or (self.engine if see is None else None)
        if engine is None or see is not None:
            features = self.eager(pixels, see)
        return features if engine is None else engine.features(pixels)

    @torch.inference_mode()
    def eager(self, pixels: NDArray[np.uint8], see: See | None = None) -> Tensor:
        """What the call gives, by torch whatever the engine."""
        maps = self.maps(pixels)
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
        images = pixels.permute(0, 3, 1, 2)
        normalised = torch.addcmul(self._shift, images.float(), self._scale)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            given = self.network(normalised.contiguous(memory_format=torch.channels_last))
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
        """What the call gives, on the CPU; halves the batch when the device is out of memory."""
        try:
            return self(pixels, see).cpu()
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            half = len(pixels) // 2
            return torch.cat([self.features(pixels[:half], see), self.features(pixels[half:], see)])

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


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def _build(spec: BackboneSpec) -> tuple[Network, tuple[int, ...]]:
    """The network with its weights, and the indices of its layers."""
    indices = spec.layers or _default_layers(spec, _create(spec))
    try:
        network = _create(spec, out_indices=indices)
        found = len(network.feature_info.channels())
    except (BackboneError, IndexError, KeyError) as error:
        raise BackboneError(f"backbone {spec.model!r}: layers {list(indices)} are out of range: {error}") from error
    if found != len(indices):
        raise BackboneError(f"backbone {spec.model!r}: layers {list(indices)} are out of range")
    if spec.weights not in {"hub", "random"}:
        _load(network, EMBEDDED if spec.weights == "embedded" else Path(spec.weights))
    return network, tuple(indices)


def _create(spec: BackboneSpec, **more: Any) -> Network:
    args = {**spec.args, **more, "features_only": True, "pretrained": spec.weights == "hub"}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # `random` weights must be the same when the profile is loaded
            if (spec.model, spec.weights, args) == ("mobilenetv3_small_100", "embedded", EmbeddedNetwork.args):
                return EmbeddedNetwork()
            return lean.timm.create_model(spec.model, **args)
    except Exception as error:  # timm raises whatever the model's constructor does
        known = "" if lean.timm.is_model(spec.model) else "; see timm.list_models() for the names"
        raise BackboneError(
            f"backbone {spec.model!r}: timm cannot build it with features_only=True: {error}{known}"
        ) from error


def _default_layers(spec: BackboneSpec, network: Network) -> tuple[int, ...]:
    reductions = [int(r) for r in network.feature_info.reduction()]
    if spec.strides:
        if not set(spec.strides) <= set(reductions) or len(set(reductions)) < len(reductions):
            raise BackboneError(
                f"backbone {spec.model!r}: cannot choose layers by strides {list(spec.strides)}, its layers have "
                f"strides {reductions}; give indices from 0 to {len(reductions) - 1}"
            )
        return tuple(reductions.index(stride) for stride in sorted(spec.strides))
    if len(set(reductions)) > 1:
        return tuple(i for i, reduction in enumerate(reductions) if reduction > 2)
    # timm shows only the last blocks by default; the whole model lies under `.model`.
    depth = len(getattr(network.model, "blocks", reductions)) if hasattr(network, "model") else len(reductions)
    return tuple(sorted({max(0, round(depth * (i + 1) / 4) - 1) for i in range(4)}))


def _load(network: Network, path: Path) -> None:
    try:
        state: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)  # refuses arbitrary pickles
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise BackboneError(f"weights {path}: cannot be read: {error}") from error
    own: dict[str, Tensor] = network.state_dict()
    # FeatureGetterNet (ViTs) keeps the whole model under `model.`.
    prefix = "model." if own and all(name.startswith("model.") for name in own) else ""
    # A features_only network flattens `stages.0` into `stages_0`; both spellings occur in files.
    given = {_flat(prefix + name.removeprefix(prefix)): t for name, t in state.get("state_dict", state).items()}
    fitting = {name: given[_flat(name)] for name in own if _flat(name) in given}
    missing = [n for n in own if n not in fitting and "num_batches_tracked" not in n]
    wrong = [n for n, t in fitting.items() if t.shape != own[n].shape]
    if missing or wrong:
        names = ", ".join((missing + wrong)[:3])
        raise BackboneError(
            f"weights {path}: {len(missing)} tensors missing, {len(wrong)} of wrong shape ({names}, ...)"
        )
    network.load_state_dict({**own, **{n: t.to(own[n].dtype) for n, t in fitting.items()}})


def _flat(name: str) -> str:
    return name.replace(".", "_")


def tensor_digest(tensors: Mapping[str, Tensor], n_bytes: int, beginning: str = "") -> str:
    """BLAKE2b of `beginning`, then of the names and contents of `tensors` in the order of their names, in hex."""
    digest = hashlib.blake2b(beginning.encode(), digest_size=n_bytes)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
