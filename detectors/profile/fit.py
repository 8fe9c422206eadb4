"""Learn a profile from unlabelled images: features once, detector on one part, calibration on the other.

Images may be a stream of any length: one batch of them is in memory at a time, and only features (4 D bytes an image),
properties and 16-byte digests are kept. On a CPU the same images in the same order give the same profile bit for bit.
"""

from __future__ import annotations

import heapq
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.prepare import ImageError, Limits, Prepared, Preparer
from detectors.methods.dlsr import DLSR
from detectors.methods.dlsr_paper import Published
from detectors.methods.registry import Detector, create
from detectors.profile.backbone import Backbone, BackboneSpec
from detectors.profile.calibration import dependence
from detectors.profile.profile import Profile

MIN_IMAGES = 200
"""50 for the cut at 10 % to hold five calibration images, and four times that to learn from."""
MIN_CALIBRATION = 60
"""As many as the smallest fit calibrates on."""
CALIBRATION_SHARE = 0.3
MAX_CALIBRATION = 10_000
BATCH = 64
TURNED = 600
"""Images kept to be turned (see `detectors.methods.dlsr`): the standard error of an AUROC is then about .015."""
TURNED_BYTES = 64 * 2**20

Image = bytes | NDArray[np.uint8]
Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done (negative: unknown)."""


@dataclass(frozen=True)
class FitOptions:
    """What a fit can be told.

    detector, detector_options: a name of the registry and what its class takes besides the layers. backbone None takes
    the embedded one. ordered: the images are frames in time order, so that neighbours are alike; calibration then uses
    the last part instead of a random one, and the dependence of the counts is estimated.
    """

    detector: str = "dlsr"
    backbone: BackboneSpec | None = None
    device: str = "auto"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = False


class TooFewImagesError(ValueError):
    """Not enough usable images to learn from and to calibrate on."""


def fit_profile(
    images: Iterable[tuple[str, Image]], options: FitOptions = FitOptions(), progress: Progress | None = None
) -> Profile:
    """Fit and calibrate a profile on (name, image) pairs.

    Broken images are left out, exact duplicates are used once; both are counted in the manifest with up to 20 names.

    Raises:
        TooFewImagesError: fewer than MIN_IMAGES usable ones.
    """
    started = time.monotonic()
    tell = progress or (lambda _step, _share: None)
    backbone = Backbone(options.backbone or BackboneSpec.embedded(), options.device)
    reference = read_reference(images, backbone, options.limits, tell)
    _refuse_too_few(reference)
    read = time.monotonic()
    train, held = _split(len(reference.keys), options)
    detector = create(options.detector, backbone.layers, **options.detector_options)
    _learn(detector, backbone, reference, train, tell)
    facts = {
        "detector_options": dict(options.detector_options),
        "learning": getattr(detector, "report", {}),
        "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_reading": round(read - started, 1),
        "peak_memory_mib": _peak_memory_mib(),
        "seed": options.seed,
        "ordered": options.ordered,
        **reference.facts(fit=len(train), calibration=len(held)),
    }
    profile = Profile(backbone, options.detector, detector, facts, options.limits)
    calibrate(profile, reference, held, options.ordered)
    profile.keep_reference(reference.features[torch.from_numpy(train)])
    return profile


def recalibrate(
    profile: Profile, images: Iterable[tuple[str, Image]], ordered: bool = False, progress: Progress | None = None
) -> Profile:
    """Calibrate `profile` anew, in place, on ID images it has not learned from; the detector stays as it is.

    Raises:
        TooFewImagesError: fewer than MIN_CALIBRATION usable ones.
    """
    limits = profile.preparer.limits
    reference = read_reference(images, profile.backbone, limits, progress or (lambda _step, _share: None))
    count = len(reference.keys)
    if count < MIN_CALIBRATION:
        raise TooFewImagesError(
            f"{count} usable images are too few: at least {MIN_CALIBRATION} are needed to calibrate "
            f"({len(reference.broken)} broken, {len(reference.duplicates)} duplicates left out)"
        )
    facts = reference.facts(fit=profile.manifest["images"]["fit"], calibration=count)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    profile.manifest |= {"calibrated_at": now, "ordered": ordered, **facts}
    calibrate(profile, reference, np.arange(count), ordered)
    return profile


@dataclass
class Reference:
    """The usable images of a fit or a calibration: what is kept of each, and what was left out.

    features: (N, D) float32. measured: N rows of properties. keys: N tie-breakers. hash: over all digests, in order.
    """

    features: Tensor
    measured: list[NDArray[np.float64]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    turnable: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    hash: str = ""

    def facts(self, **counts: int) -> dict[str, Any]:
        """For the manifest: counts, the hash, and up to 20 names of what was left out."""
        left_out = {"broken": len(self.broken), "duplicates": len(self.duplicates)}
        return {
            "images": {**counts, **left_out},
            "images_hash": self.hash,
            "broken": self.broken[:20],
            "duplicates": self.duplicates[:20],
        }


def read_reference(
    images: Iterable[tuple[str, Image]], backbone: Backbone, limits: Limits, tell: Progress
) -> Reference:
    """Prepare all images, leave out broken ones and exact duplicates, and extract the features of the others."""
    reference = Reference(torch.empty(0, sum(backbone.layers)))
    prepared = _Usable(Preparer(backbone.input_px, limits, backbone.filter), reference).read(images)
    parts: list[Tensor] = []
    while batch := list(islice(prepared, BATCH)):
        parts.append(backbone(np.stack([image.pixels for image in batch])).cpu())
        tell(f"features of {len(reference.keys)} images", -1.0)
    if parts:
        reference.features = torch.cat(parts)
    return reference


def calibrate(profile: Profile, reference: Reference, held: NDArray[np.int64], ordered: bool) -> None:
    """Calibrate `profile` on the rows `held` of `reference`; ordered frames also give the dependence."""
    measured, keys = np.stack([reference.measured[i] for i in held]), [reference.keys[i] for i in held]
    features = reference.features[torch.from_numpy(held)]
    profile.calibrate(features, measured, keys)
    profile.dependence = (1.0,) * len(profile.signals)
    if ordered:
        p_values = profile.p_values(features, measured, keys)
        profile.dependence = tuple(round(dependence(column), 3) for column in p_values.T)


class _Usable:
    """Prepares images one by one and fills a Reference with all but their features."""

    def __init__(self, preparer: Preparer, reference: Reference) -> None:
        self._preparer, self._reference = preparer, reference
        # Those with the smallest digests: a sample that depends on the images alone, whatever their order.
        self._turnable: list[tuple[int, int]] = []
        self._room = max(1, min(TURNED, TURNED_BYTES // (3 * preparer.input_px**2)))

    def read(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prepared]:
        seen: set[bytes] = set()
        kept = self._reference
        for name, image in images:
            try:
                prepared = self._preparer(image, name.encode("utf-8", "backslashreplace"))
            except ImageError as error:
                kept.broken.append(f"{name}: {error}")
                continue
            if prepared.digest in seen:
                kept.duplicates.append(name)
                continue
            seen.add(prepared.digest)
            self._keep_to_turn(prepared, len(kept.keys))
            kept.measured.append(prepared.properties)
            kept.keys.append(prepared.key)
            yield prepared
        kept.hash = _hash(seen)

    def _keep_to_turn(self, prepared: Prepared, index: int) -> None:
        entry = (-int.from_bytes(prepared.digest[:8], "big"), index)
        turnable = self._reference.turnable
        if len(self._turnable) < self._room:
            heapq.heappush(self._turnable, entry)
        elif entry > self._turnable[0]:
            _, dropped = heapq.heapreplace(self._turnable, entry)
            del turnable[dropped]
        else:
            return
        turnable[index] = prepared.pixels


def _hash(digests: set[bytes]) -> str:
    """16 hex digits of a set of images, whatever their order."""
    total = 0
    for digest in digests:
        total ^= int.from_bytes(digest[:8], "big")
    return f"{total:016x}"


def _refuse_too_few(reference: Reference) -> None:
    if len(reference.keys) < MIN_IMAGES:
        raise TooFewImagesError(
            f"{len(reference.keys)} usable images are too few: at least {MIN_IMAGES} are needed, to learn from "
            f"{1 - CALIBRATION_SHARE:.0%} and to calibrate on the others "
            f"({len(reference.broken)} broken, {len(reference.duplicates)} duplicates left out)"
        )


def _split(count: int, options: FitOptions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows to calibrate on."""
    cut = min(MAX_CALIBRATION, int(count * CALIBRATION_SHARE))
    if options.ordered:  # neighbours of a training frame are no fresh images: calibrate on another stretch of time
        order = np.arange(count)[::-1]
        return order[cut:][::-1].copy(), order[:cut][::-1].copy()
    order = np.random.default_rng(options.seed).permutation(count)
    return order[cut:], order[:cut]


def _learn(
    detector: Detector, backbone: Backbone, reference: Reference, train: NDArray[np.int64], tell: Progress
) -> None:
    features = reference.features
    if isinstance(detector, Published):
        detector.fit(features[torch.from_numpy(train)], lambda share: tell("learning", share))
        return
    if not isinstance(detector, DLSR):
        detector.fit(features[torch.from_numpy(train)])
        return
    aside = [i for i in train if i in reference.turnable][: len(train) // 8]
    chosen = set(aside)
    turned = []
    for quarter_turns in (1, 2) if aside and detector.level is None else ():
        pixels = [np.rot90(reference.turnable[i], quarter_turns) for i in aside]
        batches = (np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
        turned.append(torch.cat([backbone(batch).cpu() for batch in batches]))
    rows = np.array([*aside, *(i for i in train if i not in chosen)])
    detector.fit(features[torch.from_numpy(rows)], lambda share: tell("learning", share), turned)


def _peak_memory_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)  # bytes there, KiB on Linux
