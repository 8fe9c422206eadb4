"""Bucket vectors: everything known about one stream in one bucket, as counts that can be added.

A vector has S x 9 + 6 entries (uint32). The first S x 9 are a histogram of p-values per signal, in bins cut at LEVELS:
bin 0 holds p > .5, bin 8 holds p <= .002. The last six are TAIL. Every entry is merged by addition, except the last,
`longest_run`, which is merged by maximum; both are commutative and associative, so order, replicas and replays do
not matter. Functions that read vectors take any leading shape: (V,) for one stream, (K, V) for many.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.core.types import Vector

LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
"""Cuts between the bins; cut l is passed by images with p <= LEVELS[l]."""

_UNNAMED_LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
"""Levels of the layouts and fingerprints that name none."""

BINS = len(LEVELS) + 1

TAIL = ("images", "rejected", "late", "duplicates", "changes", "longest_run")
"""`changes` counts images whose size or mode differs from the stream's previous one, `longest_run` is the longest
run of identical images (1 = no repeat)."""

IMAGES, REJECTED, LATE, DUPLICATES, CHANGES, LONGEST_RUN = range(-len(TAIL), 0)

# A cut whose level holds fewer than five calibration images says little about its true rate: at k = 5 the 99.5 %
# quantile of Beta(k, n + 1 - k) is 2.5 times the nominal level, at k = 2 already 4 times.
MIN_REFERENCE = 5

# LEVELS as 1 / integer: floor(.05 * 20) is exact in integers, while floor(.29 * 100) is 28 in floats.
_DENOMINATORS = (2, 5, 10, 20, 50, 100, 200, 500)

# p-values are multiples of 1 / (n + 1), so one that lies above a level 1/d does so by a factor of at least
# 1 + 1/(n + 1). Half a millionth is ten times the rounding of float32 and right for n below two million.
_TOLERANCE = 5e-7

_EDGES = np.array(LEVELS[::-1]) * (1 + _TOLERANCE)
_U32_MAX = np.iinfo(np.uint32).max


@dataclass(frozen=True)
class Layout:
    """Meaning of a vector's entries, and the properties of each signal; hashable.

    `levels` say where the bins are cut. The other tuples have one entry per signal: number of calibration images,
    whether the p-value counts both tails, whether the signal comes from the learned detector (else it is an image
    property), and the variance inflation D of dependent images (1 = independent). `constant` names the signals in which
    the calibration images are alike: they move clearly or not at all. `mix` names the coordinates that place an image
    within the reference: neither end of one is unusual, and what they tell is whether the mix of images is the same.
    `condition` is that of the images; empty where the profile's own calibration judged them.

    Raises:
        ValueError: lengths differ, a name occurs twice, no calibration images, or D < 1.
    """

    signals: tuple[str, ...]
    calibration_sizes: tuple[int, ...]
    two_sided: tuple[bool, ...]
    learned: tuple[bool, ...]
    dependence: tuple[float, ...]
    levels: tuple[float, ...] = LEVELS
    constant: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()
    condition: str = ""

    def __post_init__(self) -> None:
        lengths = {len(self.calibration_sizes), len(self.two_sided), len(self.learned), len(self.dependence)}
        if lengths != {len(self.signals)}:
            raise ValueError(f"layout: every tuple needs {len(self.signals)} entries, one per signal")
        if len(set(self.signals)) != len(self.signals):
            raise ValueError(f"layout: a signal name occurs twice in {self.signals}")
        if any(n < 1 for n in self.calibration_sizes):
            raise ValueError("layout: every signal needs at least one calibration image")
        if any(not d >= 1 for d in self.dependence):
            raise ValueError("layout: dependence must be at least 1 (1 = independent images)")

    def to_json(self) -> str:
        """As one line of JSON; `from_json` is the inverse."""
        fields = asdict(self)
        if self.levels == _UNNAMED_LEVELS:
            del fields["levels"]
        for name in ("constant", "mix", "condition"):
            if not fields[name]:
                del fields[name]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """What `to_json` wrote; errors as the constructor."""
        fields = {"levels": _UNNAMED_LEVELS, **json.loads(text)}
        tuples: dict[str, Any] = {name: tuple(values) for name, values in fields.items() if name != "condition"}
        return cls(**tuples, condition=fields.get("condition", ""))

    def adds_up_with(self, other: Layout) -> bool:
        """Whether the entries of both layouts' vectors mean the same, so that their counts can be added."""
        return (self.signals, self.levels) == (other.signals, other.levels)

    @property
    def size(self) -> int:
        """V, the number of entries of a vector."""
        return len(self.signals) * BINS + len(TAIL)

    def index(self, signal: str) -> int:
        """Position of a signal; KeyError names the known ones."""
        try:
            return self.signals.index(signal)
        except ValueError:
            raise KeyError(f"no signal {signal!r} in this profile; it has {', '.join(self.signals)}") from None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each signal: learned, property or mix."""
        pairs = zip(self.signals, self.learned, strict=True)
        return tuple("learned" if learned else "mix" if signal in self.mix else "property" for signal, learned in pairs)

    @property
    def properties(self) -> tuple[str, ...]:
        """The signals that are image properties."""
        return tuple(signal for signal, kind in zip(self.signals, self.kinds, strict=True) if kind == "property")

    def select(self, names: Iterable[str]) -> tuple[str, ...]:
        """The named signals, each once; "*" stands for all, "learned", "properties" and "mix" for the groups of them.

        A profile without a signal of the group has none to select.

        Raises:
            KeyError: no such signal.
        """
        learned = tuple(compress(self.signals, self.learned))
        groups = {"*": self.signals, "learned": learned, "properties": self.properties, "mix": self.mix}
        chosen: dict[str, None] = {}  # a set that keeps the order
        for name in names:
            chosen.update(dict.fromkeys(groups[name] if name in groups else (self.signals[self.index(name)],)))
        return tuple(chosen)


def counted_under(fingerprint: str) -> str:
    """The fingerprint that a profile's counts carry: its own, and that of LEVELS where those have changed."""
    if LEVELS == _UNNAMED_LEVELS:
        return fingerprint
    return f"{fingerprint}-{blake2b(repr(LEVELS).encode(), digest_size=4).hexdigest()}"


# ------------------------------------------------------------------------------------------------ writing


def empty(layout: Layout) -> Vector:
    """A (V,) vector of zeros: the neutral element of `sum_vectors`."""
    return np.zeros(layout.size, dtype=np.uint32)


def bins(p_values: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Bin of each p-value: the number of LEVELS that are not below it (p = .05 passes the 5 % cut).

    Raises:
        ValueError: a p-value is NaN or outside (0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p > 0) & (p <= 1 + _TOLERANCE)).all():
        raise ValueError("p-values must lie in (0, 1] (got NaN or a number outside)")
    return BINS - 1 - np.searchsorted(_EDGES, p, side="left")


def fill_groups(
    layout: Layout, p_values: NDArray[np.floating[Any]], group: NDArray[np.integer[Any]], groups: int
) -> NDArray[np.uint32]:
    """Vectors of many streams' images: row k counts those with group == k; the tail holds their number, else zeros.

    Args:
        p_values: (N, S), signals in the order of the layout.
        group: (N,) numbers in [0, groups).
        groups: K, the number of rows.

    Returns: (K, V).

    Raises:
        ValueError: shapes do not match, a group outside its range, or a bad p-value.
    """
    p_values = np.asarray(p_values)
    if p_values.ndim != 2 or p_values.shape[1] != len(layout.signals):
        raise ValueError(f"p_values must be (N, {len(layout.signals)}), got {p_values.shape}")
    group = np.asarray(group, dtype=np.intp)
    if group.shape != p_values.shape[:1] or (group.size and (group.min() < 0 or group.max() >= groups)):
        raise ValueError(f"group must be ({len(p_values)},) numbers in [0, {groups})")
    column = np.arange(len(layout.signals)) * BINS + bins(p_values)
    flat = np.bincount((group[:, None] * layout.size + column).ravel(), minlength=groups * layout.size)
    vectors = flat.reshape(groups, layout.size).astype(np.uint32)
    vectors[:, IMAGES] = np.bincount(group, minlength=groups)
    return vectors


def sum_vectors(vectors: Iterable[Vector]) -> Vector:
    """Merge of one or more vectors: counts add, the longest run is the maximum. Saturates at 2**32 - 1.

    Raises:
        ValueError: there are none (an empty window is `empty(layout)`), or their sizes differ.
    """
    stacked = np.stack(list(vectors))
    total: Vector = np.minimum(stacked.sum(axis=0, dtype=np.uint64), _U32_MAX).astype(np.uint32)
    total[..., LONGEST_RUN] = stacked[..., LONGEST_RUN].max(axis=0)
    return total


# ------------------------------------------------------------------------------------------------ reading


def images(vector: Vector) -> int:
    """Images counted in a (V,) vector."""
    return int(vector[IMAGES])


def histogram(layout: Layout, vector: NDArray[np.uint32], signal: str) -> NDArray[np.uint32]:
    """(..., 9) counts per bin of one signal, from p > .5 to p <= .002."""
    start = layout.index(signal) * BINS
    return vector[..., start : start + BINS]


def exceedances(layout: Layout, vector: NDArray[np.uint32], signal: str) -> NDArray[np.int64]:
    """(..., 8) images with p <= LEVELS[l] (nested: never growing with l)."""
    counts = histogram(layout, vector, signal)[..., 1:].astype(np.int64)
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def cut_index(level: float) -> int:
    """Position of a level in LEVELS; ValueError lists them."""
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(map(str, LEVELS))} (got {level})")
    return LEVELS.index(level)


# ------------------------------------------------------------------------------------------------ reference


@lru_cache(maxsize=1024)
def reference_counts(layout: Layout, signal: str) -> NDArray[np.int64]:
    """(8,) k_l: over calibration sets, normal images pass cut l with probability Beta(k_l, n + 1 - k_l).

    One-sided k = floor(a (n + 1)); two-sided 2 floor(a (n + 1) / 2): half in each tail. The n + 1 gaps between
    calibration scores are exchangeable, so any k of them have the same law.
    """
    i = layout.index(signal)
    n1 = layout.calibration_sizes[i] + 1
    tails = 2 if layout.two_sided[i] else 1
    counts = np.array([tails * (n1 // (tails * d)) for d in _DENOMINATORS])
    counts.flags.writeable = False
    return counts


def usable_cuts(layout: Layout, signal: str) -> NDArray[np.intp]:
    """Cuts whose rate the calibration set determines well enough to bet on (k_l >= 5); a prefix of 0..7."""
    return np.flatnonzero(reference_counts(layout, signal) >= MIN_REFERENCE)


@lru_cache(maxsize=1024)
def _expected_masses(layout: Layout, signal: str) -> NDArray[np.float64]:
    """(B,) nominal share of each bin; bins beyond the last usable cut are merged into one."""
    k = reference_counts(layout, signal)[usable_cuts(layout, signal)]
    n1 = layout.calibration_sizes[layout.index(signal)] + 1
    bounds = np.concatenate([[n1], k, [0]])
    masses: NDArray[np.float64] = -np.diff(bounds) / n1
    masses.flags.writeable = False
    return masses


def distance_from_uniform(layout: Layout, vector: NDArray[np.uint32], signal: str) -> NDArray[np.float64]:
    """Total variation between the p-values' histogram and the one expected in distribution, minus its mean by chance.

    It is the smallest share of images that must have changed to turn one histogram into the other. Its mean by chance,
    from m images (m / D independent ones) and n calibration images, is subtracted, and the result is never negative:
    1/2 sum_b sqrt(2/pi q_b (1 - q_b) (D/m + 1/(n + 2))), the mean absolute deviation of a normal approximation.
    0 where there are no images. (...,) for (..., V).
    """
    i = layout.index(signal)
    expected = _expected_masses(layout, signal)
    counts = histogram(layout, vector, signal).astype(np.float64)
    merged = np.concatenate(
        [counts[..., : len(expected) - 1], counts[..., len(expected) - 1 :].sum(-1, keepdims=True)], axis=-1
    )
    total = np.maximum(merged.sum(-1), 1)
    distance = 0.5 * np.abs(merged / total[..., None] - expected).sum(-1)
    noise = layout.dependence[i] / total + 1 / (layout.calibration_sizes[i] + 2)
    chance = 0.5 * np.sqrt(2 / np.pi * noise) * np.sqrt(expected * (1 - expected)).sum()
    return np.where(merged.sum(-1) > 0, np.maximum(distance - chance, 0), 0)
