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
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Jitter = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Scores:
    """values: (N, S) float64, higher = more unusual for learned signals. p_values: (N, S) float64 in (0, 1].

    Those of the mix say where the image lies among normal ones: neither end is unusual.

    >>> scores = Scores(values=np.array([[12.5, 90.0]]), p_values=np.array([[0.02, 0.7]]))
    >>> (scores.p_values <= 0.05).tolist()
    [[True, False]]
    """

    values: Floats
    p_values: Floats


def jitter(keys: Sequence[bytes]) -> Jitter:
    """(N,) tie-breakers, uniform on 64 bits: BLAKE2b of each key. The same key always gives the same one."""
    packed = b"".join(hashlib.blake2b(key, digest_size=8, person=b"lw-tie").digest() for key in keys)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Calibration:
    """Calibration scores of one signal, in order.

    values: (n,) ascending. jitters: (n,), ascending where values are equal. two_sided: both tails count. rows: (n,)
    which image each of them came from, so that signals can be seen together; None of frames in time order, and in
    profiles of before version 5.

    >>> keys = jitter([b"%d" % i for i in range(4)])
    >>> calibration = Calibration.of(np.array([1.0, 2.0, 3.0, 4.0]), keys, two_sided=False)
    >>> calibration.p_values(np.array([0.0, 2.5, 9.0]), jitter([b"a", b"b", b"c"])).tolist()
    [1.0, 0.6, 0.2]
    """

    values: Floats
    jitters: Jitter
    two_sided: bool
    rows: NDArray[np.int32] | None = None

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
        sorted_values, sorted_jitters = values[order].astype(np.float64), jitters[order].astype(np.uint64)
        return cls(sorted_values, sorted_jitters, two_sided, order.astype(np.int32))

    @property
    def size(self) -> int:
        """Number of calibration images n."""
        return len(self.values)

    def worth(self, images: int) -> Calibration:
        """The calibration that frames which count as `images` <= n independent ones give: that many quantiles of them.

        Every k_th of them has k / (images + 1) of the frames beyond it, as among independent images, and lies as
        surely where it should; to keep every so-many-th frame would waste what the frames between tell.

        >>> Calibration.of(np.arange(8.0), jitter([b""] * 8), two_sided=False).worth(2).values.tolist()
        [2.0, 5.0]
        """
        ranks = np.rint(np.arange(1, images + 1) * (self.size + 1) / (images + 1)).astype(np.intp) - 1
        return Calibration(self.values[ranks], self.jitters[ranks], self.two_sided)

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
        return p_values_of((self,), scores[:, None], jitters)[:, 0]

    def beyond(self, scores: Floats) -> Floats:
        """(N,) how far scores lie outside of the calibration's, on a side that counts, in units of their range.

        0 inside. It orders the images whose p-value is the smallest possible.
        """
        low, high = self.values[0], self.values[-1]
        scores = np.where(np.isnan(scores), np.inf, scores)
        outside = np.maximum(scores - high, low - scores) if self.two_sided else scores - high
        distance: Floats = np.maximum(outside, 0.0) / (high - low or abs(high) or 1.0)
        return distance

    @cached_property
    def order(self) -> NDArray[np.complex128]:
        """(n,) what an image is looked up in: value + i jitter, as NumPy orders complex numbers by both parts.

        A float keeps 53 bits of a jitter: two of 20,000 agree in these in one of tens of millions of calibrations.
        """
        return _ordered(self.values, self.jitters)


def p_values_of(calibrations: Sequence[Calibration], scores: Floats, jitters: Jitter) -> Floats:
    """(N, S) p-values in (0, 1] of (N, S) scores and of the images' (N,) jitters; see `Calibration.p_values`."""
    columns = _ordered(np.where(np.isnan(scores), np.inf, scores), jitters[:, None]).T
    # how many calibration pairs (value, jitter) are smaller than each pair; an equal pair is not smaller
    below = np.stack([c.order.searchsorted(column) for c, column in zip(calibrations, columns, strict=True)], axis=1)
    sizes = np.array([calibration.size for calibration in calibrations])
    upper, lower = (1.0 + sizes - below) / (sizes + 1.0), (1.0 + below) / (sizes + 1.0)
    both = np.minimum(1.0, 2.0 * np.minimum(upper, lower))
    found: Floats = np.where([calibration.two_sided for calibration in calibrations], both, upper)
    return found


def _ordered(values: Floats, jitters: Jitter) -> NDArray[np.complex128]:
    pairs = np.empty(values.shape, np.complex128)
    pairs.real, pairs.imag = values, jitters
    return pairs


def to_tensors(calibrations: Sequence[Calibration]) -> dict[str, Tensor]:
    """The calibrations of S signals as tensors, to be saved: (S, n), and (S,) sizes where they differ.

    >>> saved = to_tensors([Calibration.of(np.arange(n), jitter([b""] * n), two_sided=False) for n in (3, 2)])
    >>> [calibration.values.tolist() for calibration in from_tensors(saved, (False, False))]
    [[0.0, 1.0, 2.0], [0.0, 1.0]]
    """
    sizes = [calibration.size for calibration in calibrations]
    fill = [(0, max(sizes) - size) for size in sizes]
    values = np.stack([np.pad(c.values, width) for c, width in zip(calibrations, fill, strict=True)])
    # safetensors has unsigned 64-bit integers only lately: the bits of the jitters travel as signed ones
    jitters = np.stack([np.pad(c.jitters, width) for c, width in zip(calibrations, fill, strict=True)]).view(np.int64)
    tensors = {"values": torch.from_numpy(values), "jitters": torch.from_numpy(jitters)}
    if len(set(sizes)) > 1:
        return {**tensors, "sizes": torch.tensor(sizes)}
    rows = [c.rows for c in calibrations if c.rows is not None]
    return {**tensors, "rows": torch.from_numpy(np.stack(rows))} if len(rows) == len(calibrations) else tensors


def from_tensors(tensors: Mapping[str, Tensor], two_sided: Sequence[bool]) -> tuple[Calibration, ...]:
    """Inverse of `to_tensors`; KeyError where one is missing."""
    values, jitters = tensors["values"].numpy(), tensors["jitters"].numpy().view(np.uint64)
    sizes = tensors["sizes"].tolist() if "sizes" in tensors else [values.shape[1]] * len(values)
    rows = tensors["rows"].numpy() if "rows" in tensors else [None] * len(values)
    parts = zip(values, jitters, rows, sizes, two_sided, strict=True)
    return tuple(Calibration(column[:n], ties[:n], both, images) for column, ties, images, n, both in parts)
