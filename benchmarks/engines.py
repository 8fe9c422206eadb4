"""What an engine is worth: images per second of `Profile.score` with each, beside the bare forward pass of torch.

    (a) forward    the network alone, by torch, on ready pixels: what any program would start with
    (b) torch      Profile.score: pooling, detector, mix, properties and calibrated p-values added
    (c) openvino   the same by OpenVINO

Each scenario is MODEL:INPUT_PX. Weights are random but for the embedded backbone's: they do not matter for time. The
three take turns in rounds, since the machine is noisy; ratios are of the rounds, as least, median and largest.
`differs` is the largest difference of a signal, in units of its range.

    python benchmarks/engines.py [-o FILE] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from detectors import FitOptions, Profile, fit_profile
from detectors.engines.engine import use_engine
from detectors.profile.host_memory import keep_freed_memory
from detectors.profile.spec import BackboneSpec
from monitor.demo.story import reference

SCENARIOS = (
    "embedded:96",
    "mobilenetv2_100:96",
    "mobilenetv2_100:224",
    "efficientnet_b0:224",
    "resnet50:224",
)
LEARNED = 200
BATCH = 64
ROUNDS = 9
ROUND_S = 0.7


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO", help="MODEL:INPUT_PX")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/engines.json"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    found = {scenario: measure(scenario) for scenario in arguments.scenarios}
    table = Table(title=f"images per second, {torch.get_num_threads()} threads, batch {BATCH}")
    for heading in (
        "backbone, px",
        "forward",
        "score, torch",
        "score, openvino",
        "openvino / forward",
        "/ torch",
        "differs",
    ):
        table.add_column(heading, justify="right")
    for scenario, facts in found.items():
        rates = [f"{facts['images_per_s'][name]:.0f}" for name in ("forward", "torch", "openvino")]
        ratios = [" ".join(f"{x:.2f}" for x in facts[name]) for name in ("over_forward", "over_torch")]
        table.add_row(scenario, *rates, *ratios, facts["said"].partition("by ")[2].partition(" ")[0])
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"batch": BATCH, "threads": torch.get_num_threads(), "cpus": os.cpu_count(), "scenarios": found}
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def measure(scenario: str) -> dict[str, Any]:
    """Rates and ratios of one scenario."""
    model, _, size = scenario.partition(":")
    spec = BackboneSpec.embedded() if model == "embedded" else BackboneSpec(model, "random")
    options = FitOptions("mahalanobis-ridge", replace(spec, input_px=int(size)), "cpu", heat_maps=False)
    profile = fit_profile(reference(np.random.default_rng(0), LEARNED), options)
    images = [profile.prepare(image) for _, image in reference(np.random.default_rng(1), BATCH)]
    pixels = np.stack([image.pixels for image in images])
    said = use_engine(profile, "openvino")
    engine = profile.backbone.engine

    def score(with_engine: bool) -> Callable[[], object]:
        def run() -> object:
            profile.backbone.engine = engine if with_engine else None
            return profile.score(images)

        return run

    stages: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(profile, pixels),
        "torch": score(False),
        "openvino": score(True),
    }
    rates: dict[str, list[float]] = {name: [] for name in stages}
    for stage in stages.values():
        stage()
    for _ in range(ROUNDS):
        for name, stage in stages.items():
            rates[name].append(_rate(stage))
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    return {
        "images_per_s": medians,
        "over_forward": _spread(rates["openvino"], rates["forward"]),
        "over_torch": _spread(rates["openvino"], rates["torch"]),
        "said": said,
    }


@torch.inference_mode()
def _forward(profile: Profile, pixels: np.ndarray) -> object:
    return profile.backbone.maps(pixels)


def _rate(stage: Callable[[], object]) -> float:
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < ROUND_S or rounds == 0:
        stage()
        rounds += 1
    return BATCH * rounds / (time.perf_counter() - started)


def _spread(mine: list[float], other: list[float]) -> list[float]:
    """Least, median and largest ratio of the rounds."""
    ratios = np.array(mine) / np.array(other)
    return [round(float(x), 3) for x in (ratios.min(), np.median(ratios), ratios.max())]


if __name__ == "__main__":
    sys.exit(main())
