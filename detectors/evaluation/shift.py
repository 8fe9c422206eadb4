"""Is a sample of images, as a whole, from the distribution of the reference? A permutation test on a profile's signals.

Every image may be normal and the sample all the same another mix. Each signal's values are ranked among those of the
calibration images and of the sample, and the ranks u in (0, 1) become four functions of mean zero,

    a = sqrt(3) (2u - 1)    b = sqrt(5) (6u^2 - 6u + 1)    c = -ln(1 - u) - 1    d = -ln(u) - 1,

a and b the first two of Neyman's smooth test (the mean and the spread), c and d those of Fisher's combination: a few
images far out in a tail. Their means over the sample, whitened by their covariance over all images, are compared in
three blocks: a of the coordinates of the mix, a and b of all signals, c and d of all signals. Each sum of squares
becomes an approximate p-value, and the Cauchy combination joins the three into one statistic. How often that is as
large by chance is then counted over random divisions of all images, so that the level holds whatever the sizes are.

Source: Neyman, "Smooth test for goodness of fit", Skandinavisk Aktuarietidskrift 20 (1937); Liu and Xie, "Cauchy
combination test", JASA 115 (2020); permutation p-values: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtr

from detectors.profile.calibration import Scores
from detectors.profile.files import ProfileError
from detectors.profile.profile import Profile

Floats = NDArray[np.float64]

PERMUTATIONS = 999
"""The smallest p-value is then .001, and one of .05 is known to within .007."""
RIDGE = 1e-6
"""In units of the variance of a function: signals that are equal (height and aspect ratio) have no inverse."""
_CHUNK = 256


@dataclass(frozen=True)
class ShiftTest:
    """p_value: share of random divisions that differ as much, in (0, 1]; below .05 the sample is called shifted.

    images: of the sample. signals: {signal: p-value of its own, by a normal approximation and not corrected for their
    number}, the smallest first: what moved.
    """

    p_value: float
    images: int
    signals: Mapping[str, float]


def shift_test(profile: Profile, scores: Scores, permutations: int = PERMUTATIONS, seed: int = 0) -> ShiftTest:
    """Compare a sample of images that `profile.score` has scored with the profile's calibration images.

    The images must be independent: of a video, frames that lie apart. The same arguments give the same result.

    Args:
        scores: of m >= 2 images; only `values` are used.
        permutations: random divisions to count.

    Raises:
        ValueError: fewer than two images, another number of signals than the profile's, or no permutations.
        ProfileError: the profile was calibrated on frames in time order, which are not independent, or by an earlier
            version, which did not keep an image's signals together.

    >>> rng = np.random.default_rng(0)
    >>> normal = [(f"{i}.png", rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)) for i in range(220)]
    >>> from detectors.profile.fit import FitOptions, fit_profile
    >>> profile = fit_profile(normal[:200], FitOptions("mahalanobis", device="cpu", heat_maps=False))
    >>> shift_test(profile, profile.score([image for _, image in normal[200:]])).p_value > 0.05
    True
    """
    sample, known = scores.values, _calibration_values(profile)
    if sample.ndim != 2 or sample.shape[1] != len(profile.signals) or len(sample) < 2 or permutations < 1:
        raise ValueError(
            f"a shift test needs (m >= 2, {len(profile.signals)}) values of the profile's signals and at least one "
            f"permutation, got {sample.shape} and {permutations}"
        )
    moving = [i for i, calibration in enumerate(profile.calibrations) if not calibration.constant]
    rng, m = np.random.default_rng(seed), len(sample)
    functions = _functions(np.concatenate([sample, known])[:, moving], rng)
    mixed = [place for place, i in enumerate(moving) if profile.signals[i] in profile.mix_signals]
    # the mix has a block of its own: what its coordinates know would drown among all signals
    blocks = [functions[:1, :, mixed]] if mixed else []
    whitened = [_whitened(block) for block in (*blocks, functions[:2], functions[2:])]
    observed = _statistic([block[:m].mean(axis=0)[None] for block in whitened], m, len(functions[0]))[0]
    reached = 0
    for start in range(0, permutations, _CHUNK):
        count = min(_CHUNK, permutations - start)
        chosen = np.argpartition(rng.random((count, len(functions[0])), dtype=np.float32), m, axis=1)[:, :m]
        members = np.zeros((count, len(functions[0])), dtype=np.float32)
        np.put_along_axis(members, chosen, np.float32(1 / m), axis=1)
        reached += int((_statistic([members @ block for block in whitened], m, len(functions[0])) >= observed).sum())
    alone = _alone(functions[:, :m].mean(axis=1), m, len(known))
    order = np.argsort(alone, kind="stable")
    named = {profile.signals[moving[i]]: float(alone[i]) for i in order}
    return ShiftTest((1 + reached) / (1 + permutations), m, named)


def _calibration_values(profile: Profile) -> Floats:
    """(n, S) values of the calibration images, one row each."""
    columns = []
    for calibration in profile.calibrations:
        if calibration.rows is None:
            raise ProfileError(
                f"profile {profile.fingerprint} does not say which calibration values belong to one image: calibrate "
                "it again, on independent images and not on frames in time order"
            )
        column = np.empty(calibration.size)
        column[calibration.rows] = calibration.values
        columns.append(column)
    return np.stack(columns, axis=1)


def _functions(values: Floats, rng: np.random.Generator) -> Floats:
    """(N, S) values -> (4, N, S): a, b, c, d of their ranks; equal values are put in random order."""
    order = np.lexsort((rng.random(values.shape), values), axis=0)
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.arange(len(values), dtype=np.float64)[:, None], axis=0)
    u = (ranks + 0.5) / len(values)
    x = 2 * u - 1
    return np.stack([np.sqrt(3) * x, np.sqrt(5) * (3 * x * x - 1) / 2, -np.log1p(-u) - 1, -np.log(u) - 1])


def _whitened(block: Floats) -> NDArray[np.float32]:
    """(F, N, S) functions -> (N, F S) uncorrelated ones of variance one."""
    flat = np.concatenate(list(block), axis=1)
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    return np.asarray(flat @ (vectors / np.sqrt(values + RIDGE)), dtype=np.float32)


def _statistic(means: Sequence[NDArray[np.float32]], m: int, total: int) -> Floats:
    """(P, Q) means of m of `total` whitened rows, per block -> (P,) Cauchy combination of the blocks' p-values."""
    scale = m * (total - 1) / (total - m)  # the variance of a mean of m drawn without replacement is its inverse
    # near one the combination would let one calm block outweigh a moved one
    sums = [scale * np.square(mean.astype(np.float64)).sum(axis=1) for mean in means]
    p_values = [np.clip(chdtrc(mean.shape[1], of), 1e-300, 0.95) for mean, of in zip(means, sums, strict=True)]
    # the cotangent is tan((1/2 - p) pi) without the difference, which would lose the smallest p-values
    joined: Floats = np.mean([1 / np.tan(p * np.pi) for p in p_values], axis=0)
    return joined


def _alone(means: Floats, m: int, n: int) -> Floats:
    """(4, S) means of the functions over the sample -> (S,) p-values: four times the smallest of the functions'."""
    largest = np.abs(means).max(axis=0) / np.sqrt(1 / m + 1 / n)
    p: Floats = np.minimum(1.0, 4 * 2 * ndtr(-largest))
    return p
