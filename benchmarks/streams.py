"""Simulated streams of p-values: every one has a calibration set of its own, as `false_alarms.py` needs them.

In distribution an image falls into the nine bins of a signal with probabilities drawn from the law that n calibration
scores give (gaps between uniform order statistics). Buckets hold BUCKET images of one second each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from monitor.core import buckets
from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.rules.sequential import detector, verdicts
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.plan import DOWN, UP, Plan, Sequential, plan_of
from monitor.rules.sequential.rows import initial

Floats = NDArray[np.float64]
Counts = NDArray[np.uint32]
BUCKET = 10
LAYER = 0.7
"""Correlation of a layer's score with that of the detector."""
MOVED_SD = 2.9
"""A drifted image's score: beyond the 5 % cut with probability .9, as of a real far-OOD set."""


def layout_of(n: int, dependence: float = 1.0) -> Layout:
    """One score."""
    return Layout(("ood",), (n,), (False,), (True,), (dependence,))


def full_layout(n: int) -> Layout:
    """What a profile with eight coordinates of its mix has: 5 learned signals, 17 properties, 8 mixes."""
    layers, properties, mix = (
        [f"{name}{i + 1}" for i in range(k)] for name, k in (("layer", 4), ("p", 17), ("mix", 8))
    )
    names = ("ood", *layers, *properties, *mix)
    two_sided = tuple(name in properties for name in names)
    learned = tuple(name == "ood" or name in layers for name in names)
    return Layout(names, (n,) * len(names), two_sided, learned, (1.0,) * len(names), mix=tuple(mix))


def id_shares(rng: np.random.Generator, n: int, replicates: int) -> Floats:
    """(K, 9) true shares of the bins of one score, one calibration set a row."""
    return _shares(rng, layout_of(n), "ood", replicates)


def _shares(rng: np.random.Generator, layout: Layout, signal: str, replicates: int) -> Floats:
    k = buckets.reference_counts(layout, signal)
    n = layout.calibration_sizes[layout.index(signal)]
    weights = rng.standard_gamma(-np.diff(np.concatenate([[n + 1], k, [0]])), size=(replicates, BINS))
    return weights / weights.sum(axis=1, keepdims=True)


def beyond_cuts(shares: Floats) -> Floats:
    """(K, 9) shares of bins -> (K, 8) shares beyond the cuts."""
    return np.maximum(np.cumsum(shares[:, ::-1], axis=1)[:, ::-1][:, 1:], 1e-12)


def ood_shares(shares: Floats, kind: str | float) -> Floats:
    """(K, 9) shares of drifted images; `kind` is `spread`, `shift` or the standard deviations of a shift."""
    beyond = beyond_cuts(shares)
    if kind == "spread":
        cut = beyond[:, 3:4]
        inside = np.arange(len(LEVELS)) < 3
        beyond = np.where(inside, 0.9 + 0.1 * (beyond - cut) / (1 - cut), 0.9 * beyond / cut)
    else:
        beyond = norm.sf(norm.isf(beyond) - (MOVED_SD if kind == "shift" else float(kind)))
    edges = np.concatenate([np.ones((len(shares), 1)), beyond, np.zeros((len(shares), 1))], axis=1)
    return np.maximum(-np.diff(edges, axis=1), 0)


def draw(rng: np.random.Generator, layout: Layout, shares: Floats) -> Counts:
    """(K, V) one bucket of independent images with one score."""
    vectors = np.zeros((len(shares), layout.size), dtype=np.uint32)
    vectors[:, :BINS] = rng.multinomial(BUCKET, shares)
    vectors[:, IMAGES] = BUCKET
    return vectors


class FullStreams:
    """Streams with all signals of `full_layout`: normal scores, of which the calibration sets gave the cuts."""

    def __init__(self, rng: np.random.Generator, n: int, streams: int) -> None:
        self.rng, self.layout, self.streams = rng, full_layout(n), streams
        beyond = np.stack([beyond_cuts(_shares(rng, self.layout, s, streams)) for s in self.layout.signals], axis=1)
        self.two_sided = np.array(self.layout.two_sided)
        self.cuts = norm.isf(np.where(self.two_sided[:, None], beyond / 2, beyond))
        self.layers = np.flatnonzero(self.layout.learned)[1:]  # behind `ood`

    def bucket(self, share: float = 0.0, moved: dict[str, Floats] | None = None) -> Counts:
        """(K, V) one bucket of which `share` of the images are other content, in the learned signals alone.

        moved: {signal: (K,) standard deviations by which its mean has moved}.
        """
        z = self.rng.standard_normal((self.streams, BUCKET, len(self.layout.signals)))
        drifted = self.rng.random(z.shape[:2]) < share
        z[..., 0] += MOVED_SD * drifted
        z[..., self.layers] = LAYER * z[..., :1] + np.sqrt(1 - LAYER**2) * z[..., self.layers]
        for signal, by in (moved or {}).items():
            z[..., self.layout.index(signal)] += by[:, None]
        z = np.where(self.two_sided, np.abs(z), z)
        bins = (z[..., None] > self.cuts[:, None]).sum(axis=-1)
        column = np.arange(len(self.layout.signals)) * BINS + bins
        flat = (np.arange(self.streams)[:, None, None] * self.layout.size + column).ravel()
        vectors = np.bincount(flat, minlength=self.streams * self.layout.size)
        counts = vectors.reshape(self.streams, self.layout.size).astype(np.uint32)
        counts[:, IMAGES] = BUCKET
        return counts


class Product:
    """The sequential rule as the daemon runs it."""

    def __init__(self, layout: Layout, streams: int, a: float, **options: Any) -> None:
        self.layout = layout
        self.rule = Sequential(bucket_s=BUCKET, seconds_per_false_alarm=a, **options)
        self.state = initial(self.rule, self.layout, streams)
        self.bucket = 0

    def feed(self, vectors: Counts) -> NDArray[np.bool_]:
        """(K,) which alarm with this bucket."""
        before = self.state["firing"].copy()
        self.bucket += 1
        self.state, _ = advance(self.rule, self.layout, self.state, self.bucket, vectors)
        alarms: NDArray[np.bool_] = self.state["firing"] & ~before
        return alarms


class EvenWeights(Product):
    """The same with the weights that it had before there were mixes: half on the first signal, the rest even over the
    others; bets in both directions and on all cuts whatever a signal means."""

    def __init__(self, layout: Layout, streams: int, a: float, **options: Any) -> None:
        plain = Layout(
            layout.signals,
            layout.calibration_sizes,
            layout.two_sided,
            (False,) * len(layout.signals),
            layout.dependence,
        )
        super().__init__(plain, streams, a, **options)
        self.plan = _even(plan_of(self.rule, plain))

    def feed(self, vectors: Counts) -> NDArray[np.bool_]:
        """(K,) which alarm with this bucket."""
        with (
            patch.object(detector, "plan_of", lambda *_: self.plan),
            patch.object(verdicts, "plan_of", lambda *_: self.plan),
        ):
            return super().feed(vectors)


def _even(of: Plan) -> Plan:
    names = [signal for signal, _ in of.cuts]
    count = len(set(names))
    up, down = np.zeros((len(names), len(UP))), np.zeros((len(names), len(DOWN)))
    for signal in dict.fromkeys(names):
        rows = [i for i, name in enumerate(names) if name == signal]
        first = signal == names[0]
        share = 1.0 if count == 1 else 0.5 if first else 0.5 / (count - 1)
        sides = np.ones((len(rows), 2))
        sides[3, 0] = sides.size - 1
        sides *= share / sides.sum()
        up[rows], down[rows] = sides[:, :1] / len(UP), sides[:, 1:] / len(DOWN)
    return replace(of, weights=(up, down))
