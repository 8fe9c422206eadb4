"""Many kinds of normal: every set as the ID set in turn, all candidates, and what a fit chooses from normal images.

    python benchmarks/ood_accuracy.py --normals --data DIR --models DIR [--cache DIR]

Each 32 px set teaches with seven tenths (CIFAR-10: 2,000 training images) and the other sets are OOD; the magnetic
tiles teach with their 600 good ones, and each kind of defect is OOD. Regret: how far `auto` lies below the best
candidate of the row, in mean AUROC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detectors.evaluation.metrics import auroc
from detectors.images.decode import Limits, decode
from detectors.images.prepare import resize
from detectors.images.reading import read_images
from detectors.images.tones import Tones
from detectors.methods.detector import Detector, FitContext
from detectors.methods.dlsr import DLSR, LEVELS
from detectors.methods.registry import create
from detectors.profile.backbone import Backbone
from detectors.profile.choice import choose, grids_of
from detectors.profile.reference import TURNED, Reference
from detectors.profile.spec import BackboneSpec

SMALL = (
    "cifar10_test", "cifar100", "dtd10", "flowers5", "gtsrb", "sign_digits", "mnist", "fashion_mnist", "magnetic_tile",
    "chest_xray28",
)  # fmt: skip
"""Sets of 32 px images; those of tiles and of tiles_* are the same objects and never each other's outliers."""
DEFECTS = ("tiles_blowhole", "tiles_break", "tiles_crack", "tiles_fray", "tiles_uneven")
CIFAR_LEARNED = 2000
BASELINES = ("mahalanobis", "knn", "pca")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Normal:
    """One kind of normal: images to learn from, new ones of the kind, and sets of others."""

    name: str
    learned: Pixels
    fresh: Tensor
    outliers: Mapping[str, Tensor]


class Sets:
    """Pixels and features of sets, on all grids of one backbone at one size; features come from the cache."""

    def __init__(self, name: str, spec: BackboneSpec, data: Path, cache: Path | None) -> None:
        backbone = Backbone(spec, "auto")
        self.backbone = backbone.on_grids(*grids_of(backbone))
        self._prefix, self._data, self._cache = f"{name}-{spec.input_px}", data, cache

    def pixels(self, image_set: str) -> Pixels:
        """(N, S, S, 3) of a whole set, in the order of its file."""
        size, kind = self.backbone.input_px, self.backbone.filter
        images = (decode(image, Limits()).values for _, image in read_images([self._data / f"{image_set}.tar"]))
        return np.stack([resize(Tones().rgb(values)[0], size, kind) for values in images])

    def features(self, image_set: str) -> Tensor:
        """(N, D) of a whole set."""
        path = self._cache / f"{self._prefix}-{image_set}-grids.npy" if self._cache else None
        if path and path.exists():
            return torch.from_numpy(np.load(path))
        features = self.of(self.pixels(image_set))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, features.numpy())
        return features

    def of(self, pixels: Pixels) -> Tensor:
        """(N, D) of (N, S, S, 3)."""
        return torch.cat([self.backbone.features(pixels[i : i + 64]) for i in range(0, len(pixels), 64)])


def normals(name: str, spec: BackboneSpec, tiles_px: int, data: Path, cache: Path | None) -> dict[str, Any]:
    """One backbone's table: mean AUROC by kind of normal and candidate, and the regret of `auto`."""
    rows: dict[str, Any] = {}
    small = Sets(name, replace(spec, input_px=96), data, cache)
    for kind in SMALL:
        rows[kind] = _row(small, _small(small, kind))
    large = Sets(name, replace(spec, input_px=tiles_px), data, cache)
    outliers = {defect: large.features(defect) for defect in DEFECTS}
    tiles = Normal("tiles", large.pixels("tiles_good_train"), large.features("tiles_good_test"), outliers)
    rows[f"tiles, {tiles_px} px"] = _row(large, tiles)
    regrets = [row["regret"] for row in rows.values()]
    document = {"rows": rows, "mean_regret": float(np.mean(regrets)), "worst_regret": max(regrets)}
    _show(name, document)
    return document


def _small(sets: Sets, kind: str) -> Normal:
    outliers = {other: sets.features(other) for other in SMALL if other != kind}
    if kind == "cifar10_test":
        rows = np.random.default_rng(0).permutation(20_000)[:CIFAR_LEARNED]
        return Normal(kind, sets.pixels("cifar10_train")[rows], sets.features(kind), outliers)
    features, pixels = sets.features(kind), sets.pixels(kind)
    order = np.random.default_rng(0).permutation(len(features))
    cut = len(order) * 7 // 10
    return Normal(kind, pixels[order[:cut]], features[torch.from_numpy(order[cut:])], outliers)


def _row(sets: Sets, normal: Normal) -> dict[str, Any]:
    backbone, count = sets.backbone, len(normal.learned)
    turnable = np.random.default_rng(1).permutation(count)[:TURNED]
    reference = Reference(
        sets.of(normal.learned), keys=[b""] * count, turnable={int(row): normal.learned[row] for row in turnable}
    )
    choice = choose(reference, backbone, lambda _: None)
    whole = backbone.columns(1)
    upright = backbone.on_grids(1)
    context = FitContext(turned=lambda: reference.turned(np.arange(count), upright))
    learned = reference.features[:, whole].contiguous()
    dlsr = DLSR(upright.layers).train(learned, context)
    candidates: dict[str, tuple[Detector, slice]] = {"dlsr": (dlsr, whole)}
    for level in LEVELS:
        candidates[f"dlsr {level}"] = (DLSR(upright.layers, level).fit(learned), whole)
    for grid in backbone.grids:
        columns, layers = backbone.columns(grid), backbone.on_grids(grid).layers
        fitted = create("mahalanobis-ridge", layers).fit(reference.features[:, columns])
        candidates[f"mahalanobis-ridge {grid}"] = (fitted, columns)
    for baseline in BASELINES:
        candidates[baseline] = (create(baseline, upright.layers).fit(learned), whole)
    kinds = {name: _aurocs(detector, columns, normal) for name, (detector, columns) in candidates.items()}
    means = {name: float(np.mean(list(found.values()))) for name, found in kinds.items()}
    auto = "dlsr" if choice.detector == "dlsr" else f"{choice.detector} {choice.grid}"
    best = max(means, key=means.__getitem__)
    return {
        "learned": count, "pasted": choice.table["pasted"], "auto": auto, "best": best, "mean": means,
        "regret": means[best] - means[auto], "by_outlier": kinds[auto], "level": dlsr.level,
    }  # fmt: skip


def _aurocs(detector: Detector, columns: slice, normal: Normal) -> dict[str, float]:
    def scored(features: Tensor) -> NDArray[np.float64]:
        parts: Sequence[Tensor] = features[:, columns].split(1024)
        return torch.cat([detector.score(part).double() for part in parts]).numpy()

    fresh = scored(normal.fresh)
    return {name: auroc(fresh, scored(features)) for name, features in normal.outliers.items()}


def _show(name: str, document: Mapping[str, Any]) -> None:
    rows = document["rows"]
    title = f"{name}: mean AUROC; regret mean {document['mean_regret']:.4f}, worst {document['worst_regret']:.4f}"
    table = Table(title=title, title_justify="left")
    first = next(iter(rows.values()))
    for column in ("normal", "learned", "pasted 1 / 2 / 4", *first["mean"], "auto", "regret"):
        table.add_column(column)
    for kind, row in rows.items():
        pasted = " ".join(f"{share:.3f}" for share in row["pasted"].values())
        cells = (f"{mean:.3f}" for mean in row["mean"].values())
        table.add_row(kind, str(row["learned"]), pasted, *cells, row["auto"], f"{row['regret']:.3f}")
    Console(width=220).print(table)
