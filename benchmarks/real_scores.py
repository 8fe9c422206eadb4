"""A profile's signals of real images, and streams drawn from them: normal, drifted, of the reference."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import detectors
from benchmarks.faults_and_drift import Pixels, Values, arrays, values_of
from benchmarks.streams import BUCKET, Counts
from detectors.profile.calibration import Calibration, jitter
from monitor.core.buckets import Layout, fill_groups

FIT, OTHER, CALIBRATION = 5000, 1000, 2000
NORMAL = 4000, 6000
"""Images left out of the fit, and test images."""
DRIFTS = ("gtsrb", "dtd10", "mnist")
ONE_CLASS = "automobile"
"""Of the normal classes: more images of it are a drift of the mix, though each of them is normal."""
SMALL, CLIP = 600, 400
"""Images of a small reference, which a detector knows by heart, and of the clip that is played again."""


@dataclass(frozen=True)
class Scores:
    """Values of every signal by set; `again` holds p-values: those that a small reference has under its own profile.

    labels: (SMALL,) classes of these images.
    """

    signals: tuple[str, ...]
    two_sided: tuple[bool, ...]
    learned: tuple[bool, ...]
    mix: tuple[str, ...]
    sets: dict[str, Values]
    labels: NDArray[np.str_]


def scored(cache: Path, data: Path | None) -> Scores:
    """From the cache; made from the images in the folder where it does not exist."""
    if not cache.exists():
        if data is None:
            raise SystemExit(f"{cache} does not exist: give --data")
        scores = _score(data)
        cache.parent.mkdir(parents=True, exist_ok=True)
        facts = {name: getattr(scores, name) for name in ("signals", "two_sided", "learned", "mix")}
        sets = {f"set {name}": values for name, values in scores.sets.items()}
        np.savez_compressed(cache, facts=np.array(json.dumps(facts)), labels=scores.labels, **sets)  # type: ignore[arg-type]  # no set is named allow_pickle
    with np.load(cache) as stored:
        facts = {name: tuple(values) for name, values in json.loads(str(stored["facts"])).items()}
        sets = {name.removeprefix("set "): stored[name] for name in stored.files if name.startswith("set ")}
        return Scores(**facts, sets=sets, labels=stored["labels"])


def _score(data: Path) -> Scores:
    train = list(arrays(data / "cifar10_train.tar", limit=FIT + NORMAL[0]))
    print(f"fitting on {FIT} images ...", flush=True)
    profile = detectors.fit_profile(train[:FIT])
    test = list(arrays(data / "cifar10_test.tar", limit=NORMAL[1] + OTHER))
    sets = {
        "normal": values_of(profile, itertools.chain(train[FIT:], test[OTHER:])),
        "inverted": values_of(profile, _inverted(test[:OTHER])),
    }
    others = arrays(data / "cifar10_train.tar", FIT + NORMAL[0], 10 * OTHER)
    sets[ONE_CLASS] = values_of(profile, (image for image in others if ONE_CLASS in image[0]))
    for name in DRIFTS:
        sets[name] = values_of(profile, arrays(data / f"{name}.tar", limit=OTHER))
    small = detectors.fit_profile(train[:SMALL])
    sets["again"] = small.p_values(values_of(small, train[:SMALL]), [name.encode() for name, _ in train[:SMALL]])
    labels = np.array([name.split("/")[-2] for name, _ in train[:SMALL]])
    return Scores(profile.signals, profile.two_sided, profile.learned, profile.mix_signals, sets, labels)


def _inverted(images: Iterable[tuple[str, Pixels]]) -> Iterator[tuple[str, Pixels]]:
    return ((name, 255 - pixels) for name, pixels in images)


class Played:
    """p-values under one calibration on CALIBRATION held-out images, and buckets drawn from them."""

    def __init__(self, scores: Scores, rng: np.random.Generator) -> None:
        self.rng, values = rng, scores.sets["normal"]
        order = rng.permutation(len(values))
        held, rest = order[:CALIBRATION], order[CALIBRATION:]
        ties = {name: jitter([f"{name}/{i}".encode() for i in range(len(v))]) for name, v in scores.sets.items()}
        known = [Calibration.of(values[held, s], ties["normal"][held], side) for s, side in enumerate(scores.two_sided)]
        self.p: dict[str, NDArray[np.float64]] = {}
        for name, of_set in scores.sets.items():
            columns = [c.p_values(of_set[:, s], ties[name]) for s, c in enumerate(known)]
            p = of_set if name == "again" else np.stack(columns, axis=1)
            self.p[name] = p[rest] if name == "normal" else p
        count = len(scores.signals)
        fixed = scores.two_sided, scores.learned, (1.0,) * count
        self.layout = Layout(scores.signals, (CALIBRATION,) * count, *fixed, mix=scores.mix)
        self.small = replace(self.layout, calibration_sizes=(SMALL,) * count)
        """Of the profile of the small reference, which calibrates on all of its images."""
        self.labels = scores.labels
        self.drifts = tuple(name for name in scores.sets if name not in ("normal", "again"))

    def bucket(self, name: str, share: float, streams: int) -> Counts:
        """(K, V) one bucket of each stream; images of the set `name` with probability `share`."""
        images = streams * BUCKET
        normal, other = (self.p[of][self.rng.integers(len(self.p[of]), size=images)] for of in ("normal", name))
        p = np.where(self.rng.random((images, 1)) < share, other, normal)
        return fill_groups(self.layout, p, np.arange(images) // BUCKET, streams)

    def clip(self, kind: str) -> Counts:
        """(B, V) CLIP images of the small reference: at random, or a stretch of it, sorted by what images show."""
        p = self.p["again"]
        if kind == "at random":
            chosen = self.rng.permutation(len(p))[:CLIP]
        else:
            start = self.rng.integers(len(p) - CLIP + 1)
            chosen = np.argsort(self.labels, kind="stable")[start : start + CLIP]
        return fill_groups(self.small, p[chosen], np.arange(CLIP) // BUCKET, CLIP // BUCKET)
