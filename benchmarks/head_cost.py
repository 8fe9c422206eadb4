"""What the score costs beside the backbone's forward pass, at one batch, default and published size side by side.

    python benchmarks/head_cost.py [--batch 64] [--repeats 20] [--threads N]

Median times in one process, alternating, on the CPU; weights do not matter for time, so the published network is
untrained. `share` is backbone / (backbone + everything else that Profile.score does).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from detectors import FitOptions, fit_profile
from detectors.methods.dlsr_paper import PRESET
from detectors.methods.registry import create
from detectors.profile.host_memory import keep_freed_memory


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--repeats", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/head_cost.json"))
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command line does
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(300)]
    # Width 512, as from 2,000 images on.
    options = FitOptions("dlsr", device="cpu", detector_options={"width": 512}, heat_maps=False)
    profile = fit_profile(((str(i), image) for i, image in enumerate(images)), options)
    batch = [profile.prepare(images[i % 300], str(i).encode()) for i in range(args.batch)]
    pixels = np.stack([prepared.pixels for prepared in batch])
    features = profile.backbone.features(pixels)
    wide = profile.backbone.on_grids(4)
    placed = wide.features(np.stack([profile.prepare(image).pixels for image in images]))
    distance = create("mahalanobis-ridge", wide.layers).fit(placed)
    published = create("dlsr-mfsim", profile.backbone.layers, **{**PRESET, "epochs": 0}).fit(features)
    times = measure(
        {
            "backbone": lambda: profile.backbone.features(pixels),
            "dlsr head": lambda: profile.detector.score(features),
            "backbone, 4 x 4 cells": lambda: wide.features(pixels),
            "mahalanobis-ridge head": lambda: distance.score(placed[: args.batch]),
            "published head": lambda: published.score(features),
            "profile.score": lambda: profile.score(batch),
        },
        args.repeats,
    )
    result = {
        "batch": args.batch,
        "threads": args.threads,
        "milliseconds": {name: round(seconds * 1e3, 2) for name, seconds in times.items()},
        "dlsr head / backbone": round(times["dlsr head"] / times["backbone"], 3),
        "mahalanobis-ridge on 4 x 4 cells / dlsr, with backbone": round(
            (times["backbone, 4 x 4 cells"] + times["mahalanobis-ridge head"])
            / (times["backbone"] + times["dlsr head"]),
            3,
        ),
        "published head / backbone": round(times["published head"] / times["backbone"], 3),
        "share": round(times["backbone"] / times["profile.score"], 3),
    }
    print(json.dumps(result, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a busy moment meets them all."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
