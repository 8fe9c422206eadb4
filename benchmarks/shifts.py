"""Which tests see that a sample of images is no longer from the reference: by sample size, over many kinds of shift.

    python benchmarks/shifts.py --data DIR [--sets gtsrb,fashion_mnist] [--draws 2] [--json] [-o FILE] [--cache DIR]

CIFAR-10 on the embedded backbone under the shifts of "Failing Loudly" (shifted_images.py). Columns, at a level of .05:

    ours         detectors.shift_test: all signals of the profile, those of the mix among them
    ood          Kolmogorov-Smirnov on the p-values of the OOD score
    components   Kolmogorov-Smirnov on 32 principal components of the features, Bonferroni: best in "Failing Loudly"
    mmd          maximum mean discrepancy of the features, a Gaussian kernel of median width, by permutation
    classifier   a linear discriminant of the components learns to tell half of both samples apart, and a binomial test
                 looks whether it can with the other half
    dataeval     DataEval's DriftUnivariate on the same components, if it is installed

All compare with the same calibration images, drawn anew for each sample from images that the profile has not learned
from. --sets: other normal sets, of which classes are knocked out or flood in. Seeded with 0.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file, as all benchmarks are

from benchmarks.shifted_images import CLASS_SHIFTS, NONE, SHIFTS, Scored, Shift, World, cifar, small_set
from detectors import Profile, Scores, shift_test
from detectors.profile.calibration import Calibration

SIZES, SMALL_SIZES = (10, 20, 50, 100, 200, 500, 1000), (20, 50, 100, 200)
LEVEL, COMPONENTS, PERMUTATIONS = 0.05, 32, 199
KERNEL_IMAGES = 1000
"""Calibration images that the kernel test compares with: its cost grows with their square."""
Column = Callable[["Trial"], float]


@dataclass(frozen=True)
class Trial:
    """A sample and what it is compared with; features are standardised, and begin with their principal components."""

    profile: Profile
    reference: Scored
    sample: Scored
    rng: np.random.Generator

    @property
    def components(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the reference and of the sample."""
        return self.reference.features[:, :COMPONENTS], self.sample.features[:, :COMPONENTS]


def ours(trial: Trial) -> float:
    """The permutation test on all signals."""
    view = copy.copy(trial.profile)
    jitters = trial.rng.integers(0, 2**63, len(trial.reference.values)).astype(np.uint64)
    columns = zip(trial.reference.values.T, view.two_sided, strict=True)
    view.calibrations = tuple(Calibration.of(column, jitters, both) for column, both in columns)
    scores = Scores(trial.sample.values, np.ones_like(trial.sample.values))
    return shift_test(view, scores, PERMUTATIONS).p_value


def ood(trial: Trial) -> float:
    """Of the score alone; p-values are its ranks, and the test sees only ranks."""
    return float(stats.ks_2samp(trial.sample.values[:, 0], trial.reference.values[:, 0], method="asymp").pvalue)


def components(trial: Trial) -> float:
    """The smallest of the components' p-values, times their number."""
    reference, sample = trial.components
    pairs = zip(reference.T, sample.T, strict=True)
    return COMPONENTS * min(float(stats.ks_2samp(s, r, method="asymp").pvalue) for r, s in pairs)


def mmd(trial: Trial) -> float:
    """Gretton et al., "A kernel two-sample test", JMLR 13 (2012)."""
    sample, reference = trial.sample.features, trial.reference.features[:KERNEL_IMAGES]
    both = np.concatenate([sample[:, COMPONENTS:], reference[:, COMPONENTS:]])
    squares = np.square(both).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0)
    kernel = np.exp(-distances / np.median(distances[:100]))
    m, total = len(sample), len(both)
    sides = np.full((1 + PERMUTATIONS, total), -1 / (total - m), dtype=np.float32)
    sides[0, :m] = 1 / m
    for row in sides[1:]:
        row[trial.rng.permutation(total)[:m]] = 1 / m
    found = ((sides @ kernel) * sides).sum(axis=1)
    return float((found >= found[0] - 1e-9).mean())


def classifier(trial: Trial) -> float:
    """Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017."""
    reference, sample = trial.components
    reference = reference[trial.rng.permutation(len(reference))[: len(sample)]]
    half = len(sample) // 2
    inner = (np.cov(reference[:half].T) + np.cov(sample[:half].T)) / 2 + 0.1 * np.diag(reference.var(axis=0))
    direction = np.linalg.solve(inner, sample[:half].mean(axis=0) - reference[:half].mean(axis=0))
    cut = (sample[:half].mean(axis=0) + reference[:half].mean(axis=0)) / 2 @ direction
    right = int((sample[half:] @ direction > cut).sum() + (reference[half:] @ direction <= cut).sum())
    return float(stats.binomtest(right, 2 * (len(sample) - half), 0.5, "greater").pvalue)


COLUMNS: dict[str, Column] = {
    "ours": ours, "ood": ood, "components": components, "mmd": mmd, "classifier": classifier,
}  # fmt: skip


def columns() -> dict[str, Column]:
    """All that can be computed here."""
    try:
        drift_univariate = importlib.import_module("dataeval.shift").DriftUnivariate
    except ImportError:
        print("dataeval is not installed: its column is left out", file=sys.stderr)
        return COLUMNS

    def dataeval(trial: Trial) -> float:
        reference, sample = trial.components
        return 0.0 if drift_univariate(method="ks").fit(reference).predict(sample).drifted else 1.0

    return {**COLUMNS, "dataeval": dataeval}


def measure(
    world: World, shifts: Sequence[Shift], sizes: Sequence[int], draws: int, named: dict[str, Column]
) -> list[dict[str, Any]]:
    """One row per draw: the shift, the sample size and which columns call it shifted."""
    rng, rows = np.random.default_rng(0), []
    world = _standardised(world)
    for size in sizes:
        # half as many samples without a shift as with one: the share of false alarms needs them
        for shift in (*shifts, *(NONE,) * (len(shifts) // 2)) * draws:
            calibrating, pool = world.divide(rng)
            trial = Trial(world.profile, world.images[calibrating], world.draw(shift, size, pool, rng), rng)
            hits = {name: column(trial) <= LEVEL for name, column in named.items()}
            rows.append({"shift": shift, "images": size, **hits})
    return rows


def _standardised(world: World) -> World:
    """Each feature by its mean and deviation over the images that the profile learned from; before them the principal
    components of these."""
    learned = world.profile.reference()
    assert learned is not None
    known = world.profile.pooled(learned).numpy()
    mean, scale = known.mean(axis=0), known.std(axis=0) + 1e-5
    standard = ((known - mean) / scale).astype(np.float64)
    axes = np.linalg.eigh(standard.T @ standard / len(standard))[1][:, -COMPONENTS:].astype(np.float32)

    def of(scored: Scored) -> Scored:
        features = (scored.features - mean) / scale
        return replace(scored, features=np.concatenate([features @ axes, features], axis=1))

    shifted = {kind: (of(copies), origins) for kind, (copies, origins) in world.shifted.items()}
    return replace(world, images=of(world.images), shifted=shifted)


def shares(rows: Sequence[dict[str, Any]], name: str, sizes: Sequence[int]) -> dict[str, float]:
    """{sample size: share of samples that a column calls shifted}."""
    found = {str(size): [row[name] for row in rows if row["images"] == size] for size in sizes}
    return {size: round(float(np.mean(hits)), 3) for size, hits in found.items()}


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Means over the shifts, false alarms, and each shift by itself."""
    moved = [row for row in rows if row["shift"].kind != "none"]
    calm = [row for row in rows if row["shift"].kind == "none"]
    kinds = sorted({row["shift"] for row in moved}, key=SHIFTS.index)
    return {
        "mean": {name: shares(moved, name, sizes) for name in names},
        "no_shift": {name: round(float(np.mean([row[name] for row in calm])), 4) for name in names},
        "no_shift_by_size": {name: shares(calm, name, sizes) for name in names},
        "shifts": {
            text(kind): {name: shares([row for row in moved if row["shift"] == kind], name, sizes) for name in names}
            for kind in kinds
        },
    }


def text(shift: Shift) -> str:
    """`gn 10, 50 %`."""
    return f"{shift.kind} {shift.size}".strip() + f", {shift.share:.0%}".replace("%", " %")


def show(title: str, found: dict[str, Any], sizes: Sequence[int]) -> None:
    """The tables, on standard error."""

    def table(head: str, lines: dict[str, dict[str, float]]) -> None:
        print(f"\n{head:32}" + "".join(f"{size:>7}" for size in sizes), file=sys.stderr)
        for name, line in lines.items():
            print(f"{name:32}" + "".join(f"{line[str(size)]:>7.2f}" for size in sizes), file=sys.stderr)

    table(f"{title}: mean of the shifts", found["mean"])
    table("no shift", found["no_shift_by_size"])
    print("\nno shift, all sizes: " + ", ".join(f"{n} {x:.3f}" for n, x in found["no_shift"].items()), file=sys.stderr)
    for kind, lines in found["shifts"].items():
        table(kind, lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--models", type=Path, help="not needed: the backbone is embedded")
    arguments.add_argument("--cache", type=Path, help="keep the profile and the scores here between runs")
    arguments.add_argument("--sets", default="", help="other normal sets instead, by the names of their files")
    arguments.add_argument("--draws", type=int, default=2, help="samples of each shift and size")
    arguments.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    arguments.add_argument("-o", "--output", type=Path, help="write the whole result here")
    options = arguments.parse_args()
    started, named = time.monotonic(), columns()
    results: dict[str, Any] = {}
    if options.sets:
        for name in options.sets.split(","):
            world = small_set(name, options.data, options.cache)
            rows = measure(world, CLASS_SHIFTS, SMALL_SIZES, options.draws, named)
            results[name] = summary(rows, list(named), SMALL_SIZES)
            show(name, results[name], SMALL_SIZES)
    else:
        world = cifar(options.data, options.cache)
        print(f"profile and scores: {time.monotonic() - started:.0f} s", file=sys.stderr)
        results = summary(measure(world, SHIFTS, SIZES, options.draws, named), list(named), SIZES)
        show("CIFAR-10", results, SIZES)
    print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(results))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
