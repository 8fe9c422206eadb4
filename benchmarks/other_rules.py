"""What others do, and the product's window rules, on the same simulated streams as the sequential rule."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom, kstwobign

from benchmarks.streams import BUCKET, Product, layout_of
from monitor.core import buckets
from monitor.core.buckets import BINS, IMAGES, Layout
from monitor.rules.rate import RateRule

WINDOW = 1000
A = 1e6
"""Seconds per false alarm; a bucket holds an image a second, so one false alarm is allowed in 10^6 images."""


class Window:
    """A test on the last WINDOW images after every bucket; starts over after an alarm."""

    def __init__(self, n: int, streams: int, breached: Callable[[Layout, NDArray[np.uint32]], NDArray[np.bool_]]):
        self.layout, self.breached = layout_of(n), breached
        self.ring = np.zeros((WINDOW // BUCKET, streams, self.layout.size), dtype=np.int32)
        self.total = np.zeros((streams, self.layout.size), dtype=np.int64)
        self.at = 0

    def feed(self, vectors: NDArray[np.uint32]) -> NDArray[np.bool_]:
        slot = self.at % len(self.ring)
        self.total += vectors.astype(np.int64) - self.ring[slot]
        self.ring[slot] = vectors
        self.at += 1
        full = self.total[:, IMAGES] >= WINDOW
        alarms = full & self.breached(self.layout, self.total.astype(np.uint32))
        self.ring[:, alarms] = 0
        self.total[alarms] = 0
        return alarms


class Tumbling(Window):
    """A test once per WINDOW images."""

    def feed(self, vectors: NDArray[np.uint32]) -> NDArray[np.bool_]:
        self.total += vectors
        full = self.total[:, IMAGES] >= WINDOW
        alarms = full & self.breached(self.layout, self.total.astype(np.uint32)) if full.any() else full
        self.total[full] = 0
        return alarms


class River:
    """A detector of the river library on the indicator "beyond the 5 % cut", image by image."""

    def __init__(self, make: Callable[[], Any], streams: int, rng: np.random.Generator) -> None:
        self.make, self.rng = make, rng
        self.detectors = [make() for _ in range(streams)]

    def feed(self, vectors: NDArray[np.uint32]) -> NDArray[np.bool_]:
        alarms = np.zeros(len(vectors), dtype=bool)
        beyond = vectors[:, 4:BINS].sum(axis=1)
        for i, (detector, c, m) in enumerate(zip(self.detectors, beyond, vectors[:, IMAGES], strict=True)):
            values = np.zeros(int(m), dtype=int)
            values[: int(c)] = 1
            for value in self.rng.permutation(values).tolist():
                mean = getattr(detector, "estimation", 0.0)
                detector.update(value)
                # only a rise is an alarm: ADWIN also reports when a rate falls
                alarms[i] |= detector.drift_detected and getattr(detector, "estimation", 1.0) > mean
        return alarms


def naive(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return np.asarray(buckets.exceedances(layout, total, "ood")[:, 3] / WINDOW > 0.08)


def plug_in(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    p = buckets.reference_counts(layout, "ood")[3] / (layout.calibration_sizes[0] + 1)
    return np.asarray(buckets.exceedances(layout, total, "ood")[:, 3] > binom.isf(1e-4, WINDOW, p))


def upper_reference(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    n, k = layout.calibration_sizes[0], buckets.reference_counts(layout, "ood")[3]
    p = betaincinv(k, n + 1 - k, 0.99)
    return np.asarray(buckets.exceedances(layout, total, "ood")[:, 3] > binom.isf(1e-4, WINDOW, p))


def rate_rule(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    rule = RateRule(name="rate", kind="rate", threshold=0.10)
    least = next(c for c in range(WINDOW) if _rate_breaches(rule, layout, c))
    return np.asarray(buckets.exceedances(layout, total, "ood")[:, 3] >= least)


def _rate_breaches(rule: RateRule, layout: Layout, beyond: int) -> bool:
    vector = buckets.empty(layout)
    vector[[0, 4, IMAGES]] = WINDOW - beyond, beyond, WINDOW
    return bool(rule.judge_window(layout, vector).breached)


def kolmogorov(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Two-sample KS on the bins (calibration against window), asymptotic p < .001."""
    n = layout.calibration_sizes[0]
    nominal = buckets.reference_counts(layout, "ood") / (n + 1)
    d = np.abs(buckets.exceedances(layout, total, "ood") / WINDOW - nominal).max(axis=1)
    return np.asarray(kstwobign.sf(d * math.sqrt(n * WINDOW / (n + WINDOW))) < 1e-3)


def stability_index(layout: Layout, total: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Population stability index > .2, shares floored at 1e-4 as usual."""
    nominal = np.concatenate([[1], buckets.reference_counts(layout, "ood") / (layout.calibration_sizes[0] + 1), [0]])
    expected = np.maximum(-np.diff(nominal), 1e-4)
    seen = np.maximum(buckets.histogram(layout, total, "ood") / WINDOW, 1e-4)
    return np.asarray(((seen - expected) * np.log(seen / expected)).sum(axis=1) > 0.2)


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[[int, int, np.random.Generator], Any]
    slow: bool = False


def entries(only: str = "") -> list[Entry]:
    """The rules whose name holds that text."""
    return [entry for entry in _all_entries() if only in entry.name]


def _all_entries() -> list[Entry]:
    rows = [
        Entry("naive: window 1000, OOD rate > 8 %", lambda n, s, _: Window(n, s, naive)),
        Entry("binomial p < 1e-4, window 1000, plug-in", lambda n, s, _: Window(n, s, plug_in)),
        Entry("binomial p < 1e-4, upper 99 % reference", lambda n, s, _: Window(n, s, upper_reference)),
        Entry("KS p < .001 per 1000", lambda n, s, _: Tumbling(n, s, kolmogorov)),
        Entry("PSI > .2 per 1000", lambda n, s, _: Tumbling(n, s, stability_index)),
        Entry("layerwatch rate > 10 %, window 1000", lambda n, s, _: Window(n, s, rate_rule)),
        Entry("layerwatch sequential, fixed reference", lambda n, s, _: Product(layout_of(n), s, A, reference="fixed")),
        Entry("layerwatch sequential", lambda n, s, _: Product(layout_of(n), s, A)),
    ]
    try:
        from river.drift import ADWIN, PageHinkley  # noqa: PLC0415 - only installed for benchmarks
    except ImportError:
        print("river is not installed: ADWIN and Page-Hinkley left out", file=sys.stderr)
        return rows
    return [
        *rows,
        Entry("ADWIN .002 (river)", lambda _, s, rng: River(lambda: ADWIN(delta=0.002), s, rng), slow=True),
        Entry("Page-Hinkley (river)", lambda _, s, rng: River(lambda: PageHinkley(mode="up"), s, rng), slow=True),
    ]
