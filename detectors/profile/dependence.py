"""How far the frames of a video count singly: the dependence D of their counts, and how many images they are worth.

Counts of p-values <= a in long blocks of B frames have variance D B a (1 - a), D = 1 + 2 sum_k rho_k over the
autocorrelations of "p <= a": correlated frames spread the counts of a bucket, and every bound that treats them as
independent breaks. n frames determine a quantile as well as n / D independent images do.

*Estimate.* Where to stop adding up noise: rho_2m + rho_2m+1 is positive and falls for a reversible process, so the sum
ends before the first pair that is not positive (the initial positive sequence of Geyer, "Practical Markov chain Monte
Carlo", Statistical Science, 1992).

*Upper bound.* The sum over K lags on each side is a spectral density at frequency 0 under a flat window: about
chi-squared with n / (2 K) degrees of freedom (Priestley, "Spectral Analysis and Time Series", 1981, 6.2; half of its
2 n / (2 K), since frequency 0 has no twin). Frames beyond a cut come in runs, and R runs of unequal lengths tell D no
better than R degrees of freedom do; single frames have no lengths to differ in, hence the factor 1 - 1 / D:

    1 / nu = (K + 1) / n + (1 - 1 / D) / R        bound = D nu / (quantile MISS of chi-squared with nu)

*Levels.* Frames resemble each other most about the median (Gaussian processes) or in their tails (somebody walks
through a still scene), so D is the largest bound of all LEVELS. It need not exceed what leaves LEAST independent frames
beyond a cut: then this cut is not used any more. The cut at the median always is. Cuts below the last lie within it.

`benchmarks/video.py` measures how often the bound is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred

special = Deferred("scipy.special")

LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Cuts at which D is measured; those below lie within the last."""
MISS = 0.05
"""How often the bound of a level may be too low; over all levels it is measured to hold in nine of ten videos."""
LEAST = 5
"""Calibration images beyond a cut, without which it says too little to be used."""
FEWEST = 11
"""Calibration images, in both tails together, for the cut at the median to be usable."""
DIES_WITHIN = 0.1
"""Share of the frames within which their resemblance must end: nu is then about five, and the bound four times D."""
ENOUGH = 99
"""Independent images for the cut at 5 % to be usable."""
ALIKE = 4.0
"""Times the variance of independent counts: by chance in some 2 of 1,000 sets of 60 images, of 300 in none."""
SHOWN = 3
"""Signals that a sentence names."""


@dataclass(frozen=True)
class Dependence:
    """What `frames` frames in time order are worth.

    inflation: D >= 1, an upper bound. reach: frames from one to the last that still resembles it.

    >>> Dependence(frames=600, inflation=60.0, reach=90).images, Dependence(600, 60.0, 90).measured
    (10, False)
    """

    frames: int
    inflation: float = 1.0
    reach: int = 0

    @property
    def images(self) -> int:
        """Independent images that are worth as much."""
        return max(1, int(self.frames / self.inflation + 1e-6))

    @property
    def usable(self) -> int:
        """Quantiles to calibrate on: at least FEWEST, where there are as many frames."""
        return min(self.frames, max(self.images, FEWEST))

    @property
    def measured(self) -> bool:
        """Whether the frames are many enough to see where their resemblance ends; if not, D may be larger still."""
        return self.reach <= DIES_WITHIN * self.frames and self.images >= FEWEST


def of_frames(p_values: NDArray[np.float64]) -> Dependence:
    """D of (n,) p-values in time order, and what these frames are worth as a calibration of themselves."""
    frames, inflation, reach = len(p_values), 1.0, 0
    for level in LEVELS:
        beyond = p_values <= level
        estimate, lags = _estimate(beyond)
        runs = int(np.count_nonzero(np.diff(beyond.astype(np.int8)) == 1)) + 1
        freedom = 1 / ((lags + 1) / max(frames, 1) + (1 - 1 / estimate) / runs)
        # with fewer than LEAST / level - 1 images a cut is not used; but that of the median always is
        most = frames / (1 if level == LEVELS[0] else LEAST / level - 1.5)
        bound = min(estimate * freedom / (2 * float(special.gammaincinv(freedom / 2, MISS))), most)
        inflation = max(inflation, bound) if beyond.any() and not beyond.all() else inflation
        reach = max(reach, lags)
    return Dependence(frames, inflation, reach)


def worth_of(signals: Sequence[str], p_values: NDArray[np.float64]) -> dict[str, Dependence]:
    """{signal: what the frames are worth to it}, of their (n, S) p-values in time order."""
    return dict(zip(signals, map(of_frames, p_values.T), strict=True))


def facts_of(worth: Mapping[str, Dependence]) -> dict[str, Any]:
    """For the manifest: the `note`, and the signals whose frames are too few to measure their dependence."""
    return {"note": note(worth), "unmeasured": [signal for signal, of in worth.items() if not of.measured]}


def estimate(p_values: NDArray[np.float64], level: float = 0.05) -> float:
    """D >= 1 of (n,) p-values in time order at one cut, without a margin; right on average from 100 D frames on."""
    return _estimate(p_values <= level)[0]


def note(worth: Mapping[str, Dependence]) -> str:
    """What the frames are worth to the signals of a profile, the first of them being the most important, in words."""
    first, fewest = next(iter(worth)), min(worth, key=lambda signal: worth[signal].images)
    frames, images = worth[first].frames, worth[fewest].images
    text = f"these {frames:,} frames are worth about {worth[first].images:,} independent images for {first}"
    if images < worth[first].images:
        text += f" and {images:,} for {fewest}, the fewest of all signals"
    if images < ENOUGH:
        text += f"; record for about {math.ceil(ENOUGH / images)} times as long to use the cut at 5 % of every signal"
    unmeasured = [signal for signal, of in worth.items() if not of.measured]
    if unmeasured:
        more = f" and {len(unmeasured) - SHOWN} more" if len(unmeasured) > SHOWN else ""
        text += (
            f"; too few to see how long frames resemble each other in {', '.join(unmeasured[:SHOWN])}{more}: "
            "there the false-alarm bound is not assured"
        )
    return text


def alike(p_values: NDArray[np.float64]) -> dict[str, Any]:
    """For the manifest of images that were not said to be in order: a note where neighbours are alike all the same.

    Args:
        p_values: (n,) in the order in which the images were given.
    """
    found = estimate(p_values, LEVELS[0])
    if found < ALIKE:
        return {}
    text = (
        f"these images came in an order in which neighbours are alike: counts vary {found:.1f} times as much as those "
        "of independent images; if they are frames in time order, say so with --ordered"
    )
    return {"note": text, "unmeasured": []}


def _estimate(beyond: NDArray[np.bool_]) -> tuple[float, int]:
    """(D, lags on one side that it adds up); (1, 0) where all frames are alike."""
    if len(beyond) < 2 or beyond.all() or not beyond.any():
        return 1.0, 0
    centred = beyond - beyond.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))  # twice the length: the end must not meet the beginning
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: len(centred) // 2 * 2]
    pairs = (covariance[::2] + covariance[1::2]) / covariance[0]
    ended = np.flatnonzero(pairs <= 0)
    used = pairs[: ended[0] if len(ended) else None]
    return max(1.0, 2.0 * float(used.sum()) - 1.0), 2 * len(used)
