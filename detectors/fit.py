"""Learn a profile from unlabelled images: features once, detector on one part, calibration on the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.dlsr import DLSR
from detectors.features import Backbone, BackboneSpec
from detectors.images import ImageError, Limits, Prepared, Preparer
from detectors.profile import Profile
from detectors.registry import create

MIN_IMAGES = 200
"""50 for the cut at 10 % to hold five calibration images, and four times that to learn from."""
CALIBRATION_SHARE = 0.3
MAX_CALIBRATION = 10_000
BATCH = 64

Image = bytes | NDArray[np.uint8]
Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done (negative: unknown)."""


@dataclass(frozen=True)
class FitOptions:
    """What a fit can be told. `backbone` None takes the embedded one."""

    detector: str = "dlsr"
    backbone: BackboneSpec | None = None
    device: str = "auto"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


class TooFewImagesError(ValueError):
    """Not enough usable images to learn from and to calibrate on."""


def fit_profile(
    images: Iterable[tuple[str, Image]], options: FitOptions = FitOptions(), progress: Progress | None = None
) -> Profile:
    """Fit and calibrate a profile on (name, image) pairs; only features are kept in memory.

    Broken images are left out, exact duplicates are used once; both are counted in the manifest with up to 20 names.

    Raises:
        TooFewImagesError: fewer than MIN_IMAGES usable ones.
    """
    started = time.monotonic()
    tell = progress or (lambda _step, _share: None)
    backbone = Backbone(options.backbone or BackboneSpec.embedded(), options.device)
    reference = _Reference(Preparer(backbone.input_px, options.limits, backbone.spec.filter))
    features = _extract(backbone, reference.read(images), tell)
    if len(features) < MIN_IMAGES:
        raise TooFewImagesError(
            f"{len(features)} usable images are too few: at least {MIN_IMAGES} are needed "
            f"({len(reference.broken)} broken, {len(reference.duplicates)} duplicates left out)"
        )
    order = np.random.default_rng(options.seed).permutation(len(features))
    cut = min(MAX_CALIBRATION, int(len(features) * CALIBRATION_SHARE))
    held, train = order[:cut], order[cut:]
    detector = create(options.detector, backbone.layers)
    if isinstance(detector, DLSR):
        detector.fit(features[torch.from_numpy(train)], lambda share: tell("learn", share))
    else:
        detector.fit(features[torch.from_numpy(train)])
    measured = np.stack(reference.measured)
    facts = {
        "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "seed": options.seed,
        "images": {
            "fit": len(train),
            "calibration": len(held),
            "broken": len(reference.broken),
            "duplicates": len(reference.duplicates),
        },
        "broken": reference.broken[:20],
        "duplicates": reference.duplicates[:20],
    }
    profile = Profile(backbone, options.detector, detector, facts)
    return profile.calibrate(features[torch.from_numpy(held)], measured[held], [reference.keys[i] for i in held])


class _Reference:
    """The usable images of a fit: what is kept of each, and what was left out."""

    def __init__(self, preparer: Preparer) -> None:
        self._preparer = preparer
        self.measured: list[NDArray[np.float64]] = []
        self.keys: list[bytes] = []
        self.broken: list[str] = []
        self.duplicates: list[str] = []

    def read(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prepared]:
        seen: set[bytes] = set()
        for name, image in images:
            try:
                prepared = self._preparer(image, name.encode("utf-8", "backslashreplace"))
            except ImageError as error:
                self.broken.append(f"{name}: {error}")
                continue
            if prepared.digest in seen:
                self.duplicates.append(name)
                continue
            seen.add(prepared.digest)
            self.measured.append(prepared.properties)
            self.keys.append(prepared.key)
            yield prepared


def _extract(backbone: Backbone, images: Iterator[Prepared], tell: Progress) -> Tensor:
    """(N, D) float32 features of all images."""
    parts: list[Tensor] = []
    while batch := _pixels(list(islice(images, BATCH))):
        parts.append(backbone(np.stack(batch)).cpu())
        tell(f"features of {sum(map(len, parts))} images", -1.0)
    return torch.cat(parts) if parts else torch.empty(0, sum(backbone.layers))


def _pixels(batch: Sequence[Prepared]) -> list[NDArray[np.uint8]]:
    return [prepared.pixels for prepared in batch]
