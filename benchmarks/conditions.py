"""Day and night: false alarms of one calibration and of one per condition, on real scores; and what conditions cost.

    PYTHONPATH=. python benchmarks/conditions.py --data FOLDER [-o FILE]

CIFAR-10 by day, and by night: a third of the light, a blue tint, sensor noise. A profile is fitted on both. Every
stream has calibration sets of its own, of SIZE images by day and as many by night, and shows CYCLE images by day, then
by night, and so on, one a second; A = 10^6 s, so the bound is one false alarm per 10^6 images. Afterwards a fault,
textures in a tenth of the images, begins with a night and ends with it.

The cost is that of `Profiles.p_values`, once with conditions by a property and once without, in turn on the same batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import detectors
from benchmarks.faults_and_drift import Pixels, Values, arrays, values_of
from benchmarks.streams import BUCKET, Counts, Product
from detectors.images.decode import Limits
from detectors.profile.calibration import Calibration, jitter
from detectors.profile.conditions import new_view
from monitor.core.buckets import Layout, fill_groups
from monitor.core.types import Partition, Record
from monitor.ingest.by_stream import ByStream
from monitor.ingest.conditions import PropertyCondition
from monitor.ingest.scoring.profiles import Profiles

FIT, POOL, OTHER = 1200, 4000, 1000
"""Images by day, and as many others by night, to learn from; to draw from; of the fault."""
SIZE, CYCLE, CYCLES, STREAMS = 1000, 2000, 5, 40
FAULTY = 0.1
A = 1e6
CONDITIONS = ("day", "night")
ARMS: dict[str, dict[str, Any]] = {
    "calibrated by day": {},
    "calibrated on both": {},
    "calibrated on both, benign_share .01, fixed": {"pi_min": 0.01, "reference": "fixed"},
    "a calibration for each": {},
}


def by_night(images: Iterable[tuple[str, Pixels]]) -> Iterator[tuple[str, Pixels]]:
    """The images as a camera sees them with little light."""
    rng = np.random.default_rng(0)
    for name, pixels in images:
        dim = pixels * np.array([0.28, 0.3, 0.36]) + rng.normal(0, 3, pixels.shape)
        yield f"{name} by night", np.clip(dim, 0, 255).astype(np.uint8)


class Streams:
    """p-values of STREAMS streams under each calibration, and their buckets."""

    def __init__(self, profile: detectors.Profile, sets: dict[str, Values], rng: np.random.Generator) -> None:
        self._rng, sides = rng, profile.two_sided
        ties = {name: jitter([f"{name}/{i}".encode() for i in range(len(v))]) for name, v in sets.items()}
        self._p: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        for _ in range(STREAMS):
            order = rng.permutation(POOL)
            held, rest = order[:SIZE], order[SIZE:]
            known: dict[tuple[str, ...], list[Calibration]] = {}
            sets_of: tuple[tuple[str, ...], ...] = (("day",), ("night",), CONDITIONS)
            for of in sets_of:
                values, tied = (np.concatenate([found[c][held] for c in of]) for found in (sets, ties))
                known[of] = [Calibration.of(values[:, s], tied, side) for s, side in enumerate(sides)]
            for condition, fault in itertools.product(CONDITIONS, ("", " fault")):
                name = condition + fault
                rows = np.arange(len(sets[name])) if fault else rest
                calibrated: tuple[tuple[str, ...], ...] = (("day",), CONDITIONS, CONDITIONS, (condition,))
                for arm, of in zip(ARMS, calibrated, strict=True):
                    columns = [c.p_values(sets[name][rows, s], ties[name][rows]) for s, c in enumerate(known[of])]
                    self._p.setdefault((arm, name), []).append(np.stack(columns, axis=1))
        signals = profile.signals, profile.two_sided, profile.learned
        self.layouts = {
            arm: Layout(
                signals[0],
                (2 * SIZE if "both" in arm else SIZE,) * len(signals[0]),
                *signals[1:],
                (1.0,) * len(signals[0]),
                mix=profile.mix_signals,
            )
            for arm in ARMS
        }

    def bucket(self, condition: str, faulty: float) -> dict[str, Counts]:
        """{arm: (K, V)}: the same images for all."""
        fault = self._rng.random((STREAMS, BUCKET)) < faulty
        of = self._rng.integers(POOL - SIZE, size=fault.shape), self._rng.integers(OTHER, size=fault.shape)
        found = {}
        for arm in ARMS:
            normal, other = (self._p[arm, condition + name] for name in ("", " fault"))
            p = np.concatenate(
                [np.where(fault[k][:, None], other[k][of[1][k]], normal[k][of[0][k]]) for k in range(STREAMS)]
            )
            found[arm] = fill_groups(self.layouts[arm], p, np.arange(len(p)) // BUCKET, STREAMS)
        return found


def play(streams: Streams, signals: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """False alarms over the cycles, then images until a fault by night alone is alarmed on."""
    rules = {
        arm: {c: Product(streams.layouts[arm], STREAMS, A, signals=signals, **options) for c in CONDITIONS}
        for arm, options in ARMS.items()
    }
    for arm, of in rules.items():
        if arm != "a calibration for each":
            of["night"] = of["day"]
    false = {arm: np.zeros(STREAMS) for arm in ARMS}
    late = {arm: np.full(STREAMS, np.nan) for arm in ARMS}
    buckets = CYCLE // BUCKET
    for cycle, condition in itertools.product(range(CYCLES + 1), CONDITIONS):
        faulty = cycle == CYCLES and condition == "night"
        quiet = {arm: ~of[condition].state["firing"] for arm, of in rules.items()}
        for i in range(buckets):
            for arm, counts in streams.bucket(condition, FAULTY if faulty else 0.0).items():
                alarms = rules[arm][condition].feed(counts)
                if not faulty:
                    false[arm] += alarms
                else:
                    late[arm][alarms & quiet[arm] & np.isnan(late[arm])] = (i + 1) * BUCKET
    images = STREAMS * CYCLE * (2 * CYCLES + 1)
    return {
        arm: {
            "false alarms per 10^6 images": round(float(false[arm].sum() / images * 1e6), 2),
            "streams with one": round(float((false[arm] > 0).mean()), 3),
            "images to the alarm by night": _median(late[arm], quiet[arm]),
            "streams that fire before": round(float(1 - quiet[arm].mean()), 3),
        }
        for arm in ARMS
    }


def _median(late: NDArray[np.float64], quiet: NDArray[np.bool_]) -> float | None:
    """None: fewer than half of the streams that did not fire before alarm."""
    found = np.where(np.isnan(late), np.inf, late)[quiet]
    middle = float(np.median(found)) if len(found) else np.inf
    return middle if np.isfinite(middle) else None


def cost(profile: detectors.Profile, images: list[Pixels], repeats: int = 15) -> dict[str, float]:
    """Seconds per batch of 64 images, half of them by night, with conditions and without."""
    rule = PropertyCondition(by="property", name="luma_p50", ranges={"night": (None, 60), "day": (60, None)})
    with_conditions = Profiles(ByStream(profile), Limits(), ByStream(None, (("*", rule),)))
    plain = Profiles(ByStream(profile), Limits())
    batch = [("cam", profile.prepare(image, str(i).encode())) for i, image in enumerate(images)]
    record = Record(Partition("images", 0), 0, 0, None, None)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(repeats):
        for name, profiles in (("with", with_conditions), ("without", plain)):
            started = time.perf_counter()
            views = [profiles.view_of(stream, record, 0, prepared) for stream, prepared in batch]
            profiles.p_values(batch, 64, views)
            times[name].append(time.perf_counter() - started)
    return {name: median(seconds) for name, seconds in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/conditions.json"))
    args = arguments.parse_args()
    train = list(arrays(args.data / "cifar10_train.tar", limit=2 * FIT))
    profile = detectors.fit_profile([*train[:FIT], *by_night(train[FIT:])], detectors.FitOptions(heat_maps=False))
    test = list(arrays(args.data / "cifar10_test.tar", limit=POOL))
    other = list(arrays(args.data / "dtd10.tar", limit=OTHER))
    sets = {
        "day": values_of(profile, test),
        "night": values_of(profile, by_night(test)),
        "day fault": values_of(profile, other),
        "night fault": values_of(profile, by_night(other)),
    }
    for name in CONDITIONS:
        view = new_view(profile, name)
        view.calibrate(sets[name][:SIZE], [f"{name}{i}".encode() for i in range(SIZE)])
        profile.conditions[name] = view
    shown = [*(image for _, image in test[:32]), *(image for _, image in by_night(test[32:64]))]
    seconds = cost(profile, shown)
    streams = Streams(profile, sets, np.random.default_rng(1))
    result: dict[str, Any] = {
        "detector": profile.manifest["detector"],
        "cost": {
            **{name: round(s, 4) for name, s in seconds.items()},
            "ratio": round(seconds["with"] / seconds["without"], 3),
        },
        **{", ".join(signals): play(streams, signals) for signals in (("ood",), ("learned",), ("*",))},
    }
    print(json.dumps(result, indent=1))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
