"""Video: how often the bound of the dependence D holds, and whether the sequential rule keeps its promise with it.

    python benchmarks/video.py [--quick] [--parts coverage alarms] [-o FILE]

Three kinds of video. `equal`: independent scenes of so many equal frames. `mixed`: scenes of equal frames whose lengths
differ (geometric, with that mean: D = 2 mean - 1). `pan`: frames that resemble each other less and less, by
exp(-distance / memory). What is true of them is known: D of "p <= a" for every cut a.

`coverage`: of so many videos, in how many D is at least the true one of every cut that is used, or the frames are
called too few. `alarms`: a stretch of a video calibrates, the rest is watched, one frame a second with A = 10^5 s, so
that the bound is ten false alarms per 10^6 frames; once as measured here, once with the estimate of D at the 5 % cut
alone and every frame as a calibration image.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from detectors.profile.calibration import Calibration, jitter
from detectors.profile.dependence import FEWEST, LEAST, LEVELS, estimate, of_frames
from monitor.core.buckets import Layout, fill_groups
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.plan import Sequential
from monitor.rules.sequential.rows import initial

Floats = NDArray[np.float64]
BUCKET, A = 100, 1e5
VIDEOS = (
    *(("equal", length) for length in (1, 4, 8, 20, 100, 500)),
    *(("mixed", mean) for mean in (4, 20, 100)),
    *(("pan", memory) for memory in (2, 10, 50, 250)),
)
FRAMES = (300, 600, 2000, 6000, 20_000)
ALARMS = (
    ("equal", 1, 6000),
    ("equal", 8, 6000),
    ("mixed", 20, 6000),
    ("pan", 10, 6000),
    ("pan", 50, 6000),
    ("pan", 50, 600),
)


def video(kind: str, length: float, frames: int, rng: np.random.Generator) -> Floats:
    """(frames,) scores."""
    if kind == "pan":
        near = np.exp(-1 / length)
        noise = rng.standard_normal(frames) * np.sqrt(1 - near**2)
        noise[0] = rng.standard_normal()
        scores: Floats = lfilter([1], [1, -near], noise)
        return scores
    draw = rng.geometric if kind == "mixed" else lambda _, size: np.full(size, int(length))
    lengths = draw(1 / length, int(2 * frames / length) + 50)
    first = rng.integers(int(lengths[0]))
    while lengths.sum() < frames + first:
        lengths = np.concatenate([lengths, draw(1 / length, 50)])
    return np.repeat(rng.random(len(lengths)), lengths)[first : first + frames] + 1e-9 * rng.random(frames)


def true_inflation(kind: str, length: float, level: float) -> float:
    """D of "p <= level"."""
    if kind != "pan":
        return 2 * length - 1 if kind == "mixed" else length
    # P(both beyond) of two normals grows with their correlation r by the density at the cut (Plackett, 1954)
    r = 1 - np.logspace(0, -9, 20_001)
    cut = norm.isf(level)
    slope = np.exp(-(cut**2) / (1 + r)) / (2 * np.pi * np.sqrt(1 - r**2))
    both = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(r))])
    lags = np.exp(-np.arange(1, int(12 * length) + 2) / length)
    return float(1 + 2 * np.interp(lags, r, both).sum() / (level * (1 - level)))


def own_p_values(scores: Floats) -> Floats:
    return 1 - scores.argsort().argsort() / (len(scores) + 1.0)


def coverage(kind: str, length: float, frames: int, videos: int, rng: np.random.Generator) -> dict[str, float]:
    true = {level: true_inflation(kind, length, level) for level in LEVELS}
    honest, measured, found = [], [], []
    for _ in range(videos):
        of = of_frames(own_p_values(video(kind, length, frames, rng)))
        used = [level for level in LEVELS if int(level * (of.images + 1)) >= LEAST]
        honest.append(not of.measured or of.inflation >= max(true[level] for level in used))
        measured.append(of.measured)
        found.append(of.inflation)
    return {
        "D": max(true.values()),
        "honest": float(np.mean(honest)),
        "called_too_few": 1 - float(np.mean(measured)),
        "median": float(np.median(found)),
    }


def part_coverage(options: argparse.Namespace, rng: np.random.Generator) -> list[dict[str, Any]]:
    videos, rows = 50 if options.quick else 200, []
    print(f"bound holds, or too few frames / called too few / median bound over true D  [{videos} videos]")
    print(f"{'':22}" + "".join(f"{frames:>22,}" for frames in FRAMES))
    for kind, length in VIDEOS:
        row = {n: coverage(kind, length, n, videos, rng) for n in FRAMES}
        cells = (f"{r['honest']:5.0%} /{r['called_too_few']:5.0%} /{r['median'] / r['D']:5.1f}" for r in row.values())
        print(f"{kind:6}{length:4}  D ={row[300]['D']:6.1f}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
        rows.append({"kind": kind, "length": length, "by_frames": row})
    return rows


def alarms(scores: Floats, frames: int, honest: bool) -> tuple[int, Layout]:
    """False alarms while the frames after the first `frames`, which calibrate, are watched."""
    own = scores[:frames]
    calibration, d = Calibration.of(own, jitter([b"%d" % i for i in range(frames)]), two_sided=False), 0.0
    if honest:
        of = of_frames(own_p_values(own))
        calibration, d = calibration.worth(min(frames, max(of.images, FEWEST))), of.inflation
    else:
        d = estimate(own_p_values(own))
    layout = Layout(("ood",), (calibration.size,), (False,), (True,), (d,))
    seen = scores[frames:]
    p_values = calibration.p_values(seen, np.arange(len(seen), dtype=np.uint64))
    vectors = fill_groups(layout, p_values[:, None], np.arange(len(seen)) // BUCKET, len(seen) // BUCKET)
    rule = Sequential(bucket_s=BUCKET, seconds_per_false_alarm=A)
    state, count = initial(rule, layout), 0
    for i, vector in enumerate(vectors):
        before = bool(state["firing"][0])
        state, _ = advance(rule, layout, state, i + 1, vector[None])
        count += bool(state["firing"][0]) and not before
    return count, layout


def part_alarms(options: argparse.Namespace, rng: np.random.Generator) -> list[dict[str, Any]]:
    videos, watched, rows = (20, 50_000, []) if options.quick else (60, 100_000, [])
    print(f"\nfalse alarms per 10^6 frames, bound 10  [{videos} videos x {watched:,} frames]")
    for kind, length, frames in ALARMS:
        row: dict[str, Any] = {"kind": kind, "length": length, "frames": frames}
        made = [video(kind, length, frames + watched, rng) for _ in range(videos)]
        for name, honest in (("bound", True), ("estimate", False)):
            found = [alarms(scores, frames, honest) for scores in made]
            row[name] = {
                "per_million": sum(count for count, _ in found) * 1e6 / (videos * watched),
                "D": float(np.median([layout.dependence[0] for _, layout in found])),
                "images": float(np.median([layout.calibration_sizes[0] for _, layout in found])),
            }
        cells = (
            f"{name}: {row[name]['per_million']:7.1f} (D {row[name]['D']:.1f}, worth {row[name]['images']:.0f} images)"
            for name in ("bound", "estimate")
        )
        print(f"{kind:6}{length:4}, {frames:5} frames: " + "; ".join(cells), flush=True)
        rows.append(row)
    return rows


PARTS: dict[str, Callable[[argparse.Namespace, np.random.Generator], Any]] = {
    "coverage": part_coverage,
    "alarms": part_alarms,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer videos: a few minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/video.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"bucket_frames": BUCKET, "A": A}
    for part in options.parts:
        started = time.perf_counter()
        found[part] = PARTS[part](options, np.random.default_rng(options.seed))
        print(f"({part}: {time.perf_counter() - started:.0f} s)", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
