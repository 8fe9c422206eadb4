"""False alarms and delays of the product's rules, beside what others do, on simulated streams of p-values.

    python benchmarks/false_alarms.py [--quick] [--parts false_alarms delays video clearing] [--json FILE]

Every replicate is a stream with a calibration set of its own: in distribution its images fall into the nine p-value
bins with probabilities drawn from the law that n calibration scores give (gaps between uniform order statistics).
Buckets hold BUCKET images of one second each, so A = 10^6 s reads as "one false alarm per 10^6 images". The product's
rules run as they are in the daemon, on bucket vectors; the others get the same images.

A drifted image lies beyond the 5 % cut with probability .9. How far beyond decides the delay, so there are two kinds:
`spread` (even over the 5 % tail: the hardest) and `shift` (normal scores moved by 2.9 sd, as of a real far-OOD set).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom, kstwobign, norm

from detectors.profile.calibration import dependence
from monitor.core import buckets
from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.rules.rate import RateRule
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.plan import Sequential
from monitor.rules.sequential.rows import initial

Floats = NDArray[np.float64]
BUCKET = 10
WINDOW = 1000
A = 1e6


def layout_of(n: int, dependence: float = 1.0) -> Layout:
    return Layout(("ood",), (n,), (False,), (True,), (dependence,))


def id_shares(rng: np.random.Generator, n: int, replicates: int) -> Floats:
    """(K, 9) true shares of the bins, one calibration set a row."""
    k = buckets.reference_counts(layout_of(n), "ood")
    weights = rng.standard_gamma(-np.diff(np.concatenate([[n + 1], k, [0]])), size=(replicates, BINS))
    return weights / weights.sum(axis=1, keepdims=True)


def ood_shares(shares: Floats, kind: str) -> Floats:
    """(K, 9) shares of drifted images."""
    beyond = np.maximum(np.cumsum(shares[:, ::-1], axis=1)[:, ::-1][:, 1:], 1e-12)
    if kind == "shift":
        beyond = norm.sf(norm.isf(beyond) - (norm.isf(0.05) - norm.isf(0.9)))
    else:
        cut = beyond[:, 3:4]
        inside = np.arange(len(LEVELS)) < 3
        beyond = np.where(inside, 0.9 + 0.1 * (beyond - cut) / (1 - cut), 0.9 * beyond / cut)
    edges = np.concatenate([np.ones((len(shares), 1)), beyond, np.zeros((len(shares), 1))], axis=1)
    return np.maximum(-np.diff(edges, axis=1), 0)


def draw(rng: np.random.Generator, layout: Layout, shares: Floats) -> NDArray[np.uint32]:
    """(K, V) one bucket of independent images."""
    vectors = np.zeros((len(shares), layout.size), dtype=np.uint32)
    vectors[:, :BINS] = rng.multinomial(BUCKET, shares)
    vectors[:, IMAGES] = BUCKET
    return vectors


# ------------------------------------------------------------------------------------------------ the rules


class Product:
    """The sequential rule as the daemon runs it."""

    def __init__(self, n: int, streams: int, dependence: float = 1.0, a: float = A, **options: Any) -> None:
        self.layout = layout_of(n, dependence)
        self.rule = Sequential(bucket_s=BUCKET, seconds_per_false_alarm=a, **options)
        self.state = initial(self.rule, self.layout, streams)
        self.bucket = 0

    def feed(self, vectors: NDArray[np.uint32]) -> NDArray[np.bool_]:
        before = self.state["firing"].copy()
        self.bucket += 1
        self.state, _ = advance(self.rule, self.layout, self.state, self.bucket, vectors)
        alarms: NDArray[np.bool_] = self.state["firing"] & ~before
        return alarms


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
        Entry("layerwatch sequential, fixed reference", lambda n, s, _: Product(n, s, reference="fixed")),
        Entry("layerwatch sequential", lambda n, s, _: Product(n, s)),
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


# ------------------------------------------------------------------------------------------------ measurements


def false_alarms(entry: Entry, n: int, replicates: int, images: int, rng: np.random.Generator) -> dict[str, float]:
    """Per 10^6 images: mean over replicates, its standard error, share of calibration sets above one."""
    rule, shares = entry.make(n, replicates, rng), id_shares(rng, n, replicates)
    layout = layout_of(n)
    count = np.zeros(replicates)
    for _ in range(images // BUCKET):
        count += rule.feed(draw(rng, layout, shares))
    rate = count * 1e6 / images
    return {
        "per_million": float(rate.mean()),
        "error": float(rate.std() / math.sqrt(replicates)),
        "sets_above_bound": float((rate > 1).mean()),
        "images": replicates * images,
    }


def delays(entry: Entry, kind: str, share: float, replicates: int, clean: int, rng: np.random.Generator) -> float:
    """Median images from the start of the drift to the first alarm; inf where half of them never alarm in time."""
    n, limit = 2000, 20_000
    rule, shares = entry.make(n, replicates, rng), id_shares(rng, n, replicates)
    layout = layout_of(n)
    for _ in range(clean // BUCKET):
        rule.feed(draw(rng, layout, shares))
    drifted = (1 - share) * shares + share * ood_shares(shares, kind)
    delay = np.full(replicates, np.inf)
    for i in range(limit // BUCKET):
        alarms = rule.feed(draw(rng, layout, drifted))
        delay[alarms & np.isinf(delay)] = (i + 1) * BUCKET
        if np.isfinite(delay).mean() > 0.5 and (i + 1) * BUCKET > np.nanmedian(delay):
            break
    return float(np.sort(delay)[replicates // 2])


def clearing(replicates: int, rng: np.random.Generator) -> float:
    """Median images from the end of a 10 % drift to the all-clear."""
    n = 2000
    rule, shares = Product(n, replicates), id_shares(rng, n, replicates)
    for _ in range(20_000 // BUCKET):
        rule.feed(draw(rng, rule.layout, shares))
    drifted = 0.9 * shares + 0.1 * ood_shares(shares, "shift")
    for _ in range(2000 // BUCKET):
        rule.feed(draw(rng, rule.layout, drifted))
    took = np.where(rule.state["firing"], np.inf, np.nan)
    for i in range(10_000 // BUCKET):
        rule.feed(draw(rng, rule.layout, shares))
        took[~rule.state["firing"] & np.isinf(took)] = (i + 1) * BUCKET
    return float(np.nanmedian(took))


SCENE = 8


def scenes(rng: np.random.Generator, shares: Floats, images: int) -> NDArray[np.uint8]:
    """(K, images) bins of a video: scenes of SCENE equal frames, independent of each other."""
    edges = np.cumsum(shares, axis=1)[:, None, :-1]
    bins = (rng.random((len(shares), images // SCENE))[..., None] > edges).sum(axis=2, dtype=np.uint8)
    return np.repeat(bins, SCENE, axis=1)


def video(d: float, replicates: int, images: int, rng: np.random.Generator) -> float:
    """False alarms per 10^6 images of such a video, against a bound of 10; buckets and scenes do not line up."""
    rule, shares = Product(2000, replicates, dependence=d, a=1e5), id_shares(rng, 2000, replicates)
    rows, count = np.arange(replicates)[:, None], 0
    for _ in range(images // (BUCKET * SCENE)):
        frames = scenes(rng, shares, BUCKET * SCENE)
        for start in range(0, BUCKET * SCENE, BUCKET):
            vectors = np.zeros((replicates, rule.layout.size), dtype=np.uint32)
            np.add.at(vectors, (rows, frames[:, start : start + BUCKET]), 1)
            vectors[:, IMAGES] = BUCKET
            count += int(rule.feed(vectors).sum())
    return count * 1e6 / (replicates * images)


def measured_dependence(rng: np.random.Generator) -> float:
    """D as `fit` would measure it on 50,000 ordered frames."""
    bins = scenes(rng, id_shares(rng, 2000, 1), 50_000)[0]
    p_values = np.array([1.0, *LEVELS])[bins]
    return dependence(p_values, level=0.05)


def part_false_alarms(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, Any]:
    images, found = 50_000 if options.quick else 100_000, {}
    print(f"False alarms per 10^6 ID images (bound 1) / share of calibration sets above 1   [{many} sets x {images}]")
    print(f"{'':42}" + "".join(f"{f'n = {n}':>22}" for n in (500, 2000, 10_000)))
    for entry in entries(options.rules):
        row = {
            n: false_alarms(
                entry, n, 12 if entry.slow else many, images // (5 if options.quick and entry.slow else 1), rng
            )
            for n in (500, 2000, 10_000)
        }
        cells = (f"{r['per_million']:7.2f} ±{r['error']:5.2f} /{r['sets_above_bound']:6.1%}" for r in row.values())
        print(f"{entry.name:42}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
        found[entry.name] = row
    return found


def part_delays(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("spread", "shift"):
        print(f"\nMedian delay in images, n = 2000, drifted images `{kind}`, share of them:")
        print(f"{'':42}" + "".join(f"{s:>10.0%}" for s in (0.02, 0.05, 0.10, 0.30)))
        for entry in entries(options.rules):
            few = 9 if entry.slow else max(many // 4, 21)
            clean = 50_000 if entry.name.startswith("layerwatch seq") else 20_000
            row = {s: delays(entry, kind, s, few, clean, rng) for s in (0.02, 0.05, 0.10, 0.30)}
            print(f"{entry.name:42}" + "".join(f"{d:>10.0f}" for d in row.values()), flush=True)
            found.setdefault(kind, {})[entry.name] = row
    return found


def part_video(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, float]:
    images, d_hat = 20_000 if options.quick else 200_000, measured_dependence(rng)
    found = {"D": d_hat} | {f"D = {d:.1f}": video(d, many // 4, images, rng) for d in (1.0, SCENE, d_hat)}
    print(
        f"\nScenes of {SCENE} equal frames, false alarms per 10^6 against a bound of 10 [{many // 4} sets x {images}]:"
    )
    print("  " + "; ".join(f"{name}: {rate:.1f}" for name, rate in found.items() if name != "D"))
    print(f"  D-hat = {d_hat:.1f}", flush=True)
    return found


def part_clearing(_: argparse.Namespace, many: int, rng: np.random.Generator) -> float:
    took = clearing(max(many // 4, 21), rng)
    print(f"\nMedian images from the end of a 10 % drift to the all-clear: {took:.0f}", flush=True)
    return took


PARTS: dict[str, Callable[[argparse.Namespace, int, np.random.Generator], Any]] = {
    "false_alarms": part_false_alarms,
    "delays": part_delays,
    "video": part_video,
    "clearing": part_clearing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calibration sets and images: a few minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rules", default="", help="only rules whose name holds this text")
    parser.add_argument("--replicates", type=int, help="streams (calibration sets) per false-alarm figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("results/false_alarms.json"))
    options = parser.parse_args()
    many = options.replicates or (100 if options.quick else 200)
    found: dict[str, Any] = {"bucket_images": BUCKET, "A": A, "sets": many}
    for part in options.parts:
        started = time.perf_counter()
        found[part] = PARTS[part](options, many, np.random.default_rng(options.seed))
        print(f"({part}: {time.perf_counter() - started:.0f} s)", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
