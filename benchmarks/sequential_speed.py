"""How long the sequential rule takes to advance many streams by one bucket, on one core.

    python benchmarks/sequential_speed.py [--streams 10000] [--json FILE]

With and without storage (rows unpacked from bytes and packed again, as the evaluator does), while watching, while every
stream learns, and while every stream is firing. Processor time, so that what else runs on the machine hardly counts.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy reads them

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from monitor.core.buckets import BINS, IMAGES, Layout
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.plan import BETS, Sequential, plan_of
from monitor.rules.sequential.rows import initial, pack, unpack

LIMIT_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=10, help="images a stream and bucket")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, Any] = {}
    for learned, properties, mixes in ((1, 0, 0), (5, 0, 0), (5, 17, 0), (5, 17, 8)):
        signals = learned + properties + mixes
        names = tuple(f"s{i}" for i in range(signals))
        two_sided, of_detector = (
            tuple(lower <= i < upper for i in range(signals))
            for lower, upper in ((learned, learned + properties), (0, learned))
        )
        layout = Layout(
            names, (2000,) * signals, two_sided, of_detector, (1.0,) * signals, mix=names[learned + properties :]
        )
        found[f"{signals} signals"] = measure(Sequential(signals=names), layout, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


def measure(rule: Sequential, layout: Layout, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    shares = -np.diff([1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0])
    vectors = np.zeros((options.repeats, options.streams, layout.size), dtype=np.uint32)
    for i in range(len(layout.signals)):
        counts = rng.multinomial(options.images, shares, size=vectors.shape[:2])
        vectors[..., i * BINS : (i + 1) * BINS] = counts
    vectors[..., IMAGES] = options.images
    first = initial(rule, layout, options.streams)
    learning, firing = first.copy(), first.copy()
    # due to tighten with this bucket; rates differ, so not every stream has the same number of images
    learning["images"] = rng.integers(990, 1000, options.streams)
    learning["passed"] = rng.binomial(learning["images"][:, None], plan_of(rule, layout).nominal)
    firing["firing"], firing["cause"] = True, 3 * BETS
    firing["left"][:, 2:5] = 0.1  # judged by three cuts
    found = {}
    for name, state in (("watching", first), ("learning", learning), ("firing", firing)):
        times = np.zeros((2, options.repeats))
        for repeat in range(options.repeats):
            rows = pack(state)
            start = time.process_time()
            unpacked = unpack(rule, layout, rows)
            middle = time.process_time()
            after, _ = advance(rule, layout, unpacked, repeat, vectors[repeat])
            end = time.process_time()
            pack(after)
            times[:, repeat] = end - middle, time.process_time() - end + middle - start
        advance_s, storage_s = np.median(times, axis=1)
        print(
            f"{options.streams} streams x {len(layout.signals)} signals, {name:9}: advance {advance_s:.3f} s, "
            f"unpack and pack {storage_s:.3f} s, {len(rows[0])} bytes a stream  (limit {LIMIT_S:g} s)",
            flush=True,
        )
        found[name] = {"advance_s": advance_s, "storage_s": storage_s, "bytes": len(rows[0])}
    return found


if __name__ == "__main__":
    main()
