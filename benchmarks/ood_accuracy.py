"""All detectors on nine OOD sets, CIFAR-10 as ID, on two or three backbones, and the ablation behind the defaults.

    python benchmarks/ood_accuracy.py --data DIR --models DIR [--cache DIR] [--backbones imagenet,embedded,tiny]

DIR holds plain tar files of 32 px images (cifar10_train.tar, cifar10_test.tar and the OOD sets below); the models are
mobilenetv2_100.imagenet.safetensors and mobilenetv3_small_100.tiny_imagenet.safetensors (the embedded backbone ships in
the package). Everything is seeded with 0: 16,000 random CIFAR-10 training images to learn from, 600 others to be turned
(they choose the level), the 5,000 test images as ID. Prints tables and writes results/ood_accuracy.json.

With --normals every set is the ID set in turn: what a fit chooses from normal images, against all candidates
(benchmarks/normals.py).
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detectors.evaluation.metrics import auroc, fpr_at_tpr
from detectors.images.decode import Limits, decode
from detectors.images.prepare import resize
from detectors.images.reading import read_images
from detectors.images.tones import Tones
from detectors.methods import dlsr
from detectors.methods.detector import Detector, FitContext, Turned
from detectors.methods.diffusion import diffuse
from detectors.methods.dlsr import DLSR
from detectors.methods.registry import REGISTRY, create
from detectors.profile.backbone import Backbone
from detectors.profile.spec import BackboneSpec

OOD = (
    "cifar100",
    "dtd10",
    "flowers5",
    "gtsrb",
    "sign_digits",
    "mnist",
    "fashion_mnist",
    "magnetic_tile",
    "chest_xray28",
)
SEED, LEARNED, TURNED = 0, 16_000, 600
SHARED_STATE = "dlsr-mse"
"""The three published scores read one network: it is trained once."""
NOISY_STEPS = (5, 50, 90, 99)
LEVELS = (0.6, 0.3, 0.2, 0.1, 0.03, 0.01)

Scores = Mapping[str, NDArray[np.float64]]


def specs(models: Path) -> dict[str, BackboneSpec]:
    """The backbones by their name in the tables; all see 96 px."""
    half = (0.5, 0.5, 0.5)
    shipped = BackboneSpec.embedded()
    return {
        "imagenet": BackboneSpec(
            "mobilenetv2_100",
            str(models / "mobilenetv2_100.imagenet.safetensors"),
            mean=half,
            std=half,
            input_px=96,
            filter="bilinear",
            args={"pad_type": "same"},
        ),
        "embedded": shipped,
        "tiny": BackboneSpec(
            shipped.model,
            str(models / "mobilenetv3_small_100.tiny_imagenet.safetensors"),
            layers=shipped.layers,
            mean=shipped.mean,
            std=shipped.std,
            input_px=96,
            filter="bilinear",
        ),
    }


class Features:
    """Features of a set on a backbone, read from the cache where they are there."""

    def __init__(self, name: str, spec: BackboneSpec, data: Path, cache: Path | None) -> None:
        self.name, self.backbone = name, Backbone(spec, "auto")
        self._data, self._cache = data, cache

    def of(self, image_set: str) -> Tensor:
        """(N, D) of a whole set, in the order of its file."""
        return self._cached(image_set, lambda: self._pixels(image_set))

    def turned(self, image_set: str, rows: NDArray[np.int64], quarter_turns: int) -> Tensor:
        """(len(rows), D) of a set's images, turned."""

        def pixels() -> Iterator[NDArray[np.uint8]]:
            images = list(self._pixels(image_set))
            return (np.rot90(images[i], quarter_turns) for i in rows)

        return self._cached(f"{image_set}-turned{quarter_turns}", pixels)

    def _cached(self, key: str, pixels: Any) -> Tensor:
        path = self._cache / f"{self.name}-{key}.npy" if self._cache else None
        if path and path.exists():
            return torch.from_numpy(np.load(path))
        parts, batch = [], []
        for image in pixels():
            batch.append(image)
            if len(batch) == 128:
                parts.append(self.backbone.features(np.stack(batch)))
                batch = []
        parts.extend([self.backbone.features(np.stack(batch))] if batch else [])
        features = torch.cat(parts)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, features.numpy())
        return features

    def _pixels(self, image_set: str) -> Iterator[NDArray[np.uint8]]:
        for _, image in read_images([self._data / f"{image_set}.tar"]):
            yield resize(Tones().rgb(decode(image, Limits()).values)[0], self.backbone.input_px, self.backbone.filter)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--models", type=Path, required=True)
    arguments.add_argument("--cache", type=Path, help="keep features here between runs")
    arguments.add_argument("--backbones", default="imagenet,embedded")
    arguments.add_argument("--no-ablation", action="store_true")
    arguments.add_argument("--normals", action="store_true", help="every set as ID in turn, instead")
    arguments.add_argument("--tiles-px", type=int, default=224, help="input size for the tiles, with --normals")
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/ood_accuracy.json"))
    args = arguments.parse_args()
    results: dict[str, Any] = {
        "seed": SEED,
        "learned": LEARNED,
        "id": "cifar10_test",
        "ood": list(OOD),
        "backbones": {},
    }
    for name in args.backbones.split(","):
        spec = specs(args.models)[name]
        if args.normals:
            # by name, as scripts are no package: only at run time does its folder lie on the path
            normals = importlib.import_module("normals").normals
            results["backbones"][name] = normals(name, spec, args.tiles_px, args.data, args.cache)
        else:
            results["backbones"][name] = run(Features(name, spec, args.data, args.cache), not args.no_ablation)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


def run(features: Features, ablation: bool) -> dict[str, Any]:
    """Every detector, then the ablation of the default, on one backbone."""
    order = np.random.default_rng(SEED).permutation(20_000)
    upright = order[LEARNED : LEARNED + TURNED]
    reference = features.of("cifar10_train")
    learned = reference[torch.from_numpy(np.concatenate([upright, order[:LEARNED]]))]
    turned = [features.turned("cifar10_train", upright, turns) for turns in (1, 2)]
    sets = {image_set: features.of(image_set) for image_set in ("cifar10_test", *OOD)}
    fitted: dict[str, Detector] = {}
    rows: dict[str, Any] = {}
    for name in REGISTRY:
        started = time.monotonic()
        detector = create(name, features.backbone.layers)
        if isinstance(detector, DLSR):
            detector.train(learned, turning(turned))
        elif name.startswith("dlsr-") and SHARED_STATE in fitted:
            detector.restore(fitted[SHARED_STATE].state())
        else:
            detector.fit(learned)
        fitted[name] = detector
        rows[name] = evaluated({k: detector.score(v).double().numpy() for k, v in sets.items()})
        rows[name]["seconds"] = round(time.monotonic() - started, 1)
    default = fitted["dlsr"]
    assert isinstance(default, DLSR)
    show(f"{features.name}: all detectors (dlsr: {default.report})", rows)
    document: dict[str, Any] = {"detectors": rows, "dlsr": default.report}
    if ablation:
        document["ablation"] = ablate(default, fitted[SHARED_STATE], sets)
        show(f"{features.name}: ablation", document["ablation"])
    return document


def turning(turned: Sequence[Tensor]) -> FitContext:
    """For a fit whose first images are those that were turned."""
    return FitContext(turned=lambda: Turned(torch.arange(len(turned[0])), turned))


def ablate(default: DLSR, published: Any, sets: Mapping[str, Tensor]) -> dict[str, Any]:
    """The default taken apart: levels, spaces, joins, noise at scoring; and the published step at its best t."""
    rows: dict[str, Any] = {}
    p_values = {level: layer_p_values(default, sets, level) for level in LEVELS}
    for level, p in p_values.items():
        rows[f"dlsr, a = {level}"] = evaluated({k: -np.log(v).sum((1, 2)) for k, v in p.items()})
    chosen = (
        p_values[default.level] if default.level in p_values else layer_p_values(default, sets, default.level or 0.1)
    )
    for i, space in enumerate(dlsr.SPACES):
        rows[f"space {space} alone"] = evaluated({k: -np.log(v[:, i]).sum(1) for k, v in chosen.items()})
    for layer in range(len(default.layers)):
        rows[f"layer {layer + 1} alone"] = evaluated({k: -np.log(v[:, :, layer]).sum(1) for k, v in chosen.items()})
    joins = {
        "join: smallest p": lambda v: -v.min((1, 2)),
        "join: Cauchy": lambda v: np.tan((0.5 - np.minimum(v, 1 - 1e-9)) * np.pi).mean((1, 2)),
        "join: sum of p (Edgington)": lambda v: -v.sum((1, 2)),
    }
    for name, join in joins.items():
        rows[name] = evaluated({k: join(v) for k, v in chosen.items()})
    for draws in (1, 4, 16):
        noisy = layer_p_values(default, sets, default.level or 0.1, draws)
        rows[f"with noise, {draws} draws averaged"] = evaluated({k: -np.log(v).sum((1, 2)) for k, v in noisy.items()})
    for step in NOISY_STEPS:
        detector = create("dlsr-mfsim", default.layers, step=step).restore(published.state())
        rows[f"mfsim as published, t = {step}"] = evaluated(
            {k: detector.score(v).double().numpy() for k, v in sets.items()}
        )
    return rows


def layer_p_values(default: DLSR, sets: Mapping[str, Tensor], level: float, draws: int = 0) -> dict[str, Any]:
    """(N, K, L) p-values of every set among themselves' ID half: the first 1,000 ID images rank, the others are ID."""
    errors = {
        k: (noisy_errors(default, v, level, draws) if draws else default.errors(v, level)).numpy()
        for k, v in sets.items()
    }
    held, rest = errors["cifar10_test"][:1000], errors["cifar10_test"][1000:]
    errors["cifar10_test"] = rest
    return {k: ranked(v, held) for k, v in errors.items()}


@torch.inference_mode()
def noisy_errors(default: DLSR, features: Tensor, level: float, draws: int) -> Tensor:
    """(N, D) -> (N, K, L) as `DLSR.errors`, of the mean of `draws` reconstructions from noisy inputs."""
    clean, a = default.spaces(features), torch.tensor([level])
    seeded = torch.Generator().manual_seed(default.seed)
    noises = (torch.randn(clean.shape, generator=seeded) for _ in range(draws))
    again = torch.stack([default.network(diffuse(clean, a, noise), a) for noise in noises]).mean(dim=0)
    squared = torch.split((clean - again).square(), list(default.layers), dim=2)
    return torch.stack([part.sum(dim=2) for part in squared], dim=2).transpose(0, 1)


def ranked(errors: NDArray[np.float32], held: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, K, L) p-values among (n, K, L) held-out errors, falling on beyond the largest."""
    statistic = np.empty(errors.shape)
    for index in np.ndindex(errors.shape[1:]):
        column, ordered = (
            errors[(slice(None), *index)].astype(float),
            np.sort(held[(slice(None), *index)]).astype(float),
        )
        p = (1 + len(ordered) - np.searchsorted(ordered, column)) / (len(ordered) + 1)
        statistic[(slice(None), *index)] = p * np.minimum(1.0, ordered[-1] / np.maximum(column, 1e-12))
    return statistic


def evaluated(scores: Scores) -> dict[str, Any]:
    """AUROC and FPR@95TPR per OOD set, and their means."""
    id_scores = scores["cifar10_test"]
    sets = {k: (auroc(id_scores, scores[k]), fpr_at_tpr(id_scores, scores[k])) for k in OOD}
    means = np.mean(list(sets.values()), axis=0)
    return {"auroc": float(means[0]), "fpr95": float(means[1]), "sets": sets}


def show(title: str, rows: Mapping[str, Any]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "AUROC", "FPR95", *OOD):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        cells = (f"{row['sets'][k][0]:.3f}" for k in OOD)
        table.add_row(name, f"{row['auroc']:.3f}", f"{row['fpr95']:.3f}", *cells)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
