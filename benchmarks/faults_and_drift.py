"""The sequential rule on real scores: new content and sensor faults among CIFAR-10 images.

    python benchmarks/faults_and_drift.py --data FOLDER [--quick] [--cache FILE] [--json FILE]

FOLDER holds tar files of 32 x 32 images (class/name.png): cifar10_train, cifar10_test and sets of other content. A
profile is fitted on part of the training images; every image is scored once, by the product's code, and the values
are kept in --cache. Then, for many replicates: a calibration set drawn anew from held-out images, a stream of other
held-out images, and from some image on a share of another set, or a fault in every image. The rule, its verdicts and
the triage are the product's own, one image a second in buckets of ten.

Images are given as arrays, so that no codec gives a set or a fault away (`bytes_per_pixel` says nothing here).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import detectors
from detectors.images.reading import read_images
from detectors.profile.calibration import Calibration, jitter
from monitor.core import buckets
from monitor.core.buckets import BINS, IMAGES, Layout
from monitor.rules.evidence import moved_signals, triage
from monitor.rules.sequential.detector import advance, drift_start
from monitor.rules.sequential.plan import Sequential
from monitor.rules.sequential.rows import initial

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

BUCKET = 10
BUCKET_MS = 10_000
CALIBRATION = 2000
CLEAN = 2000
FAULT_IMAGES = 1000
SHARES = (0.02, 0.05, 0.10)
A = 1e6
TRIAGE_BUCKETS = 60


# ------------------------------------------------------------------------------------------------ faults


def blur(image: Pixels, sd_px: float, _: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sd_px)))


def darker(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    return (image * factor).astype(np.uint8)


def jpeg(image: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def less_blue(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    return (image * np.array([1.0, 1.0, factor])).astype(np.uint8)


def dead_rows(image: Pixels, rows: float, _: np.random.Generator) -> Pixels:
    dead = image.copy()
    dead[[11, 12, 21, 5][: int(rows)]] = 0  # a sensor's dead rows stay where they are
    return dead


def salt(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    salted = image.copy()
    salted[rng.random(image.shape[:2]) < share] = 255
    return salted


def noise(image: Pixels, sd: float, rng: np.random.Generator) -> Pixels:
    return np.clip(image + rng.normal(0, sd, image.shape), 0, 255).astype(np.uint8)


def contrast(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    return (128 + (image - 128.0) * factor).astype(np.uint8)


FAULTS: dict[str, tuple[Callable[[Pixels, float, np.random.Generator], Pixels], tuple[float, float, float]]] = {
    "Gaussian blur, sd px": (blur, (0.5, 0.8, 1.2)),
    "darker, times": (darker, (0.7, 0.5, 0.3)),
    "JPEG quality": (jpeg, (50, 25, 10)),
    "blue, times": (less_blue, (0.9, 0.75, 0.6)),
    "dead rows": (dead_rows, (1, 2, 4)),
    "salt, share": (salt, (0.005, 0.02, 0.05)),
    "noise, sd": (noise, (4, 8, 16)),
    "contrast, times": (contrast, (0.8, 0.6, 0.4)),
}


# ------------------------------------------------------------------------------------------------ scores


@dataclass(frozen=True)
class Scored:
    """Signal values of every image, by set: `pool` is in distribution, the others are other sets and faults."""

    signals: tuple[str, ...]
    two_sided: tuple[bool, ...]
    learned: tuple[bool, ...]
    mix: tuple[str, ...]
    sets: dict[str, Values]


def arrays(path: Path, skip: int = 0, limit: int | None = None) -> Iterator[tuple[str, Pixels]]:
    """(name, pixels) of a tar file's images, shuffled the same way every time (tar files are sorted by class)."""
    images = list(read_images([path]))
    order = np.random.default_rng(0).permutation(len(images))[skip : None if limit is None else skip + limit]
    for i in order:
        name, encoded = images[i]
        yield name, np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def score_everything(data: Path, quick: bool) -> Scored:
    """Fit on training images, then score held-out ones, the other sets and the faults."""
    fit_on, rest, other = (2000, 3000, 300) if quick else (8000, 6000, 1000)
    print(f"fitting on {fit_on} images ...", flush=True)
    profile = detectors.fit_profile(arrays(data / "cifar10_train.tar", limit=fit_on))
    test = list(arrays(data / "cifar10_test.tar"))
    for_faults, test = test[:FAULT_IMAGES], test[FAULT_IMAGES:]
    sets = {
        "pool": values_of(profile, itertools.chain(test, arrays(data / "cifar10_train.tar", fit_on, rest))),
        "no fault": values_of(profile, for_faults),
    }
    for path in sorted(data.glob("*.tar")):
        if not path.stem.startswith("cifar10_"):
            sets[f"ood {path.stem}"] = values_of(profile, arrays(path, limit=other))
    for name, (spoil, strengths) in FAULTS.items():
        for strength in strengths:
            rng = np.random.default_rng(1)
            spoilt = ((image_name, spoil(image, strength, rng)) for image_name, image in for_faults)
            sets[f"fault {name} {strength:g}"] = values_of(profile, spoilt)
            print(f"scored: {name} {strength:g}", flush=True)
    return Scored(profile.signals, profile.two_sided, profile.learned, profile.mix_signals, sets)


def values_of(profile: detectors.Profile, images: Any) -> Values:
    """(N, S) float64."""
    parts, images = [], iter(images)
    while batch := list(itertools.islice(images, 256)):
        parts.append(profile.score([profile.prepare(image, name.encode()) for name, image in batch]).values)
    return np.concatenate(parts)


def cached(path: Path, make: Callable[[], Scored]) -> Scored:
    if not path.exists():
        scored = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {name: getattr(scored, name) for name in ("signals", "two_sided", "learned", "mix")}
        with path.open("wb") as file:  # by name, numpy would add a suffix to it
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **scored.sets)  # type: ignore[arg-type]  # a set named allow_pickle there is not
    with np.load(path) as stored:
        facts = json.loads(str(stored["facts"]))
        sets = {name: stored[name] for name in stored.files if name != "facts"}
    return Scored(**{name: tuple(values) for name, values in facts.items()}, sets=sets)


# ------------------------------------------------------------------------------------------------ streams


class Replicates:
    """Calibration sets drawn anew, and the p-value bins that every image has under each of them."""

    def __init__(self, scored: Scored, count: int, sets: list[str], rng: np.random.Generator) -> None:
        self.layout = Layout(
            scored.signals,
            (CALIBRATION,) * len(scored.signals),
            scored.two_sided,
            scored.learned,
            (1.0,) * len(scored.signals),
            mix=scored.mix,
        )
        self.count = count
        self.bins: dict[str, Any] = {name: [] for name in ["pool", *sets]}
        ties = {name: jitter([f"{name}/{i}".encode() for i in range(len(scored.sets[name]))]) for name in self.bins}
        for _ in range(count):
            order = rng.permutation(len(scored.sets["pool"]))
            held, rest = order[:CALIBRATION], order[CALIBRATION:]
            values, keys = scored.sets["pool"], ties["pool"]
            calibrations = [
                Calibration.of(values[held, i], keys[held], side) for i, side in enumerate(scored.two_sided)
            ]
            for name in self.bins:
                rows = rest if name == "pool" else np.arange(len(scored.sets[name]))
                p = [c.p_values(scored.sets[name][rows, i], ties[name][rows]) for i, c in enumerate(calibrations)]
                self.bins[name].append(buckets.bins(np.stack(p, axis=1)).astype(np.uint8))
        self.stacked = {name: np.stack(parts) for name, parts in self.bins.items()}

    def vectors(self, chosen: NDArray[np.uint8]) -> NDArray[np.uint32]:
        """(K, m, S) bins -> (K, V)."""
        k, m, s = chosen.shape
        vectors = np.zeros((k, self.layout.size), dtype=np.uint32)
        np.add.at(vectors, (np.arange(k)[:, None, None], np.arange(s) * BINS + chosen), 1)
        vectors[:, IMAGES] = m
        return vectors

    def clean(self, images: int, start: int = 0) -> NDArray[np.uint32]:
        """(B, K, V) buckets of held-out images; none is used twice."""
        return self._buckets(self.stacked["pool"][:, start : start + images])

    def mixed(self, name: str, share: float, rng: np.random.Generator) -> NDArray[np.uint32]:
        """(B, K, V) what follows the clean start: each image is one of the set with probability `share`."""
        rest, other = self.stacked["pool"][:, CLEAN:], self.stacked[name]
        images = rest.shape[1]
        drawn = np.take_along_axis(other, rng.integers(0, other.shape[1], (self.count, images))[..., None], axis=1)
        return self._buckets(np.where(rng.random((self.count, images))[..., None] < share, drawn, rest))

    def faulty(self, name: str, rng: np.random.Generator) -> NDArray[np.uint32]:
        """(B, K, V) every image faulty, each used once, in another order for each replicate."""
        order = np.argsort(rng.random(self.stacked[name].shape[:2]), axis=1)
        return self._buckets(np.take_along_axis(self.stacked[name], order[..., None], axis=1))

    def _buckets(self, bins: NDArray[np.uint8]) -> NDArray[np.uint32]:
        starts = range(0, bins.shape[1] - BUCKET + 1, BUCKET)
        return np.stack([self.vectors(bins[:, i : i + BUCKET]) for i in starts])


@dataclass(frozen=True)
class Alarm:
    """The first alarm of one replicate."""

    images: int
    cause: str
    triage: str
    late: int
    """Images between the true start and the estimated one."""
    learned: float
    properties: float


def first_alarms(
    rule: Sequential, layout: Layout, state: Any, before: NDArray[np.uint32], stream: NDArray[np.uint32]
) -> list[Alarm | None]:
    """Per replicate, the first alarm after the clean start `before` (B, K, V) that left `state`."""
    alarms: list[Alarm | None] = [None] * len(state)
    waiting, state = np.arange(len(state)), state.copy()
    history = before[-TRIAGE_BUCKETS:]
    for b in range(len(stream)):
        after, verdicts = advance(rule, layout, state[waiting], (len(before) + b) * BUCKET_MS, stream[b, waiting])
        state[waiting] = after
        for i in np.flatnonzero(after["firing"]):
            row = int(waiting[i])
            seen = np.concatenate([history[:, row], stream[: b + 1, row]])
            start = drift_start(rule, layout, after[i : i + 1], seen)
            cause = verdicts[i].cause.partition(":")[0]
            moved = moved_signals(layout, buckets.sum_vectors(seen[start:]), [cause], limit=len(layout.signals))
            sides = [
                max((m.effect for m in moved if m.learned is side and m.bound > 0), default=0.0)
                for side in (True, False)
            ]
            late = (start - len(history)) * BUCKET
            verdict = triage(moved, [cause]) or "-"
            alarms[row] = Alarm((b + 1) * BUCKET, cause, verdict, late, *sides)
        waiting = waiting[~after["firing"]]
        if not len(waiting):
            break
    return alarms


def summary(alarms: list[Alarm | None]) -> dict[str, Any]:
    found = [alarm for alarm in alarms if alarm]
    delays = sorted([alarm.images for alarm in found] + [np.inf] * (len(alarms) - len(found)))
    return {
        "median": delays[len(delays) // 2],
        "detected": len(found) / len(alarms),
        "causes": Counter(alarm.cause for alarm in found).most_common(3),
        "triage": dict(Counter(alarm.triage for alarm in found)),
        "start_error": float(np.median([abs(alarm.late) for alarm in found])) if found else None,
        "ratios": sorted(a.properties / a.learned if a.learned else np.inf for a in found if a.properties + a.learned),
    }


LISTS = {"ood": ("ood",), "learned": ("learned",), "properties": ("properties",), "mix": ("mix",), "all": ("*",)}


def rule_of(layout: Layout, chosen: str, a: float = A) -> Sequential:
    signals = layout.select(LISTS[chosen])
    return Sequential(signals=signals, bucket_s=BUCKET, seconds_per_false_alarm=a)


def false_alarms(scored: Scored, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Alarms on held-out images alone, at two bounds."""
    replicates = Replicates(scored, count, [], rng)
    stream = replicates.clean(10**9)
    images, found = count * len(stream) * BUCKET, {}
    print(f"\nNo drift: {count} calibration sets, {images} held-out images in all; alarms (bound in brackets)")
    for chosen in LISTS:
        row = {}
        for a in (1e6, 1e4):
            rule, alarms = rule_of(replicates.layout, chosen, a), 0
            state = initial(rule, replicates.layout, count)
            for b, vectors in enumerate(stream):
                before = state["firing"].copy()
                state, _ = advance(rule, replicates.layout, state, b * BUCKET_MS, vectors)
                alarms += int((state["firing"] & ~before).sum())
            row[f"{a:g}"] = {"alarms": alarms, "bound": images / a}
        shown = "; ".join(f"A = {a}: {r['alarms']} ({r['bound']:.1f})" for a, r in row.items())
        print(f"  {chosen:11} {shown}", flush=True)
        found[chosen] = row
    return found


def drift_and_faults(scored: Scored, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """First alarms for every set, share, fault and list of signals."""
    names = [name for name in scored.sets if name != "pool"]
    replicates = Replicates(scored, count, names, rng)
    before = replicates.clean(CLEAN)
    streams = {f"{n} {s:.0%}": replicates.mixed(n, s, rng) for n in names if n.startswith("ood ") for s in SHARES}
    streams |= {name: replicates.faulty(name, rng) for name in names if not name.startswith("ood ")}
    found: dict[str, Any] = {}
    for chosen in LISTS:
        rule = rule_of(replicates.layout, chosen)
        state = initial(rule, replicates.layout, count)
        for b, vectors in enumerate(before):
            state, _ = advance(rule, replicates.layout, state, b * BUCKET_MS, vectors)
        quiet = ~state["firing"]
        if not quiet.all():
            print(f"  {chosen}: {int((~quiet).sum())} replicates alarm falsely before the drift and are left out")
        for name, stream in streams.items():
            alarms = first_alarms(rule, replicates.layout, state[quiet], before[:, quiet], stream[:, quiet])
            found.setdefault(name, {})[chosen] = summary(alarms)
        print(f"  ({chosen} done)", flush=True)
    return found


def shown(result: dict[str, Any]) -> str:
    """Median delay; share of replicates that alarmed at all where it is not all of them."""
    if not np.isfinite(result["median"]):
        return f"no ({result['detected']:.0%})"
    return f"{result['median']:.0f}" + (f" ({result['detected']:.0%})" if result["detected"] < 1 else "")


def known(result: dict[str, Any]) -> str:
    """How far off the start of the drift is told (median), and the ratios of the triage (lowest, median, highest)."""
    if result["start_error"] is None:
        return ""
    ratios, unsure = result["ratios"], sum(result["triage"].values()) - len(result["ratios"])
    shown = " ".join(f"{ratios[i]:.2f}" for i in (0, len(ratios) // 2, -1)) if ratios else "-"
    return f"{result['start_error']:>8.0f}   {shown:>16}   {unsure:>4}"


def triaged(result: dict[str, Any]) -> str:
    total = sum(result["triage"].values())
    return ", ".join(f"{name} {n / total:.0%}" for name, n in sorted(result["triage"].items(), key=lambda x: -x[1]))


def print_tables(found: dict[str, Any]) -> None:
    print("\nNew content: median images to the alarm (share of replicates that alarm); triage with all signals")
    print(f"{'':32}" + "".join(f"{chosen:>16}" for chosen in LISTS) + "   triage")
    for name, row in found.items():
        if name.startswith("ood "):
            print(f"{name:32}" + "".join(f"{shown(row[c]):>16}" for c in LISTS) + f"   {triaged(row['all'])}")
    print(f"\nSensor faults in every image: images to the alarm, within {FAULT_IMAGES}; by which signal; triage")
    print(f"{'':32}" + "".join(f"{chosen:>16}" for chosen in LISTS) + "   cause, triage with all signals")
    for name, row in found.items():
        if not name.startswith("ood "):
            causes = ", ".join(f"{cause} {n}" for cause, n in row["all"]["causes"])
            print(f"{name:32}" + "".join(f"{shown(row[c]):>16}" for c in LISTS) + f"   {causes}; {triaged(row['all'])}")
    print("\nAll signals: images between the true start and the one told; property / learned share of moved images")
    print(f"{'':32}{'off by':>8}   {'ratio':>16}   alarms at which no signal was sure")
    for name, row in found.items():
        print(f"{name:32}{known(row['all'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer images and replicates")
    parser.add_argument("--cache", type=Path, default=Path("results/faults_and_drift.npz"))
    parser.add_argument("--json", type=Path, default=Path("results/faults_and_drift.json"))
    options = parser.parse_args()
    started, rng = time.perf_counter(), np.random.default_rng(0)
    scored = cached(options.cache, lambda: score_everything(options.data, options.quick))
    found: dict[str, Any] = {"false_alarms": false_alarms(scored, 20 if options.quick else 100, rng)}
    found["first_alarms"] = drift_and_faults(scored, 9 if options.quick else 30, rng)
    print_tables(found["first_alarms"])
    print(f"took {time.perf_counter() - started:.0f} s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
