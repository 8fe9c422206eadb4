"""False alarms and delays of the product's rules, beside what others do, on simulated streams of p-values.

    PYTHONPATH=. python benchmarks/false_alarms.py [--quick] [--parts false_alarms delays scenes pan full real]
        [--data FOLDER] [--cache FILE] [-o FILE]

Every replicate is a stream with a calibration set of its own (`streams.py`), and A = 10^6 s reads as "one false alarm
per 10^6 images". The product's rules run as they are in the daemon, on bucket vectors; the others get the same images.

A drifted image lies beyond the 5 % cut with probability .9. How far beyond decides the delay, so there are two kinds:
`spread` (even over the 5 % tail: the hardest) and `shift` (normal scores moved by 2.9 sd, as of a real far-OOD set).

`full` has all signals of a profile, thirty, and compares the weights with those of before there were mixes. `real` does
so with the scores that a profile gives real images (--data as for `faults_and_drift.py`). When drifts end:
`alarm_ends.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.frames import part_pan, part_scenes
from benchmarks.other_rules import A, Entry, entries
from benchmarks.real_scores import ONE_CLASS, Played, scored
from benchmarks.streams import (
    BUCKET,
    Counts,
    EvenWeights,
    FullStreams,
    Product,
    draw,
    full_layout,
    id_shares,
    layout_of,
    ood_shares,
)
from monitor.rules.sequential.rows import State

Floats = NDArray[np.float64]
SHARES = (0.02, 0.05, 0.10, 0.30)


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


FULL_A = 1e5
"""Looser than A, so that the bound lets enough alarms through to be compared with."""


def full_false_alarms(n: int, streams: int, images: int, rng: np.random.Generator) -> dict[str, float]:
    """Per 10^6 images with all signals, bound 10."""
    source = FullStreams(rng, n, streams)
    rules = _both(source, streams, FULL_A)
    count = dict.fromkeys(rules, 0)
    for _ in range(images // BUCKET):
        vectors = source.bucket()
        for name, rule in rules.items():
            count[name] += int(rule.feed(vectors).sum())
    return {name: alarms * 1e6 / (streams * images) for name, alarms in count.items()}


def _both(source: FullStreams | Played, streams: int, a: float) -> dict[str, Product]:
    arguments = source.layout, streams, a
    return {"new": Product(*arguments, signals=("*",)), "old": EvenWeights(*arguments, signals=("*",))}


def full_delays(streams: int, clean: int, limit: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Median images from the start of a drift to the alarm with all signals; n = 2000."""
    source = FullStreams(rng, 2000, streams)
    rules = _both(source, streams, A)
    for _ in range(clean // BUCKET):
        vectors = source.bucket()
        for rule in rules.values():
            rule.feed(vectors)
    before = {name: rule.state for name, rule in rules.items()}
    either_way = np.where(np.arange(streams) % 2, 1.0, -1.0)
    drifts: dict[str, tuple[float, dict[str, Floats]]] = {f"other content {share:.0%}": (share, {}) for share in SHARES}
    drifts |= {f"mean of a mix {by} sd": (0.0, {"mix1": by * either_way}) for by in (0.1, 0.2, 0.3, 0.5)}
    drifts |= {f"mean of a property {by} sd": (0.0, {"p1": by * either_way}) for by in (0.5, 1.0, 2.0)}
    found: dict[str, dict[str, float]] = {}
    for drift, (share, moved) in drifts.items():
        found[drift] = _delays(rules, before, limit, partial(source.bucket, share, moved))
        print(
            f"  {drift:26}" + "".join(f"{name:>8} {median:6.0f}" for name, median in found[drift].items()), flush=True
        )
    return found


def _show(drift: str, medians: dict[str, float]) -> None:
    print(f"  {drift:26}" + "".join(f"{name:>8} {median:6.0f}" for name, median in medians.items()), flush=True)


def _delays(
    rules: dict[str, Product], before: dict[str, State], limit: int, draw_bucket: Callable[[], Counts]
) -> dict[str, float]:
    """Median images until each rule alarms, from the state `before`; inf where half of the streams do not in time."""
    delay = {name: np.full(len(before[name]), np.inf) for name in rules}
    for name, rule in rules.items():
        rule.state = before[name]
    for i in range(limit // BUCKET):
        vectors = draw_bucket()
        for name, rule in rules.items():
            delay[name][rule.feed(vectors) & np.isinf(delay[name])] = (i + 1) * BUCKET
        if all(np.isfinite(times).mean() > 0.55 for times in delay.values()):
            break
    return {name: float(np.sort(times)[len(times) // 2]) for name, times in delay.items()}


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


def part_full(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, Any]:
    streams, images = (30, 10_000) if options.quick else (100, 30_000)
    signals = len(full_layout(2000).signals)
    print(f"\nAll {signals} signals, weights by kind (new) and as they were (old): false alarms per 10^6, bound 10")
    alarms = {}
    for n in (500, 2000, 10_000):
        alarms[n] = full_false_alarms(n, streams, images, rng)
        shown = "".join(f"{name:>8} {rate:6.2f}" for name, rate in alarms[n].items())
        print(f"  n = {n:<22}{shown}   [{streams} sets x {images}]", flush=True)
    clean, limit = (4000, 10_000) if options.quick else (10_000, 30_000)
    print(f"Median images to the alarm, n = 2000, after {clean} normal ones; inf: not within {limit}")
    return {"false_alarms": alarms, "delays": full_delays(min(many, 80), clean, limit, rng)}


def part_real(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, Any]:
    """Delays with a profile's own scores of real images, by the weights by kind, as they were, and without mixes."""
    if not options.data and not options.cache.exists():
        print("\nReal scores: left out, since there is neither --data nor --cache")
        return {}
    played, streams = Played(scored(options.cache, options.data), rng), min(many, 30)
    rules = _both(played, streams, A) | {
        "no mix": Product(played.layout, streams, A, signals=("learned", "properties"))
    }
    for _ in range(4000 // BUCKET):
        vectors = played.bucket("normal", 1, streams)
        for rule in rules.values():
            rule.feed(vectors)
    before, found = {name: rule.state for name, rule in rules.items()}, dict[str, Any]()
    shares = {"inverted": (0.3, 1.0), ONE_CLASS: (0.1, 0.2, 0.4)}
    print(f"\nReal scores, {len(played.layout.signals)} signals: median images to the alarm [{streams} streams]")
    for drift in played.drifts:
        for share in shares.get(drift, SHARES):
            name = f"{drift} {share:.0%}"
            found[name] = _delays(rules, before, 6000, partial(played.bucket, drift, share, streams))
            _show(name, found[name])
    return found


PARTS: dict[str, Callable[[argparse.Namespace, int, np.random.Generator], Any]] = {
    "false_alarms": part_false_alarms,
    "delays": part_delays,
    "scenes": part_scenes,
    "pan": part_pan,
    "full": part_full,
    "real": part_real,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calibration sets and images: a few minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rules", default="", help="only rules whose name holds this text")
    parser.add_argument("--replicates", type=int, help="streams (calibration sets) per false-alarm figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of tar files of images, for the part `real`")
    parser.add_argument(
        "--cache", type=Path, default=Path("results/real_scores.npz"), help="scores, made where missing"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("results/false_alarms.json"))
    options = parser.parse_args()
    many = options.replicates or (100 if options.quick else 200)
    found: dict[str, Any] = {"bucket_images": BUCKET, "A": A, "sets": many}
    for part in options.parts:
        started = time.perf_counter()
        found[part] = PARTS[part](options, many, np.random.default_rng(options.seed))
        print(f"({part}: {time.perf_counter() - started:.0f} s)", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
