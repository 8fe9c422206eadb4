"""Which engine runs the network of a backbone when images are scored, and the test that it has to pass.

torch is made to train networks. A compiler that knows that nothing is learned any more fuses normalisation, activations
and pooling into the convolutions: how much faster a profile scores with it is measured by `benchmarks/engines.py`.

`auto` is OpenVINO on a CPU, and torch elsewhere. It is never `compile`, which takes a minute to start where nothing is
kept, and needs a C++ compiler, nor `cudagraphs`, which nobody has measured yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from detectors.profile.spec import EngineName

if TYPE_CHECKING:
    from detectors.engines.cuda_graphs import CudaGraphs
    from detectors.engines.int8 import Int8Engine
    from detectors.profile.profile import Profile

MOST_DIFFERENT = 1e-4
"""Of the range of a signal's calibration scores: about as much as separates two neighbours of 10,000."""
SAME_P_VALUES = 0.999
"""Of the test images, or all but one: a score next to a calibration score may change places with it."""
MOST_DIFFERENT_INT8 = 0.02
"""Of that range, between machines that run the same quantised network: chosen so that what rounds otherwise passes and
other arithmetic does not; not measured between processors."""


class EngineError(ValueError):
    """An engine cannot be used here; the message says why."""


class Engine(Protocol):
    """Runs the network of one backbone."""

    name: str

    def features(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, D) float32, on the backbone's device; an image's do not depend on the others."""

    def forget(self) -> None:
        """Remove what is kept for the next start."""


def use_engine(profile: Profile, name: EngineName | None) -> str:
    """Let an engine run the backbone of a profile; returns in words which one does, and why.

    None is torch, or OpenVINO where the network is quantised: nothing else can run it.

    It is used only where it scores test images as torch does: no signal differs by more than MOST_DIFFERENT, and
    SAME_P_VALUES of the p-values are the same. `auto` is OpenVINO where it is installed and passes, else torch.

    Raises:
        EngineError: the engine that was asked for is not installed, cannot run this network, or scores otherwise.
    """
    profile.scorer.use(None)
    if profile.backbone.quantised:
        return _use_quantised(profile, profile.backbone.quantised, name)
    if name in {None, "torch"}:
        return "torch"
    try:
        engine = _makers()["openvino" if name == "auto" else str(name)](profile)
        try:
            difference = _test(profile, engine)
        except EngineError:
            profile.scorer.use(None)
            engine.forget()  # what was kept may be at fault: the next start makes it again
            raise
    except EngineError as error:
        if name != "auto":
            raise
        return f"torch ({error})"
    return f"{engine.name} (signals differ from torch's by {difference:.0e} of their range at most)"


def _use_quantised(profile: Profile, network: Int8Engine, name: EngineName | None) -> str:
    """EngineError where another engine is asked for, or where this machine computes otherwise than that of the fit."""
    if name not in {None, "auto", "openvino"}:
        raise EngineError(f"the network is quantised: only openvino runs it, not {name}")
    rows, properties = len(network.check), sum(not learned for learned in profile.learned) - len(profile.mix_signals)
    features = network.check, network.checked(profile.backbone.shape)
    there, here = (profile.values(each, np.zeros((rows, properties))) for each in features)
    difference = largest_difference(profile, there, here)
    if not difference <= MOST_DIFFERENT_INT8:
        raise EngineError(
            f"this machine computes in 8-bit integers otherwise than the one where the profile was made: signals "
            f"differ by {difference:.1e} of their range; quantise it here (`layerwatch quantize`)"
        )
    return f"openvino in int8 (signals differ by {difference:.0e} of their range from where it was made)"


def _makers() -> dict[str, Callable[[Profile], Engine | CudaGraphs]]:
    """Each is imported where one is wanted: they import this module."""
    from detectors.engines.compiled import CompiledEngine  # noqa: PLC0415
    from detectors.engines.cuda_graphs import CudaGraphs  # noqa: PLC0415
    from detectors.engines.openvino import OpenVinoEngine  # noqa: PLC0415

    return {
        "openvino": lambda profile: OpenVinoEngine(profile.backbone),
        "compile": lambda profile: CompiledEngine(profile.backbone),
        "cudagraphs": lambda profile: CudaGraphs(profile.scorer.signals, profile.backbone.device),
    }


def _test(profile: Profile, engine: Engine | CudaGraphs) -> float:
    """The largest difference of a signal, in units of its range, with the engine in use; EngineError where it is too
    large."""
    images = _examples(profile) or [profile.prepare(image) for image in surfaces(64, 64)]
    pixels, measured = [image.pixels for image in images], profile.measured(images)
    signals = [profile.scorer(pixels)]
    profile.scorer.use(engine)
    signals.append(profile.scorer(pixels))
    mine, other = (profile.with_measured(each, measured) for each in signals)
    difference = largest_difference(profile, mine, other)
    keys = [image.key for image in images]
    changed = int((profile.p_values(mine, keys) != profile.p_values(other, keys)).sum())
    if not (difference <= MOST_DIFFERENT and changed <= max(1.0, (1 - SAME_P_VALUES) * mine.size)):
        raise EngineError(
            f"{engine.name} scores otherwise than torch: signals differ by {difference:.1e} of their range, "
            f"{changed} of {mine.size} p-values"
        )
    return difference


def largest_difference(profile: Profile, mine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of two (N, S) arrays of values, in units of the range of each signal; far from it, of the value itself."""
    ranges = [float(c.values[-1] - c.values[0]) or 1.0 for c in profile.calibrations]
    return float((np.abs(mine - other) / np.maximum(np.abs(mine), ranges)).max())


def _examples(profile: Profile) -> list[Prepared]:
    """The profile's examples; those are left out that somebody has damaged, or that its limits do not allow."""
    found = []
    for picture in profile.examples.values():
        with suppress(ImageError):
            found.append(profile.prepare(picture))
    return found


def surfaces(height: int, width: int) -> list[NDArray[np.uint8]]:
    """48 (height, width, 3) images to compare engines on: smooth random surfaces of all tones, as images are smooth."""
    rng, sides = np.random.default_rng(0), np.array([height, width]).reshape(2, 1, 1, 1)
    y, x = np.mgrid[0:height, 0:width][..., None] / sides
    waves = [rng.normal(size=(4, 3)) for _ in range(48)]
    found = [np.sin(6 * a * x + b) * np.cos(6 * c * y + d) for a, b, c, d in waves]
    return [(127.5 * (1 + surface)).astype(np.uint8) for surface in found]
