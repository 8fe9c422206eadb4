"""Engines: what runs the network of a backbone when images are scored.

torch is made to train networks. A compiler that knows that nothing is learned any more fuses normalisation, activations
and pooling into the convolutions: with it a profile scores 1.5 to 1.9 times as many images a second on the same
processor (`benchmarks/engines.py`: embedded backbone at 96 px 1.84, mobilenetv2_100 at 224 px 1.52).
OpenVINO computes in float32 here, never in the bfloat16 that it prefers on some processors: its features differ from
torch's by some 1e-6 of the largest, so a profile that was fitted with torch serves with it. Whether that holds on the
machine at hand is tested before an engine is used: see `use_engine`.

A graph is kept in the user's cache folder once it is made, which takes longer than all else at a start.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from detectors.profile.spec import EngineName

if TYPE_CHECKING:
    from detectors.profile.backbone import Backbone
    from detectors.profile.profile import Profile

MOST_DIFFERENT = 1e-4
"""Of the range of a signal's calibration scores: about as much as separates two neighbours of 10,000."""
SAME_P_VALUES = 0.999
"""Of the test images, or all but one: a score next to a calibration score may change places with it."""
GRAPH_VERSION = 1
"""Of what is compiled: raised when the computation changes, so that kept graphs are made again."""


class EngineError(ValueError):
    """An engine cannot be used here; the message says why."""


class Engine(Protocol):
    """Runs the network of one backbone."""

    name: str

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32 on the CPU; an image's features do not depend on the others."""


def use_engine(profile: Profile, name: EngineName) -> str:
    """Let an engine run the backbone of a profile; returns in words which one does, and why.

    It is used only where it scores test images as torch does: no signal differs by more than MOST_DIFFERENT, and
    SAME_P_VALUES of the p-values are the same. `auto` is OpenVINO where it is installed and passes, else torch.

    Raises:
        EngineError: the engine that was asked for is not installed, cannot run this network, or scores otherwise.
    """
    if name == "torch":
        profile.backbone.engine = None
        return "torch"
    try:
        engine = OpenVinoEngine(profile.backbone)
        try:
            difference = _test(profile, engine)
        except EngineError:
            engine.forget()  # the kept graph may be at fault: the next start makes it again
            raise
    except EngineError as error:
        profile.backbone.engine = None
        if name != "auto":
            raise
        return f"torch ({error})"
    profile.backbone.engine = engine
    return f"openvino (signals differ from torch's by {difference:.0e} of their range at most)"


class OpenVinoEngine:
    """From pixels to pooled features in one graph of OpenVINO, on the CPU."""

    name = "openvino"

    def __init__(self, backbone: Backbone) -> None:
        """Compile the backbone, or take the graph that was kept.

        Raises:
            EngineError: OpenVINO is not installed, or cannot run this network.
        """
        if backbone.device.type != "cpu":
            raise EngineError(f"openvino is used on the CPU only, and the backbone is on {backbone.device}")
        if backbone.spec.precision != "float32":
            raise EngineError("openvino is used in float32 only, and the profile says bfloat16")
        self._ov, self._kept = _openvino(), _kept(backbone)
        try:
            self._request = self._compiled(backbone)
        except RuntimeError as error:  # all that OpenVINO raises
            raise EngineError(f"openvino cannot run {backbone.spec.model!r}: {_first_line(error)}") from error

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """See `Engine.features`."""
        outputs = self._request.infer({0: np.ascontiguousarray(pixels)})  # a copy: the next call may come at once
        return torch.from_numpy(outputs[0])

    def forget(self) -> None:
        """Remove the graph that is kept."""
        with suppress(OSError):
            if self._kept is not None:
                self._kept.unlink()

    def _compiled(self, backbone: Backbone) -> Any:
        core, kept = self._ov.Core(), self._kept
        settings: Mapping[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            # as many as torch has: whoever limits those means the process
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with suppress(OSError, RuntimeError):  # a folder that this user may not read, or a damaged file: made again
            if kept is not None and kept.exists():
                return core.compile_model(core.read_model(kept), "CPU", settings).create_infer_request()
        model = self._converted(backbone)
        if kept is not None:
            with suppress(OSError, RuntimeError):  # no room, or no right to write there: made again next time
                self._keep(model, kept)
        return core.compile_model(model, "CPU", settings).create_infer_request()

    def _converted(self, backbone: Backbone) -> Any:
        height, width = backbone.shape
        example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
        shape = self._ov.PartialShape([-1, height, width, 3])
        try:
            # torch's tracer warns of every Python number in a shape: all but that of the batch are fixed
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._ov.convert_model(_Graph(backbone), example_input=example, input=[shape])
        except Exception as error:  # whatever a network's layers do that the converter does not know
            raise EngineError(f"openvino cannot convert {backbone.spec.model!r}: {_first_line(error)}") from error

    def _keep(self, model: Any, path: Path) -> None:
        """Whole or not at all: another process may be at the same, and reads what is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            self._ov.save_model(model, made, compress_to_fp16=False)
            os.replace(made.with_suffix(".bin"), path.with_suffix(".bin"))
            os.replace(made, path)


class _Graph(torch.nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self._backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        return self._backbone.pooled(self._backbone.forward(pixels))


def _openvino() -> Any:
    """The package, without the part that tells its maker over the network about every import and conversion."""
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))  # then the package takes its own stub
    try:
        import openvino  # noqa: PLC0415 - optional, and slow to load
    except ImportError as error:
        raise EngineError("openvino is not installed: pip install 'layerwatch[openvino]'") from error
    return openvino


def _kept(backbone: Backbone) -> Path | None:
    """Where the graph is kept; None for a user without a home."""
    facts = {
        "version": GRAPH_VERSION,
        "digest": backbone.digest,
        "spec": backbone.spec.to_json(),
        "versions": {name: _version(name) for name in ("openvino", "torch", "timm")},
    }
    name = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "layerwatch" / f"{name}.xml"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _test(profile: Profile, engine: Engine) -> float:
    """The largest difference of a signal, in units of its range; EngineError where it is too large."""
    images = _examples(profile) or [profile.prepare(image) for image in _test_images()]
    pixels, measured = np.stack([image.pixels for image in images]), profile.measured(images)
    keys = [image.key for image in images]
    mine, other = (
        profile.values(features, measured) for features in (profile.backbone.eager(pixels), engine.features(pixels))
    )
    ranges = [float(c.values[-1] - c.values[0]) or 1.0 for c in profile.calibrations]
    difference = float((np.abs(mine - other) / np.maximum(np.abs(mine), ranges)).max())
    changed = int((profile.p_values(mine, keys) != profile.p_values(other, keys)).sum())
    if not (difference <= MOST_DIFFERENT and changed <= max(1.0, (1 - SAME_P_VALUES) * mine.size)):
        raise EngineError(
            f"{engine.name} scores otherwise than torch: signals differ by {difference:.1e} of their range, "
            f"{changed} of {mine.size} p-values"
        )
    return difference


def _examples(profile: Profile) -> list[Prepared]:
    """The profile's examples; those are left out that somebody has damaged, or that its limits do not allow."""
    found = []
    for picture in profile.examples.values():
        with suppress(ImageError):
            found.append(profile.prepare(picture))
    return found


def _test_images() -> list[NDArray[np.uint8]]:
    """For profiles without examples: smooth random surfaces of all tones, as images are smooth."""
    rng, y, x = np.random.default_rng(0), *np.mgrid[0:64, 0:64][:, :, :, None] / 64
    waves = [rng.normal(size=(4, 3)) for _ in range(48)]
    surfaces = [np.sin(6 * a * x + b) * np.cos(6 * c * y + d) for a, b, c, d in waves]
    return [(127.5 * (1 + surface)).astype(np.uint8) for surface in surfaces]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
