"""Conformal p-values: what share of in-distribution images would look at least this unusual.

For calibration scores s_1..s_n that the detector never saw and a fresh score s from the same distribution,

    p = (1 + #{i : s_i >= s}) / (n + 1)

is uniform on {1, ..., n + 1} / (n + 1), exactly, whatever the distribution (Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", 2005; Bates et al., "Testing for outliers with conformal p-values", 2023).
n + 1, not n: the observed score joins the sample, so p stays in (0, 1] and is never smaller than n images can support.

Equal scores are put in order by a jitter that depends on the image's key alone, in calibration and at run time alike.
Without it discrete signals (width, channels) would pile up on a few p-values and "fewer than usual" would mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Jitter = NDArray[np.uint64]


def jitter(keys: Sequence[bytes]) -> Jitter:
    """(N,) tie-breakers, uniform on 64 bits: BLAKE2b of each key. The same key always gives the same one."""
    packed = b"".join(hashlib.blake2b(key, digest_size=8, person=b"lw-tie").digest() for key in keys)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Calibration:
    """Calibration scores of one signal, in order.

    values: (n,) ascending. jitters: (n,), ascending where values are equal. two_sided: both tails count.

    >>> keys = jitter([b"%d" % i for i in range(4)])
    >>> calibration = Calibration.of(np.array([1.0, 2.0, 3.0, 4.0]), keys, two_sided=False)
    >>> calibration.p_values(np.array([0.0, 2.5, 9.0]), jitter([b"a", b"b", b"c"])).tolist()
    [1.0, 0.6, 0.2]
    """

    values: Floats
    jitters: Jitter
    two_sided: bool

    @classmethod
    def of(cls, values: Floats, jitters: Jitter, two_sided: bool) -> Calibration:
        """Calibrate on (n,) scores of held-out ID images and their jitters.

        Raises:
            ValueError: no scores, or one that is not a number.
        """
        if len(values) == 0:
            raise ValueError("a calibration needs at least one score")
        if np.isnan(values).any():
            raise ValueError("calibration scores must not be NaN")
        order = np.lexsort((jitters, values))
        return cls(values[order].astype(np.float64), jitters[order].astype(np.uint64), two_sided)

    @property
    def size(self) -> int:
        """Number of calibration images n."""
        return len(self.values)

    @property
    def constant(self) -> bool:
        """Whether the images are alike in it: the 1st percentile is the 99th, as with the saturation of grey images."""
        low, high = np.quantile(self.values, (0.01, 0.99))
        return bool(low == high)

    def quantiles(self) -> dict[str, float]:
        """The 1st, 50th, 95th and 99th percentile of the values, to six decimals."""
        levels = {"p1": 0.01, "p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {name: round(float(np.quantile(self.values, level)), 6) for name, level in levels.items()}

    def p_values(self, scores: Floats, jitters: Jitter) -> Floats:
        """(N,) p-values in (0, 1] of (N,) scores.

        One-sided: exactly floor(a (n + 1)) calibration scores lie beyond the cut of level a. Two-sided: twice the
        smaller of the two one-sided p-values, so exactly 2 floor(a (n + 1) / 2) do. NaN counts as most unusual.
        """
        below = self._rank(scores, jitters)
        upper = (1.0 + self.size - below) / (self.size + 1.0)
        if not self.two_sided:
            return upper
        lower = (1.0 + below) / (self.size + 1.0)
        both: Floats = np.minimum(1.0, 2.0 * np.minimum(upper, lower))
        return both

    def beyond(self, scores: Floats) -> Floats:
        """(N,) how far scores lie outside of the calibration's, on a side that counts, in units of their range.

        0 inside. It orders the images whose p-value is the smallest possible.
        """
        low, high = self.values[0], self.values[-1]
        scores = np.where(np.isnan(scores), np.inf, scores)
        outside = np.maximum(scores - high, low - scores) if self.two_sided else scores - high
        distance: Floats = np.maximum(outside, 0.0) / (high - low or abs(high) or 1.0)
        return distance

    def _rank(self, scores: Floats, jitters: Jitter) -> Floats:
        """How many calibration pairs (value, jitter) are smaller than each pair; an equal pair is not smaller."""
        scores = np.where(np.isnan(scores), np.inf, scores)
        low = np.searchsorted(self.values, scores, side="left")
        high = np.searchsorted(self.values, scores, side="right")
        # Equal values (rare for scores, usual for widths): bisect on the jitters of that run, all images at once.
        while (tied := low < high).any():
            middle = (low + high) // 2
            smaller = tied & (self.jitters[np.minimum(middle, self.size - 1)] < jitters)
            low, high = np.where(smaller, middle + 1, low), np.where(tied & ~smaller, middle, high)
        return low.astype(np.float64)


def to_tensors(calibrations: Sequence[Calibration]) -> dict[str, Tensor]:
    """The calibrations of all signals on the same n images as tensors (S, n), to be saved."""
    values = np.stack([c.values for c in calibrations])
    # safetensors has unsigned 64-bit integers only lately: the bits of the jitters travel as signed ones
    jitters = np.stack([c.jitters for c in calibrations]).view(np.int64)
    return {"values": torch.from_numpy(values), "jitters": torch.from_numpy(jitters)}


def from_tensors(tensors: Mapping[str, Tensor], two_sided: Sequence[bool]) -> tuple[Calibration, ...]:
    """Inverse of `to_tensors`; KeyError where one is missing."""
    values, jitters = tensors["values"].numpy(), tensors["jitters"].numpy().view(np.uint64)
    return tuple(Calibration(*part) for part in zip(values, jitters, two_sided, strict=True))


def dependence(p_values: Floats, level: float = 0.05) -> float:
    """Variance inflation D >= 1 of exceedance counts for ID images in the order of their frames.

    Counts of p-values <= level in long blocks of B images have variance D B p (1 - p), D = 1 + 2 sum_k rho_k over the
    autocorrelations of "p <= level": correlated frames spread the counts of a bucket, and every bound that treats
    them as independent breaks. Where to stop adding up noise: rho_2m + rho_2m+1 is positive and falls for a reversible
    process, so the sum ends before the first pair that is not positive (the initial positive sequence of Geyer,
    "Practical Markov chain Monte Carlo", Statistical Science, 1992).

    Mean and sd over 200 simulated videos whose scenes are D equal frames (D = 1: independent images):

        D           1            4            8            20
        n = 2000    1.06 ± .08   4.2 ± .7     8.3 ± 1.2    20.4 ± 4.4
        n = 50000   1.01 ± .02   4.04 ± .09   8.1 ± .3     20.2 ± .8

    Correlation that reaches further than some n / 100 images is seen in part only, and D comes out too small.

    Args:
        p_values: (n,) in time order. level: the cut that is counted.
    """
    beyond = (p_values <= level).astype(np.float64)
    if len(beyond) < 2 or beyond.min() == beyond.max():
        return 1.0
    centred = beyond - beyond.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))  # twice the length: the end must not meet the beginning
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: len(centred) // 2 * 2]
    pairs = (covariance[::2] + covariance[1::2]) / covariance[0]
    ended = np.flatnonzero(pairs <= 0)
    return max(1.0, 2.0 * float(pairs[: ended[0] if len(ended) else None].sum()) - 1.0)
