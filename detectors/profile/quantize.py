"""A profile whose network computes in 8-bit integers, made of a fitted one: NNCF quantises, OpenVINO runs it.

Rounding moves every feature, by some per cent of its deviation over the images. A detector that learned float features
would take that for a departure from normal, and calibration scores of float features would be compared with others: so
the new profile learns and calibrates again, with the detector, grid and options of the old one, on features of the
quantised network. Its p-values are as valid as those of any fit; what is lost is sharpness, and `costs` says how much.

Source: Nagel et al., "A White Paper on Neural Network Quantization", 2021, arXiv 2106.08295; NNCF's post-training
quantisation: minima and maxima of activations over SAMPLE images, and a correction of the biases.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.engines.engine import EngineError, use_engine
from detectors.engines.graph import first_line
from detectors.engines.int8 import Int8Engine
from detectors.engines.openvino import converted
from detectors.evaluation.metrics import auroc
from detectors.images.prepare import AnyImage
from detectors.profile.backbone import Backbone
from detectors.profile.files import ProfileError
from detectors.profile.fit import FitOptions, fit_profile
from detectors.profile.profile import Profile
from detectors.profile.reference import BATCH, Progress, Reference, prepared

SAMPLE = 300
"""Images at least by which NNCF chooses the ranges of activations: its own default."""

ROUNDS, ROUND_S = 5, 0.4
"""Of the comparison of speeds: the two take turns, as machines are noisy."""

Images = Iterable[tuple[str, AnyImage]]
"""(name, image) pairs."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Cost:
    """AUROC of the score before and after, of normal images against those of one set. images: of the set."""

    before: float
    after: float
    images: int


@dataclass(frozen=True)
class Comparison:
    """costs: by the name of the set. speed: images a second of the quantised network, in those of float32 here."""

    costs: Mapping[str, Cost]
    speed: float


def quantize(
    profile: Profile, sample: list[Pixels], images: Images, progress: Progress = lambda _step, _share: None
) -> Profile:
    """The profile with a quantised network, fitted and calibrated anew on the images that it was fitted on.

    Conditions are not carried over: they are calibrated on images of their own. `sample`: what `sample_of` gives.

    Raises:
        EngineError: NNCF or OpenVINO is not installed, or cannot quantise this network.
        ProfileError: the profile is quantised already, or its precision is not float32.
        TooFewImagesError: too few usable images.
    """
    before = profile.backbone.spec
    if before.precision != "float32":
        raise ProfileError(f"profile {profile.fingerprint} is in {before.precision}: only float32 can be quantised")
    backbone = Backbone(replace(before, precision="int8"), "cpu")
    progress("quantising the network", -1.0)
    backbone.quantised = Int8Engine.of(_quantised(backbone, sample), backbone.shape)
    facts = profile.manifest
    options = FitOptions(
        detector=facts["detector"],
        device="cpu",
        seed=facts["seed"],
        limits=profile.preparer.limits,
        detector_options=facts.get("detector_options", {}),
        ordered=facts["ordered"],
        heat_maps=bool(profile.places),
    )
    found = fit_profile(images, options, progress, backbone)
    quantised = {"from": profile.fingerprint, "nncf": version("nncf"), "openvino": version("openvino")}
    found.manifest |= {"choice": facts.get("choice", {}), "quantised": quantised}
    return found


def sample_of(profile: Profile, images: Images) -> list[Pixels]:
    """Pixels of SAMPLE to 2 SAMPLE images, or of all where there are fewer, evenly spread over a run of any length."""
    kept: list[Pixels] = []
    every = 1
    for i, (_, image) in enumerate(prepared(images, profile.preparer, [])):
        if i % every == 0:
            kept.append(image.pixels)
        if len(kept) == 2 * SAMPLE:
            kept, every = kept[::2], 2 * every
    return kept


def compare(before: Profile, after: Profile, sample: list[Pixels], ood: Mapping[str, Images]) -> Comparison:
    """What quantising cost, on pseudo-outliers (images of `sample` with a patch of another one) and on each set.

    The normal images are those that calibrated each profile: it has scored them without having learned them.
    """
    use_engine(before, "auto")
    pair = (before, after)
    scores = [profile.learned_values(_pasted(profile.backbone, sample))[:, 0] for profile in pair]
    found = {"pasted patches": _cost(before, after, *scores)}
    for name, images in ood.items():
        parts: tuple[list[NDArray[np.float64]], ...] = ([], [])
        ready = (image for _, image in prepared(images, before.preparer, []))
        while batch := list(islice(ready, BATCH)):
            for part, profile in zip(parts, pair, strict=True):
                part.append(profile.learned_values(profile.features(batch))[:, 0])
        if parts[0]:
            found[name] = _cost(before, after, *map(np.concatenate, parts))
    pixels = np.stack(sample[:BATCH])
    rates = [[_rate(profile.backbone, pixels) for profile in pair] for _ in range(ROUNDS)]
    return Comparison(found, float(np.median([new / old for old, new in rates])))


def _rate(backbone: Backbone, pixels: Pixels) -> float:
    """Batches a second."""
    started, batches = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < ROUND_S or not batches:
        backbone.features(pixels)
        batches += 1
    return batches / elapsed


def _cost(before: Profile, after: Profile, old: NDArray[np.float64], new: NDArray[np.float64]) -> Cost:
    normal = [profile.calibrations[0].values for profile in (before, after)]
    return Cost(auroc(normal[0], old), auroc(normal[1], new), len(old))


def _pasted(backbone: Backbone, sample: list[Pixels]) -> torch.Tensor:
    empty = torch.empty(len(sample), 0)
    reference = Reference(empty, keys=[b""] * len(sample), turnable=dict(enumerate(sample)))
    return reference.pasted(backbone)[1]


def _quantised(backbone: Backbone, sample: list[Pixels]) -> Any:
    """An `openvino.Model` with the operations of a quantised network."""
    model = converted(backbone)
    try:
        import nncf  # noqa: PLC0415 - optional, and slow to load
    except ImportError as error:
        raise EngineError("nncf, which quantises, is not installed: pip install 'layerwatch[quantize]'") from error
    nncf.set_log_level(40)  # errors: it writes to the standard output
    dataset = nncf.Dataset([pixels[None] for pixels in sample])
    # activations of one sign keep all 256 steps, as in the swish of mobile networks
    ranges = nncf.QuantizationPreset.MIXED
    try:
        return nncf.quantize(model, dataset, preset=ranges, subset_size=len(sample))
    except Exception as error:  # whatever a network's layers do that the quantiser does not know
        raise EngineError(f"nncf cannot quantise {backbone.spec.model!r}: {first_line(error)}") from error
