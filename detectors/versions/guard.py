"""Whether a renewed profile has kept the normal of an earlier one: it may follow small changes, never add them up.

Each step of a slow drift looks harmless beside the step before it, so a candidate is compared with the version that a
person made or accepted last, however many renewals lie between. Two questions, each in shares of images:

- `new`: how many of the images that the candidate takes for normal lie beyond the cuts of the earlier profile? A fault
  that has crept into a share of the images shows here as that share.
- `old`: how many of the images that the earlier profile learned lie beyond the cuts of the candidate? A product that is
  forgotten shows here.

A cut at level a leaves k = floor(a (n + 1)) of n calibration images beyond it, and a share Beta(k, n + 1 - k) of normal
ones: of m normal images a Beta-binomial number. A share counts as moved only where so many would hardly be chance: a
small calibration refuses nobody by its luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch

from detectors.deferred import Deferred
from detectors.images.likeness import NAME as SEEN
from detectors.profile.calibration import Floats, jitter, p_values_of
from detectors.profile.profile import Profile

stats = Deferred("scipy.stats")

LEVEL = 0.05
LEVELS = (LEVEL, 0.01)
"""A few clear faults show at the narrow cut, a small change of all images at the wide one."""
MIX_LEVELS = (0.05, 0.2)
"""At both ends of a coordinate: neither is unusual, and a product that is gone shows in a broad share of it."""
CHANCE = 0.01
"""That a candidate with the same normal is found moved, if the limit is small; half of it is for the OOD score."""
FEATURES_AT_ONCE = 1024

Which = Literal["new", "old"]
End = Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one signal has moved beyond one cut."""

    signal: str
    which: Which
    end: End
    """Of the signal; only those of the mix have a low one."""
    level: float
    """Share of normal images beyond the cut."""
    share: float
    """Share of these images beyond it."""
    images: int
    chance: float
    """Of so many or more beyond it, were they normal."""
    needed: float
    """What the chance must be below for the share to count."""

    @property
    def moved(self) -> float:
        """Share of the images that have moved beyond the cut; 0 where it may be chance."""
        return max(0.0, self.share - self.level) if self.chance < self.needed else 0.0


def shifts(earlier: Profile, candidate: Profile, new: Floats) -> list[Shift]:
    """How far the candidate has moved from an earlier profile, the farthest first.

    Args:
        earlier: or its view of a condition.
        new: (N, S) p-values by the earlier profile of images that the candidate takes for normal; N >= 1.
    """
    found = list(_beyond(earlier, range(len(earlier.signals)), new, "new"))
    if candidate.condition == "" and _same_features(earlier, candidate):
        columns, old = _of_features(candidate, earlier)
        found += _beyond(candidate, columns, old, "old") if len(old) else ()
    return sorted(found, key=lambda shift: (-shift.moved, shift.chance))


def farthest(found: Iterable[Shift]) -> float:
    """The share that the candidate has moved by: the largest of all."""
    return max((shift.moved for shift in found), default=0.0)


def smallest_seen(profile: Profile, images: int) -> float:
    """The share of clear faults that counts as a move of the OOD score, with so many images and that calibration."""
    n1 = profile.calibrations[0].size + 1
    found = [1.0]
    for level in LEVELS:
        if k := math.floor(level * n1):
            least = float(stats.betabinom.isf(CHANCE / 2 / len(LEVELS), images, k, n1 - k)) + 1
            found.append(max(0.0, least / images - level))
    return min(found)


def _beyond(profile: Profile, columns: Sequence[int], p_values: Floats, which: Which) -> Iterator[Shift]:
    """Of (N, C) p-values of those columns of the profile's signals."""
    wanted = [(i, c) for i, c in enumerate(columns) if profile.signals[c] not in {SEEN, *profile.constant}]
    for i, column in wanted:
        signal, calibration = profile.signals[column], profile.calibrations[column]
        needed = CHANCE / 2 / len(LEVELS) / (1 if signal == "ood" else len(wanted))
        upper, n1 = p_values[:, i], calibration.size + 1
        of_mix = signal in profile.mix_signals
        tails: dict[End, Floats] = {"high": upper, "low": 1 + 1 / n1 - upper} if of_mix else {"high": upper}
        for (end, tail), level in product(tails.items(), MIX_LEVELS if of_mix else LEVELS):
            k = 2 * math.floor(level * n1 / 2) if calibration.two_sided else math.floor(level * n1)
            if k:
                count = int((tail <= level + 1e-9).sum())
                chance = float(stats.betabinom.sf(count - 1, len(tail), k, n1 - k))
                yield Shift(signal, which, end, level, count / len(tail), len(tail), chance, needed)


def _same_features(earlier: Profile, candidate: Profile) -> bool:
    one, other = earlier.backbone, candidate.backbone
    same_network = one.digest == other.digest and one.spec.grid == other.spec.grid
    return same_network and earlier.preparer.name == candidate.preparer.name


def _of_features(candidate: Profile, earlier: Profile) -> tuple[list[int], Floats]:
    """(columns of the candidate's signals that need features alone, (N, C) p-values of the earlier one's reference)."""
    learned, mix = sum(candidate.learned), len(candidate.mix_signals)
    columns = [*range(learned), *range(len(candidate.signals) - mix, len(candidate.signals))]
    features = earlier.reference()
    if features is None:
        return columns, np.empty((0, len(columns)))
    values = np.concatenate([candidate.scorer.of_features(part) for part in torch.split(features, FEATURES_AT_ONCE)])
    keys = jitter([row.to_bytes(8, "little") for row in range(len(values))])
    return columns, p_values_of([candidate.calibrations[c] for c in columns], values, keys)
