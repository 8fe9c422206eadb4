"""Learn a profile from unlabelled images: features once, then the choice of a detector, its fit and its calibration.

Calibration needs scores of images that the detector has not learned. Few images are too good to be kept aside for it:
where the detector can say what it would have scored without an image (`LeaveOneOut`), or where there are few enough to
learn FOLDS times without a fifth of them, all images teach and all calibrate. The p-values of such cross-conformal
calibration are not exactly uniform but close, and on the safe side: docs/explanation/score.md. Otherwise three tenths
are kept aside.

Images may be a stream of any length: two batches of them are in memory at a time, and only features (4 D bytes an
image), properties and 16-byte digests are kept. On a CPU the same images in the same order give the same profile bit
for bit, as long as the same engine computes the features (`detectors.profile.fit_engine`).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.decode import Limits
from detectors.images.likeness import Learned
from detectors.images.prepare import AnyImage
from detectors.methods.detector import Detector, FitContext, LeaveOneOut, TrainableDetector, scores_of
from detectors.methods.registry import AUTO, create
from detectors.profile.backbone import Backbone
from detectors.profile.choice import Choice, choose, grids_of
from detectors.profile.conditions import new_view
from detectors.profile.dependence import alike
from detectors.profile.examples import examples_of
from detectors.profile.fit_engine import EngineOfFit
from detectors.profile.mix import Mix
from detectors.profile.places import LocalSample, Places
from detectors.profile.pooling import averaged
from detectors.profile.profile import Profile
from detectors.profile.reference import Progress, Reference, read_reference
from detectors.profile.spec import BackboneSpec

MIN_IMAGES = 200
"""50 for the cut at 10 % to hold five calibration images, and four times that to learn from."""
MIN_CALIBRATION = 60
"""As many as the smallest fit calibrates on."""
CALIBRATION_SHARE = 0.3
MAX_CALIBRATION = 10_000
FOLDS = 5
FOLDED_BELOW = 2000
"""Above it 600 images to calibrate on are kept aside, and five more trainings buy little."""


Read = Callable[[Backbone, Progress, LocalSample | None], Reference]
"""Gives the features of the backbone on its grids, and shows the sample the maps that belong into it."""


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the defaults need no network connection and no GPU.

    detector, detector_options: a name of the registry and what its class takes besides the layers; AUTO chooses the
    detector and the grid of the backbone from the images. backbone: None is the embedded one. device: as torch names
    it; auto is CUDA where there is one. limits: for the images of the fit and for those scored later. ordered: the
    images are frames in time order, so that neighbours are alike; calibration then uses the last part instead of all
    or a random one, and the dependence of the counts is estimated. heat_maps: learn what is normal at each place, too.

    >>> FitOptions(detector="knn", detector_options={"k": 5}).ordered
    False
    """

    detector: str = AUTO
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
    images: Iterable[tuple[str, AnyImage]] | Read,
    options: FitOptions = FitOptions(),
    progress: Progress = lambda _step, _share: None,
    backbone: Backbone | None = None,
) -> Profile:
    """Fit and calibrate a profile on (name, image) pairs, or on what `Read` gives of images that are read already.

    Broken images are left out, exact duplicates are used once; both are counted in the manifest with up to 20 names.
    `backbone`: one that is ready, in the place of that of the options.

    Raises:
        TooFewImagesError: fewer than MIN_IMAGES usable ones.
        BackboneError: the backbone cannot be built as asked.
        ValueError: AUTO together with options or a grid, which it chooses.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> normal = [(f"{i}.png", rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)) for i in range(200)]
    >>> profile = fit_profile(normal, FitOptions(detector="mahalanobis", device="cpu"))
    >>> stripes = np.tile(np.uint8([0, 255]), (16, 8))
    >>> bool(profile.score([stripes]).p_values[0, profile.signals.index("ood")] < 0.05)
    True
    """
    started = time.monotonic()
    spec = backbone.spec if backbone else options.backbone or BackboneSpec.embedded()
    if options.detector == AUTO and (options.detector_options or spec.grid != 1):
        raise ValueError("the detector auto chooses its options and the grid itself: name a detector to set them")
    backbone = backbone or Backbone(spec, options.device)
    if options.detector == AUTO:
        backbone = backbone.on_grids(*grids_of(backbone))
    engine = backbone.engine = EngineOfFit(backbone)
    local = LocalSample() if options.heat_maps else None
    if callable(images):
        reference = images(backbone, progress, local)
    else:
        reference = read_reference(images, backbone, options.limits, progress, local=local)
    if len(reference) < MIN_IMAGES:
        raise TooFewImagesError(
            f"{len(reference)} usable images are too few: at least {MIN_IMAGES} are needed to learn from and to "
            f"calibrate on ({reference.left_out})"
        )
    read = time.monotonic()
    choice = Choice(options.detector, options.detector_options, backbone.grids[0])
    if options.detector == AUTO:
        choice = choose(reference, backbone, partial(progress, "choosing the detector"))
    reference.features = reference.features[:, backbone.columns(choice.grid)].contiguous()
    backbone = engine.on_grid(choice.grid)
    detector = create(choice.detector, backbone.layers, **choice.options)
    rows = _divide(len(reference), detector, options)
    features = reference.features[torch.from_numpy(rows.learned)]
    context = FitContext(partial(progress, "learning"), lambda: reference.turned(rows.learned, backbone))
    facts = {
        "detector": choice.detector,
        "detector_options": dict(choice.options),
        "choice": dict(choice.table),
        "learning": _learn(detector, features, context),
        "engine": engine.name,
        "fitted_at": _now(),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_reading": round(read - started, 1),
        "peak_memory_mib": _peak_memory_mib(),
        "seed": options.seed,
        "ordered": options.ordered,
        **reference.facts(fit=len(rows.learned), calibration=len(rows.calibrated)),
    }
    backbone.engine = None  # whoever serves with one tests it first
    preparer = backbone.preparer(options.limits, reference.tones)
    pooled = averaged(features, backbone.channels, choice.grid)
    mix = Mix(backbone.channels).fit(pooled)
    seen = Learned.of(reference.hashes[rows.learned])
    profile = Profile(backbone, preparer, detector, facts, mix, seen)
    kept, measured = torch.from_numpy(rows.calibrated), np.stack(reference.measured)[rows.calibrated]
    measured = seen.beside(measured, reference.hashes[rows.calibrated], among=not rows.apart)
    if rows.apart:
        values = profile.values(reference.features[kept], measured)
    else:
        crossed = _left_out(choice, detector, backbone, features, partial(progress, "calibrating"))
        values = np.concatenate([crossed[kept].numpy(), measured, mix.left_out(pooled)[kept].numpy()], axis=1)
    keys = [reference.keys[row] for row in rows.calibrated]
    profile.calibrate(values, keys, options.ordered)
    if not options.ordered:
        profile.manifest["frames"] = alike(profile.p_values(values, keys)[np.argsort(rows.calibrated), 0])
    profile.keep_reference(features)
    everywhere = mix.coordinates(averaged(reference.features, backbone.channels, choice.grid)).numpy()
    profile.examples = examples_of(profile.mix_signals, everywhere, reference.turnable)
    if local:
        progress("learning what is normal at each place", -1.0)
        profile.places = Places.learn(backbone, local, options.ordered)
    return profile


def recalibrate(
    profile: Profile,
    images: Iterable[tuple[str, AnyImage]],
    ordered: bool = False,
    progress: Progress = lambda _step, _share: None,
    condition: str = "",
) -> None:
    """Calibrate `profile` in place on ID images that it has not learned from; its detector stays as it is.

    Args:
        condition: of the images: they calibrate `profile.under(condition)` alone, which is new or replaced.

    Raises:
        TooFewImagesError: fewer than MIN_CALIBRATION usable ones.
        ProfileError: no name of a condition.
    """
    target = new_view(profile, condition) if condition else profile
    preparer = profile.preparer
    reference = read_reference(images, profile.backbone, preparer.limits, progress, preparer.tones)
    if len(reference) < MIN_CALIBRATION:
        raise TooFewImagesError(
            f"{len(reference)} usable images are too few: at least {MIN_CALIBRATION} are needed to calibrate "
            f"({reference.left_out})"
        )
    facts = reference.facts(fit=profile.manifest["images"]["fit"], calibration=len(reference))
    facts["calibrated_from"] = profile.fingerprint
    profile.manifest.pop("renewal", None)  # it was renewed; what a person makes of it is not
    target.manifest |= {"calibrated_at": _now(), "ordered": ordered, **facts}
    measured = np.stack(reference.measured)
    measured = target.seen.beside(measured, reference.hashes) if target.seen else measured
    values = target.values(reference.features, measured)
    target.calibrate(values, reference.keys, ordered)
    if not ordered:
        target.manifest["frames"] = alike(target.p_values(values, reference.keys)[:, 0])
    if condition:
        profile.conditions[condition] = target


def _learn(detector: Detector, features: Tensor, context: FitContext) -> dict[str, object]:
    """Fit the detector; returns what its training reports."""
    if isinstance(detector, TrainableDetector):
        return detector.train(features, context).report
    detector.fit(features)
    return {}


def _left_out(
    choice: Choice, detector: Detector, backbone: Backbone, features: Tensor, progress: Callable[[float], None]
) -> Tensor:
    """(N, 1 + L) float64 score and layer scores of each row by a detector that has not learned it."""
    if isinstance(detector, LeaveOneOut):
        return detector.left_out(features, torch.arange(len(features)))
    settled = detector.settled() if isinstance(detector, TrainableDetector) else {}
    folds, parts = torch.arange(len(features)) % FOLDS, []
    for fold in range(FOLDS):
        progress(fold / FOLDS)
        other = create(choice.detector, backbone.layers, **{**choice.options, **settled})
        parts.append(scores_of(other.fit(features[folds != fold]), features[folds == fold]))
    found = torch.empty(len(features), parts[0].shape[1], dtype=torch.float64)
    for fold, part in enumerate(parts):
        found[folds == fold] = part
    return found


@dataclass(frozen=True)
class _Rows:
    """Which images teach and which calibrate; `apart`: none does both."""

    learned: NDArray[np.int64]
    calibrated: NDArray[np.int64]
    apart: bool


def _divide(count: int, detector: Detector, options: FitOptions) -> _Rows:
    order = np.random.default_rng(options.seed).permutation(count)
    if not options.ordered and (isinstance(detector, LeaveOneOut) or count < FOLDED_BELOW):
        return _Rows(np.arange(count), order[:MAX_CALIBRATION], apart=False)
    cut = min(MAX_CALIBRATION, int(count * CALIBRATION_SHARE))
    if options.ordered:  # neighbours of a training frame are no fresh images: calibrate on another stretch of time
        return _Rows(np.arange(count - cut), np.arange(count - cut, count), apart=True)
    return _Rows(order[cut:], order[:cut], apart=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)  # bytes there, KiB on Linux
