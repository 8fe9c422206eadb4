"""Makes the candidate of a renewal, and measures how far it has moved from earlier versions."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

import detectors
from detectors import Profile
from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from detectors.profile.calibration import Floats
from detectors.profile.examples import jpeg_of
from detectors.profile.files import ProfileError
from detectors.versions.guard import Shift, shifts
from monitor.cli.renewal.selection import Progress, Selection

CHECKED = 4000
"""Images by which a candidate is compared: a share of .05 is then known to .003."""
BATCH = 64
PICTURES = 12
"""Shown of those that moved most."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One of the images that lie farthest beyond the cut of an earlier version."""

    id: str
    p_value: float
    jpeg: bytes


@dataclass
class Compared:
    """A candidate beside one earlier version, under one condition."""

    condition: str
    shifts: Sequence[Shift]
    """The farthest first."""
    worst: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    """By signal: its most unusual images by the earlier version."""


def make_candidate(parent: Profile, selection: Selection, calibrate_only: bool, progress: Progress) -> Profile:
    """The parent, calibrated or fitted again on the chosen images; its conditions likewise, each on its own.

    What the parent knows of the dependence of frames stays: thinned images cannot show it.

    Raises:
        TooFewImagesError: too few images of a condition.
        ProfileError: a network in 8-bit integers cannot be fitted again.
        InputError: the source does not answer.
    """
    dependence = {name: view.dependence for name, view in (("", parent), *parent.conditions.items())}
    if calibrate_only:
        profile = parent
        detectors.recalibrate(profile, selection.images(), progress=progress)
    else:
        if parent.backbone.quantised:
            raise ProfileError(
                "its network is in 8-bit integers: renew it with --calibrate-only, or renew the profile that it was "
                "made of and quantize that"
            )
        options = detectors.FitOptions(
            parent.manifest["detector"],
            parent.backbone.spec,
            str(parent.backbone.device),
            int(parent.manifest.get("seed", 0)),
            parent.preparer.limits,
            parent.manifest.get("detector_options", {}),
            heat_maps=bool(parent.places),
        )
        profile = detectors.fit_profile(selection.images(), options, progress)
    for condition, known in dependence.items():
        if condition:
            detectors.recalibrate(profile, selection.images(condition), False, progress, condition)
        renewed = profile.conditions[condition] if condition else profile
        renewed.dependence = known
        renewed.fingerprint = renewed.own_fingerprint()
    return profile


def compare(earlier: Profile, candidate: Profile, selection: Selection, progress: Progress) -> Iterator[Compared]:
    """The candidate beside an earlier version, under each condition that both have.

    Raises:
        InputError: the source does not answer.
    """
    for condition in ("", *candidate.conditions):
        by = earlier.conditions.get(condition) if condition else earlier
        if by is None or not selection.count(condition):
            continue
        worst = _Worst(by.signals)
        p_values = list(_p_values(by, selection, condition, worst, progress))
        if p_values:
            own = candidate.conditions[condition] if condition else candidate
            yield Compared(condition, shifts(by, own, np.concatenate(p_values)), worst.pictures())


def _p_values(
    earlier: Profile, selection: Selection, condition: str, worst: _Worst, progress: Progress
) -> Iterator[Floats]:
    every, total = max(1, selection.count(condition) // CHECKED), selection.count(condition)
    batch: list[tuple[str, Prepared]] = []
    for i, (name, image) in enumerate(selection.images(condition)):
        if i % every:
            continue
        try:
            batch.append((name, earlier.prepare(image, name.encode("utf-8", "backslashreplace"))))
        except ImageError:
            continue  # left out of the candidate, too
        if len(batch) == BATCH:
            progress("comparing with an earlier version", i / total)
            yield _scored(earlier, batch, worst)
            batch = []
    if batch:
        yield _scored(earlier, batch, worst)


def _scored(earlier: Profile, batch: Sequence[tuple[str, Prepared]], worst: _Worst) -> Floats:
    scores = earlier.score([prepared for _, prepared in batch])
    worst.see(batch, scores.p_values, earlier.beyond(scores.values))
    return scores.p_values


class _Worst:
    """The most unusual images by each signal, of those that it has seen."""

    def __init__(self, signals: Sequence[str]) -> None:
        self._heaps: dict[str, list[tuple[float, float, int, str, NDArray[np.uint8]]]] = {s: [] for s in signals}
        self._number = count()

    def see(self, batch: Sequence[tuple[str, Prepared]], p_values: Floats, beyond: Floats) -> None:
        """Add (N, S) p-values of N images, and how far each lies outside of the calibration."""
        for column, heap in enumerate(self._heaps.values()):
            for row, (name, prepared) in enumerate(batch):
                item = -float(p_values[row, column]), float(beyond[row]), next(self._number), name, prepared.pixels
                if len(heap) < PICTURES:
                    heapq.heappush(heap, item)
                elif item[:2] > heap[0][:2]:
                    heapq.heapreplace(heap, item)

    def pictures(self) -> dict[str, list[Picture]]:
        """By signal, the most unusual first."""
        return {
            signal: [Picture(name, -p, jpeg_of(pixels)) for p, _, _, name, pixels in sorted(heap, reverse=True)]
            for signal, heap in self._heaps.items()
        }
