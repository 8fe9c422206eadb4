"""What differs between two versions of a profile: what they are made of, and where the normal of one lies in the other.

The calibration images of the second are judged by the calibration of the first. A profile that has taken in a fault
shows it here: more than a twentieth of its normal images lie beyond the 5 % cut of the profile before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from detectors.methods.detector import Detector
from detectors.profile.mix import Mix
from detectors.profile.profile import Profile

LEVEL = 0.05
FACTS = (
    "detector", "detector_options", "backbone", "backbone_digest", "tones", "images", "images_hash", "ordered",
    "fitted_at", "calibrated_at", "calibrated_from", "command", "versions",
)  # fmt: skip
"""Of the manifests, in this order."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that differs."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Moved:
    """How a signal of the second version lies in the first."""

    signal: str
    beyond: float | None
    """Share of the second's calibration images that are beyond the first's 5 % cut; None: scores cannot be compared."""
    before: float
    """Median of the calibration scores."""
    after: float


def facts(before: Profile, after: Profile) -> Iterator[Fact]:
    """The facts of the manifests that differ, and the signals that only one has."""
    for name in FACTS:
        old, new = (str(profile.manifest.get(name, "")) for profile in (before, after))
        if old != new:
            yield Fact(name, old, new)
    gone, added = (
        [s for s in one.signals if s not in other.signals] for one, other in ((before, after), (after, before))
    )
    if gone or added:
        yield Fact(
            "signals", f"without {', '.join(added)}" if added else "", f"without {', '.join(gone)}" if gone else ""
        )


def moved(before: Profile, after: Profile) -> list[Moved]:
    """Signals that both have, in the order of the second."""
    found = []
    for i, signal in enumerate(after.signals):
        if signal not in before.signals:
            continue
        j = before.signals.index(signal)
        old, new = before.calibrations[j], after.calibrations[i]
        beyond = None
        if _comparable(before, after, signal):
            p_values = old.p_values(new.values, new.jitters)
            beyond = float((p_values <= LEVEL).mean())
        found.append(Moved(signal, beyond, float(np.median(old.values)), float(np.median(new.values))))
    return found


def _comparable(before: Profile, after: Profile, signal: str) -> bool:
    """Whether a score of the signal means the same in both: learned ones are in units of what was learned."""
    if signal == "seen":
        return False  # it compares with the images that each has learned
    if before.backbone.digest != after.backbone.digest or before.preparer.tones != after.preparer.tones:
        return False
    if signal in after.mix_signals:
        return _same(before.mix, after.mix)
    return not after.learned[after.signals.index(signal)] or _same(before.detector, after.detector)


def _same(one: Detector | Mix | None, other: Detector | Mix | None) -> bool:
    """Whether two learned parts hold the same tensors."""
    if one is None or other is None or type(one) is not type(other):
        return False
    first, second = one.state(), other.state()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
