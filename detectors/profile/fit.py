"""Learn a profile from unlabelled images: features once, detector on one part, calibration on the other.

Images may be a stream of any length: one batch of them is in memory at a time, and only features (4 D bytes an image),
properties and 16-byte digests are kept. On a CPU the same images in the same order give the same profile bit for bit.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.decode import Limits
from detectors.images.prepare import AnyImage, Preparer
from detectors.methods.detector import Detector, FitContext, TrainableDetector
from detectors.methods.registry import create
from detectors.profile.backbone import Backbone
from detectors.profile.places import Places
from detectors.profile.profile import Profile
from detectors.profile.reference import Progress, Reference, read_reference
from detectors.profile.spec import BackboneSpec

MIN_IMAGES = 200
"""50 for the cut at 10 % to hold five calibration images, and four times that to learn from."""
MIN_CALIBRATION = 60
"""As many as the smallest fit calibrates on."""
CALIBRATION_SHARE = 0.3
MAX_CALIBRATION = 10_000


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the defaults need no network connection and no GPU.

    detector, detector_options: a name of the registry and what its class takes besides the layers. backbone: None is
    the embedded one. device: as torch names it; auto is CUDA where there is one. limits: for the images of the fit and
    for those scored later. ordered: the images are frames in time order, so that neighbours are alike; calibration
    then uses the last part instead of a random one, and the dependence of the counts is estimated. heat_maps: learn
    what is normal at each place, too.

    >>> FitOptions(detector="knn", detector_options={"k": 5}).ordered
    False
    """

    detector: str = "dlsr"
    backbone: BackboneSpec | None = None
    device: str = "auto"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = False
    heat_maps: bool = True


class TooFewImagesError(ValueError):
    """Not enough usable images to learn from and to calibrate on."""


def fit_profile(
    images: Iterable[tuple[str, AnyImage]],
    options: FitOptions = FitOptions(),
    progress: Progress = lambda _step, _share: None,
) -> Profile:
    """Fit and calibrate a profile on (name, image) pairs.

    Broken images are left out, exact duplicates are used once; both are counted in the manifest with up to 20 names.

    Raises:
        TooFewImagesError: fewer than MIN_IMAGES usable ones.
        BackboneError: the backbone cannot be built as asked.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> normal = [(f"{i}.png", rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)) for i in range(200)]
    >>> profile = fit_profile(normal, FitOptions(detector="mahalanobis", device="cpu"))
    >>> stripes = np.tile(np.uint8([0, 255]), (16, 8))
    >>> bool(profile.score([stripes]).p_values[0, profile.signals.index("ood")] < 0.05)
    True
    """
    started = time.monotonic()
    backbone = Backbone(options.backbone or BackboneSpec.embedded(), options.device)
    reference = read_reference(images, backbone, options.limits, progress)
    if len(reference) < MIN_IMAGES:
        raise TooFewImagesError(
            f"{len(reference)} usable images are too few: at least {MIN_IMAGES} are needed, to learn from "
            f"{1 - CALIBRATION_SHARE:.0%} and to calibrate on the others ({reference.left_out})"
        )
    read = time.monotonic()
    train, held = _split(len(reference), options)
    features = reference.features[torch.from_numpy(train)]
    detector = create(options.detector, backbone.layers, **options.detector_options)
    context = FitContext(partial(progress, "learning"), lambda: reference.turned(train, backbone))
    facts = {
        "detector_options": dict(options.detector_options),
        "learning": _learn(detector, features, context),
        "fitted_at": _now(),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_reading": round(read - started, 1),
        "peak_memory_mib": _peak_memory_mib(),
        "seed": options.seed,
        "ordered": options.ordered,
        **reference.facts(fit=len(train), calibration=len(held)),
    }
    preparer = Preparer(backbone.input_px, options.limits, backbone.filter, reference.tones)
    profile = Profile(backbone, preparer, options.detector, detector, facts)
    _calibrate(profile, reference, held, options.ordered)
    profile.keep_reference(features)
    if options.heat_maps:
        progress("learning places", -1.0)
        profile.places = Places.learn(backbone, list(reference.turnable.values()))
    return profile


def recalibrate(
    profile: Profile,
    images: Iterable[tuple[str, AnyImage]],
    ordered: bool = False,
    progress: Progress = lambda _step, _share: None,
) -> None:
    """Calibrate `profile` in place on ID images that it has not learned from; its detector stays as it is.

    Raises:
        TooFewImagesError: fewer than MIN_CALIBRATION usable ones.
    """
    preparer = profile.preparer
    reference = read_reference(images, profile.backbone, preparer.limits, progress, preparer.tones)
    if len(reference) < MIN_CALIBRATION:
        raise TooFewImagesError(
            f"{len(reference)} usable images are too few: at least {MIN_CALIBRATION} are needed to calibrate "
            f"({reference.left_out})"
        )
    facts = reference.facts(fit=profile.manifest["images"]["fit"], calibration=len(reference))
    profile.manifest |= {"calibrated_at": _now(), "ordered": ordered, **facts}
    _calibrate(profile, reference, np.arange(len(reference)), ordered)


def _learn(detector: Detector, features: Tensor, context: FitContext) -> dict[str, object]:
    """Fit the detector; returns what its training reports."""
    if isinstance(detector, TrainableDetector):
        return detector.train(features, context).report
    detector.fit(features)
    return {}


def _calibrate(profile: Profile, reference: Reference, rows: NDArray[np.int64], ordered: bool) -> None:
    measured, keys = np.stack([reference.measured[i] for i in rows]), [reference.keys[i] for i in rows]
    profile.calibrate(reference.features[torch.from_numpy(rows)], measured, keys, ordered)


def _split(count: int, options: FitOptions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows to calibrate on."""
    cut = min(MAX_CALIBRATION, int(count * CALIBRATION_SHARE))
    if options.ordered:  # neighbours of a training frame are no fresh images: calibrate on another stretch of time
        return np.arange(count - cut), np.arange(count - cut, count)
    order = np.random.default_rng(options.seed).permutation(count)
    return order[cut:], order[:cut]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)  # bytes there, KiB on Linux
