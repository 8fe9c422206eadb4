"""What an engine is worth: images per second of `Profile.score` with each, beside the bare forward pass of torch.

    forward     the network alone, by torch as timm makes it, on normalised pixels: what any program would start with
    tuned       the same in channels-last, as the profile runs it, with the normalising
    torch       Profile.score: pooling, detector, mix, properties and calibrated p-values added
    openvino    the same by OpenVINO in float32
    int8        the same with a quantised network, by OpenVINO (needs nncf)
    compile     the same by torch's own compiler (--with-compile: some minutes for each backbone where nothing is kept)
    published   the forward pass, and the score of the published DLSR code (`detectors.methods.dlsr_paper`)
    padim       anomalib's PaDiM on the same backbone (--with-anomalib: run this in an environment that has it)

On a CUDA device (--device), where there is one, the same profile by torch, by CUDA graphs and, fitted again, in
bfloat16: images a second of Profile.score on prepared images, bytes moved up and down for an image, and the peak of the
device's memory. Where there is none it says so.

Each scenario is MODEL:INPUT_PX. Weights are random but for the embedded backbone's: they do not matter for time. All
take turns in rounds, since the machine is noisy; ratios to `forward` are of the rounds, as least, median and largest.
`differs` is the largest difference of a signal, in units of its range, between openvino and torch.

    python benchmarks/engines.py [--batch N] [--rounds N] [--with-anomalib] [--with-compile]
                                 [--device NAME] [--device-images N] [-o FILE] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from detectors import DeviceError, FitOptions, Profile, create, fit_profile
from detectors.engines.device import choose_device
from detectors.engines.engine import use_engine
from detectors.images.prepare import AnyImage
from detectors.profile.host_memory import keep_freed_memory
from detectors.profile.quantize import quantize, sample_of
from detectors.profile.spec import BackboneSpec, EngineName
from monitor.demo.story import reference

SCENARIOS = (
    "embedded:96",
    "mobilenetv2_100:96",
    "mobilenetv2_100:224",
    "efficientnet_b0:224",
    "resnet50:224",
)
LEARNED = 200
ROUND_S = 0.7
SAMPLE = 20
"""Images by which NNCF chooses ranges: enough for time, which does not depend on them."""

Stage = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO", help="MODEL:INPUT_PX")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--with-anomalib", action="store_true")
    parser.add_argument("--with-compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--device-images", type=int, default=1024, help="given to each call of Profile.score there")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/engines.json"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    found = {scenario: measure(scenario, arguments) for scenario in arguments.scenarios}
    names = list(next(iter(found.values()))["over_forward"])
    table = Table(
        title=f"images a second in those of forward, {torch.get_num_threads()} threads, {arguments.batch} a batch"
    )
    for heading in ("backbone, px", "forward, 1/s", *names[1:], "differs"):
        table.add_column(heading, justify="right")
    for scenario, facts in found.items():
        ratios = [" ".join(f"{x:.2f}" for x in facts["over_forward"][name]) for name in names[1:]]
        table.add_row(scenario, f"{facts['images_per_s']['forward']:.0f}", *ratios, facts["differs"])
    console = Console(width=200)
    console.print(table)
    console.print(device_table(found, arguments.device))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"batch": arguments.batch, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    arguments.output.write_text(json.dumps({**facts, "scenarios": found}, indent=2) + "\n")
    return 0


def measure(scenario: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates and ratios of one scenario."""
    model, _, size = scenario.partition(":")
    spec = BackboneSpec.embedded() if model == "embedded" else BackboneSpec(model, "random")
    options = FitOptions("mahalanobis-ridge", replace(spec, input_px=int(size)), "cpu", heat_maps=False)
    learned: list[tuple[str, AnyImage]] = list(reference(np.random.default_rng(0), LEARNED))
    profile = fit_profile(learned, options)
    images = [profile.prepare(image) for _, image in reference(np.random.default_rng(1), arguments.batch)]
    pixels = np.stack([image.pixels for image in images])
    quantised = quantize(profile, sample_of(profile, learned[:SAMPLE]), learned)
    features = torch.cat([profile.features(images)] * 4)
    published = create("dlsr-mfsim", profile.backbone.layers, epochs=1).fit(features)
    said = use_engine(profile, "openvino")
    engines: dict[str, Any] = {"torch": None, "openvino": profile.backbone.engine}
    if arguments.with_compile:
        use_engine(profile, "compile")
        engines["compile"] = profile.backbone.engine
    on_device = measure_device(learned, options, arguments)
    stages: dict[str, Stage] = {"forward": _forward(profile, pixels), "tuned": lambda: profile.backbone.maps(pixels)}
    stages |= {name: partial(_score, profile, engine, images) for name, engine in engines.items()}
    stages["int8"] = lambda: quantised.score(images)
    stages["published"] = lambda: published.score(profile.backbone.eager(torch.from_numpy(pixels)))
    if arguments.with_anomalib:
        stages["padim"] = _padim(profile, pixels)
    rates: dict[str, list[float]] = {name: [] for name in stages}
    for stage in stages.values():
        stage()
    for _ in range(arguments.rounds):
        for name, stage in stages.items():
            rates[name].append(_rate(stage, arguments.batch))
    return {
        "images_per_s": {name: float(np.median(each)) for name, each in rates.items()},
        "over_forward": {name: _spread(each, rates["forward"]) for name, each in rates.items()},
        "differs": said.partition("by ")[2].partition(" ")[0],
        "device": on_device,
    }


def measure_device(
    learned: list[tuple[str, AnyImage]], options: FitOptions, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """{way: rate, bytes and memory} of a profile on the device; empty where there is none."""
    try:
        device = choose_device(arguments.device)
    except DeviceError:
        return {}
    spec = options.backbone or BackboneSpec.embedded()
    ways: dict[str, tuple[BackboneSpec, EngineName]] = {"torch": (spec, "torch")}
    if device.type == "cuda":
        ways["cudagraphs"] = (spec, "cudagraphs")
    ways["bfloat16"] = (replace(spec, precision="bfloat16"), "torch")
    found = {}
    for way, (backbone, engine) in ways.items():
        profile = fit_profile(learned, replace(options, backbone=backbone, device=str(device)))
        use_engine(profile, engine)
        images = [profile.prepare(image) for _, image in reference(np.random.default_rng(1), arguments.device_images)]
        profile.score(images)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        pipeline = profile.scorer.pipeline
        before = pipeline.uploaded_bytes, pipeline.downloaded_bytes
        profile.score(images)
        found[way] = {
            "bytes_up": (pipeline.uploaded_bytes - before[0]) / len(images),
            "bytes_down": (pipeline.downloaded_bytes - before[1]) / len(images),
            "images_per_s": float(np.median([_rate(partial(profile.score, images), len(images)) for _ in range(3)])),
            "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        }
    return found


def device_table(found: dict[str, dict[str, Any]], device: str) -> Table | str:
    """What was measured on the device, or that nothing was."""
    rows = [(scenario, way, of) for scenario, facts in found.items() for way, of in facts["device"].items()]
    if not rows:
        return f"no {device.upper().partition(':')[0]} device: not measured"
    table = Table(title=f"Profile.score on {device}")
    for heading in ("backbone, px", "by", "images, 1/s", "bytes up", "bytes down", "peak memory, MiB"):
        table.add_column(heading, justify="right")
    for scenario, way, of in rows:
        peak = "not measured" if of["peak_mib"] is None else f"{of['peak_mib']:.0f}"
        numbers = (f"{of[name]:.0f}" for name in ("images_per_s", "bytes_up", "bytes_down"))
        table.add_row(scenario, way, *numbers, peak)
    return table


def _forward(profile: Profile, pixels: np.ndarray) -> Stage:
    network = copy.deepcopy(profile.backbone.network).to(memory_format=torch.contiguous_format)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous()

    def run() -> object:
        with torch.inference_mode():
            return network(images)

    return run


def _score(profile: Profile, engine: Any, images: list[Any]) -> object:
    profile.backbone.engine = engine
    return profile.score(images)


def _padim(profile: Profile, pixels: np.ndarray) -> Stage:
    """anomalib's PaDiM on the layers of strides 4 to 16, of random weights, fitted on the batch: time does not care."""
    from anomalib.models.image.padim.torch_model import PadimModel  # noqa: PLC0415 - in an environment of its own

    spec = profile.backbone.spec
    network: Any = timm.create_model(spec.model, features_only=True)
    layers = network.feature_info
    chosen = [i for i, stride in enumerate(layers.reduction()) if 4 <= stride <= 16]
    names = [layers.module_name(i) for i in chosen]
    features = min(100, sum(layers.channels()[i] for i in chosen))  # as anomalib does with ResNet-18
    model = PadimModel(spec.model, names, pre_trained=False, n_features=features)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous()
    model.train()
    with torch.no_grad():
        model(images)
        model.fit()
    model.eval()

    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def _rate(stage: Stage, batch: int) -> float:
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < ROUND_S or rounds == 0:
        stage()
        rounds += 1
    return batch * rounds / (time.perf_counter() - started)


def _spread(mine: list[float], other: list[float]) -> list[float]:
    """Least, median and largest ratio of the rounds."""
    ratios = np.array(mine) / np.array(other)
    return [round(float(x), 3) for x in (ratios.min(), np.median(ratios), ratios.max())]


if __name__ == "__main__":
    sys.exit(main())
