"""OpenVINO in the place of torch, on the CPU.

It computes in float32, never in the bfloat16 that it prefers on some processors: its features differ from torch's by
some 1e-6 of the largest.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.engines.engine import EngineError
from detectors.engines.graph import Graph, example, first_line, name_of
from detectors.profile.files import cache_folder

if TYPE_CHECKING:
    from detectors.profile.backbone import Backbone


TILE_BYTES = 8 << 20
"""Of the largest layer, for all images of a tile: with more it leaves the caches, with less to begin a layer costs more
than its work. Tried with five networks: float32 loses 2 to 14 % with 4 MB, and up to 12 % with 32 MB."""
MOST_IMAGES = 16
"""In a tile: a single image costs as much as a tile, and 32 would leave batches of 32 to one core."""


class OpenVinoEngine:
    """From pixels to pooled features in one graph of OpenVINO; the graph is kept, as making it takes seconds."""

    name = "openvino"

    def __init__(self, backbone: Backbone) -> None:
        """Compile the backbone, or take the graph that was kept.

        Raises:
            EngineError: OpenVINO is not installed, or cannot run this network.
        """
        if backbone.device.type != "cpu":
            raise EngineError(f"openvino is used on the CPU only, and the backbone is on {backbone.device}")
        if backbone.spec.precision != "float32":
            raise EngineError(f"openvino is used in float32 only, and the profile says {backbone.spec.precision}")
        openvino()
        folder = cache_folder()
        self._kept = folder and folder / f"{name_of(backbone)}.xml"
        try:
            self._network = self._compiled(backbone)
        except RuntimeError as error:  # all that OpenVINO raises
            raise EngineError(f"openvino cannot run {backbone.spec.model!r}: {first_line(error)}") from error

    def features(self, pixels: Tensor) -> Tensor:
        """See `Engine.features`."""
        return self._network(pixels)

    def forget(self) -> None:
        """Remove the graph that is kept."""
        with suppress(OSError):
            if self._kept is not None:
                self._kept.unlink()

    def _compiled(self, backbone: Backbone) -> Compiled:
        kept = self._kept
        with suppress(OSError, RuntimeError):  # a folder that this user may not read, or a damaged file: made again
            if kept is not None and kept.exists():
                return Compiled(openvino().Core().read_model(kept))
        model = converted(backbone)
        if kept is not None:
            with suppress(OSError, RuntimeError):  # no room, or no right to write there: made again next time
                _keep(model, kept)
        return Compiled(model)


class Compiled:
    """A graph of OpenVINO that is ready to run, for one thread at a time.

    A batch is cut into tiles of a fixed size, and each core takes tiles of its own: what one layer gives to the next
    then stays in the core's cache, and no core waits for another at the end of a layer. The last tile is filled up
    with black images, so that an image's features do not depend on how many come with it.
    """

    def __init__(self, model: Any, value_bytes: int = 4) -> None:
        """`value_bytes`: of what one layer gives to the next, once the model is compiled."""
        package = openvino()
        _, *self._shape = (side.get_length() if side.is_static else 1 for side in model.input().partial_shape)
        model.reshape([1, *self._shape])
        self._tile = tile_of(_largest_map(model) * value_bytes)
        model.reshape([self._tile, *self._shape])
        # as many as torch has: whoever limits those means the process
        threads = torch.get_num_threads()
        settings: Mapping[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        compiled = package.Core().compile_model(model, "CPU", settings)
        self._columns = compiled.output(0).shape[1]
        self._queue = package.AsyncInferQueue(compiled, threads)
        self._queue.set_callback(_copy_output)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32."""
        images, features = pixels.contiguous().numpy(), np.empty((len(pixels), self._columns), np.float32)
        for start in range(0, len(images), self._tile):
            tile = images[start : start + self._tile]
            if len(tile) < self._tile:
                black = np.zeros((self._tile - len(tile), *self._shape), np.uint8)
                tile = np.concatenate([tile, black])
            self._queue.start_async({0: tile}, features[start : start + self._tile])
        self._queue.wait_all()
        return torch.from_numpy(features)


def tile_of(largest_map_bytes: int) -> int:
    """Images in a tile, a power of two, for a network whose largest layer gives so many bytes an image."""
    fitting = min(MOST_IMAGES, max(1.0, TILE_BYTES / largest_map_bytes))
    return 1 << round(math.log2(fitting))


def _largest_map(model: Any) -> int:
    """Values of the largest layer of a model whose shapes are all fixed."""
    layers = (layer for layer in model.get_ordered_ops() if layer.get_type_name() != "Constant")
    return max(int(np.prod(output.shape)) for layer in layers for output in layer.outputs())


def _copy_output(request: Any, features: NDArray[np.float32]) -> None:
    """Called by OpenVINO when a tile is done, with the rows of the result that are its own."""
    features[:] = request.get_output_tensor(0).data[: len(features)]


def openvino() -> Any:
    """The package, without the part that tells its maker over the network about every import and conversion.

    Raises:
        EngineError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))  # then the package takes its own stub
    try:
        import openvino as package  # noqa: PLC0415 - optional, and slow to load
    except ImportError as error:
        raise EngineError("openvino is not installed: pip install 'layerwatch[openvino]'") from error
    return package


def converted(backbone: Backbone) -> Any:
    """The graph of a backbone as an `openvino.Model` that takes batches of any size.

    Raises:
        EngineError: the network has layers that the converter does not know.
    """
    package, (height, width) = openvino(), backbone.shape
    try:
        # torch's tracer warns of every Python number in a shape: all but that of the batch are fixed
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without the check, which traces once more: `use_engine` compares the scores themselves
            traced = torch.jit.trace(Graph(backbone), example(backbone), check_trace=False)  # type: ignore[no-untyped-call]
            pixels = (package.PartialShape([-1, height, width, 3]), package.Type.u8)
            return package.convert_model(traced, input=[pixels])
    except Exception as error:  # whatever a network's layers do that the converter does not know
        raise EngineError(f"openvino cannot convert {backbone.spec.model!r}: {first_line(error)}") from error


def _keep(model: Any, path: Path) -> None:
    """Whole or not at all: another process may be at the same, and reads what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        openvino().save_model(model, made, compress_to_fp16=False)
        os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(made, path)
