"""False alarms on videos, whose frames resemble each other: scenes of equal frames, and a camera that pans slowly."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.streams import BUCKET, Floats, Product, id_shares, layout_of
from detectors.profile.calibration import Calibration, jitter
from detectors.profile.dependence import of_frames
from monitor.core.buckets import IMAGES, LEVELS, Layout, fill_groups

SCENE = 8
VIDEO_A = 1e5


def scenes(rng: np.random.Generator, shares: Floats, images: int) -> NDArray[np.uint8]:
    """(K, images) bins of a video: scenes of SCENE equal frames, independent of each other."""
    edges = np.cumsum(shares, axis=1)[:, None, :-1]
    bins = (rng.random((len(shares), images // SCENE))[..., None] > edges).sum(axis=2, dtype=np.uint8)
    return np.repeat(bins, SCENE, axis=1)


def of_scenes(d: float, replicates: int, images: int, rng: np.random.Generator) -> float:
    """False alarms per 10^6 images of such a video, against a bound of 10; buckets and scenes do not line up.

    The calibration images are independent, as of a profile that was not fitted on this video.
    """
    rule, shares = Product(layout_of(2000), replicates, VIDEO_A, dependence=d), id_shares(rng, 2000, replicates)
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
    return of_frames(p_values).inflation


def part_scenes(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, float]:
    """For D = 1, the truth, and as measured."""
    images, d_hat = 20_000 if options.quick else 200_000, measured_dependence(rng)
    found = {"D": d_hat} | {f"D = {d:.1f}": of_scenes(d, many // 4, images, rng) for d in (1.0, SCENE, d_hat)}
    print(
        f"\nScenes of {SCENE} equal frames, false alarms per 10^6 against a bound of 10 [{many // 4} sets x {images}]:"
    )
    print("  " + "; ".join(f"{name}: {rate:.1f}" for name, rate in found.items() if name != "D"))
    print(f"  D-hat = {d_hat:.1f}", flush=True)
    return found


# ------------------------------------------------------------------------------------------------ a slow pan

SIGNALS = ("ood", "layer1", "p1", "p2", "mix1", "mix2")
TWO_SIDED = (False, False, True, True, False, False)
FRAMES = 20_000
CALIBRATED_ON = 6000
"""The last three tenths of the reference, as an ordered fit does."""
PAN_A = 1e5
"""Five times as long as is watched: where frames tell next to nothing, R still grows by one a second."""


def pan(rng: np.random.Generator, frames: int, period: int, memory: int) -> Floats:
    """(frames, S) raw values of a camera that pans to and fro once in `period` frames over a scene that changes by
    itself, with correlations that fall to 1/e over `memory` frames; half of the variance each."""
    t, phase = np.arange(frames)[:, None], rng.uniform(0, 2 * np.pi, len(SIGNALS))
    keeps = np.exp(-1 / memory)
    noise = rng.standard_normal((frames, len(SIGNALS))) * np.sqrt(1 - keeps**2)
    noise[0] = rng.standard_normal(len(SIGNALS))
    for i in range(1, frames):
        noise[i] += keeps * noise[i - 1]
    return np.sqrt(0.5) * (np.sqrt(2) * np.sin(2 * np.pi * t / period + phase) + noise)


def of_pan(period: int, memory: int, rng: np.random.Generator) -> dict[str, float]:
    """Alarms on FRAMES frames that follow FRAMES others, the reference; and the largest D of a signal."""
    values = pan(rng, 2 * FRAMES, period, memory)
    reference, stream = values[FRAMES - CALIBRATED_ON : FRAMES], values[FRAMES:]
    keys = jitter([b"%d" % i for i in range(len(values))])
    known, new = keys[FRAMES - CALIBRATED_ON : FRAMES], keys[FRAMES:]
    calibrations = [Calibration.of(reference[:, s], known, side) for s, side in enumerate(TWO_SIDED)]
    own = [calibration.p_values(reference[:, s], known) for s, calibration in enumerate(calibrations)]
    worth = [of_frames(column) for column in own]
    calibrations = [calibration.worth(of.usable) for calibration, of in zip(calibrations, worth, strict=True)]
    p = np.stack([calibration.p_values(stream[:, s], new) for s, calibration in enumerate(calibrations)], axis=1)
    measured = tuple(of.inflation for of in worth)
    found = {"D": max(measured)}
    for name, d in (("measured", measured), ("none", (1.0,) * len(SIGNALS))):
        layout = Layout(
            SIGNALS,
            tuple(calibration.size for calibration in calibrations),
            TWO_SIDED,
            tuple(signal in ("ood", "layer1") for signal in SIGNALS),
            d,
            mix=("mix1", "mix2"),
        )
        rule = Product(layout, 1, PAN_A, signals=("*",))
        vectors = fill_groups(layout, p, np.arange(FRAMES) // BUCKET, FRAMES // BUCKET)
        found[name] = sum(int(rule.feed(vector[None])[0]) for vector in vectors)
    return found


def part_pan(options: argparse.Namespace, many: int, rng: np.random.Generator) -> dict[str, Any]:
    """With D as `fit` measures it on the reference's calibration part, and as if frames were independent."""
    repeats = max(2, many // (50 if options.quick else 10))
    print(
        f"\nSlow pans: mean alarms in {FRAMES} frames, bound {FRAMES / PAN_A:g}; D from the reference [{repeats} each]"
    )
    found: dict[str, Any] = {}
    for period, memory in ((500, 20), (2000, 100), (6000, 300), (20_000, 300)):
        runs = [of_pan(period, memory, rng) for _ in range(repeats)]
        row = {name: float(np.mean([run[name] for run in runs])) for name in ("measured", "none", "D")}
        print(
            f"  period {period:6}, memory {memory:4}: D measured {row['measured']:6.2f}; D = 1 {row['none']:6.2f}   "
            f"(mean of the largest D {row['D']:.0f})",
            flush=True,
        )
        found[f"period {period}, memory {memory}"] = row
    return found
