"""Images of a normal set and the shifts of "Failing Loudly", scored by a profile; for benchmarks/shifts.py.

Rabanser, Günnemann and Lipton, NeurIPS 2019: Gaussian noise (gn; standard deviation 1, 10, 100 of 255), random affine
maps of the image (img; small, medium, large), a class knocked out (ko) and images of one class only (only), each of
10, 50 or 100 % of the images (of the class, where it is knocked out). The class is drawn anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from detectors import FitOptions, Profile, fit_profile, load_profile
from detectors.images.decode import Limits, decode
from detectors.images.reading import read_images
from detectors.images.tones import Tones

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
NOISE = {"1": 1.0, "10": 10.0, "100": 100.0}
AFFINE = {"small": (10, 0.05, 0.1, 0.1), "medium": (40, 0.2, 0.2, 0.2), "large": (90, 0.4, 0.3, 0.4)}
"""Rotation (degrees), translation (of the side), shear (radians) and zoom, each up to; all but small also mirror."""
IMAGE_SHIFTS = (*(("gn", size) for size in NOISE), *(("img", size) for size in AFFINE))
SHARES = (0.1, 0.5, 1.0)
SHIFTED = 1500
"""Images of the test set that are shifted, each way."""
BATCH = 64


class Shift(NamedTuple):
    """kind: gn, img, ko, only, or none; size: of gn and img; share of the images that it changes."""

    kind: str
    size: str
    share: float


CLASS_SHIFTS = tuple(Shift(kind, "", share) for kind in ("ko", "only") for share in SHARES)
SHIFTS = (*(Shift(*kind, share) for kind in IMAGE_SHIFTS for share in SHARES), *CLASS_SHIFTS)
NONE = Shift("none", "", 0.0)


@dataclass(frozen=True)
class Scored:
    """values: (N, S) of the profile's signals. features: (N, D), averaged over places. classes: (N,)."""

    values: Floats
    features: NDArray[np.float32]
    classes: NDArray[np.str_]

    def __getitem__(self, rows: NDArray[np.intp]) -> Scored:
        return Scored(self.values[rows], self.features[rows], self.classes[rows])

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """One below the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class World:
    """One normal set. images: those that the profile has not learned from; `calibrating` of them calibrate, drawn anew
    for each sample. shifted: (shifted copies, which of the images they were made of), by kind and size."""

    profile: Profile
    images: Scored
    calibrating: int
    shifted: Mapping[tuple[str, str], tuple[Scored, NDArray[np.intp]]]

    def divide(self, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows that calibrate, and those that a sample is drawn from."""
        order = rng.permutation(len(self.images.classes))
        return order[: self.calibrating], order[self.calibrating :]

    def draw(self, shift: Shift, count: int, pool: NDArray[np.intp], rng: np.random.Generator) -> Scored:
        """A sample of `count` images under a shift; without replacement where there are enough."""
        changed = round(count * shift.share)
        if shift.kind == "none":
            return self.images[_some(pool, count, rng)]
        if shift.kind in {"gn", "img"}:
            copies, origins = self.shifted[shift.kind, shift.size]
            moved = copies[_some(np.flatnonzero(np.isin(origins, pool)), changed, rng)]
            return Scored.joined([moved, self.images[_some(pool, count - changed, rng)]])
        classes = self.images.classes[pool]
        own = classes == rng.choice(np.unique(classes))
        if shift.kind == "ko":
            return self.images[_some(pool[~own | (rng.random(len(own)) >= shift.share)], count, rng)]
        return self.images[np.concatenate([_some(pool[own], changed, rng), _some(pool, count - changed, rng)])]


def cifar(data: Path, cache: Path | None) -> World:
    """CIFAR-10: a profile of 10,000 training images; 6,000 others and the 5,000 test images are new to it."""
    images = _read(data / "cifar10_train.tar")
    order = np.random.default_rng(0).permutation(len(images.names))[:16_000]
    fresh = _read(data / "cifar10_test.tar")
    return _world("cifar10", images[order[:10_000]], [images[order[10_000:]], fresh], IMAGE_SHIFTS, cache)


def small_set(name: str, data: Path, cache: Path | None) -> World:
    """Another set: a profile of four tenths of it; half of the others calibrate. No shifted images."""
    images = _read(data / f"{name}.tar")
    order = np.random.default_rng(0).permutation(len(images.names))
    learned, others = order[: len(order) * 4 // 10], order[len(order) * 4 // 10 :]
    half = len(others) // 2
    return _world(name, images[learned], [images[others[:half]], images[others[half:]]], (), cache)


def _world(
    name: str, learned: _Images, others: Sequence[_Images], shifts: Sequence[tuple[str, str]], cache: Path | None
) -> World:
    folder = cache / name if cache else None
    if folder and (folder / "profile.json").exists():
        profile = load_profile(folder, "cpu")
    else:
        options = FitOptions(device="cpu", heat_maps=False)
        profile = fit_profile(zip(learned.names.tolist(), learned.pixels, strict=True), options)
        if folder:
            profile.save(folder)
    parts = [_cached(folder, profile, f"part{i}", part) for i, part in enumerate(others)]
    first, last = len(others[0].names), len(others[-1].names)
    some = np.random.default_rng(1).choice(last, min(SHIFTED, last), replace=False)
    shifted = {}
    for kind, size in shifts:
        rng, whole = np.random.default_rng(2), others[-1][some]
        moved = replace(whole, pixels=np.stack([_shifted(image, kind, size, rng) for image in whole.pixels]))
        shifted[kind, size] = _cached(folder, profile, f"{kind}-{size}", moved), first + some
    return World(profile, Scored.joined(parts), first, shifted)


@dataclass(frozen=True)
class _Images:
    names: NDArray[np.str_]
    pixels: Pixels

    def __getitem__(self, rows: NDArray[np.intp]) -> _Images:
        return _Images(self.names[rows], self.pixels[rows])


def _read(tar: Path) -> _Images:
    """Pixels, not files: another encoder's file sizes would be a shift, too."""
    found = [(name, Tones().rgb(decode(image, Limits()).values)[0]) for name, image in read_images([tar])]
    return _Images(np.array([name for name, _ in found]), np.stack([pixels for _, pixels in found]))


def _cached(folder: Path | None, profile: Profile, what: str, images: _Images) -> Scored:
    classes = np.array([name.split("/")[-2] for name in images.names])
    path = folder / f"{what}-{profile.fingerprint}.npz" if folder else None
    if path and path.exists():
        held = np.load(path)
        return Scored(held["values"], held["features"], classes)
    values, features = [], []
    for start in range(0, len(classes), BATCH):
        prepared = [profile.prepare(image) for image in images.pixels[start : start + BATCH]]
        features.append(profile.features(prepared))
        values.append(profile.score_features(features[-1], prepared).values)
    scored = Scored(np.concatenate(values), profile.pooled(torch.cat(features)).numpy(), classes)
    if path:
        np.savez(path, values=scored.values, features=scored.features)
    return scored


def _shifted(image: Pixels, kind: str, size: str, rng: np.random.Generator) -> Pixels:
    if kind == "gn":
        return np.clip(np.rint(image + rng.normal(0, NOISE[size], image.shape)), 0, 255).astype(np.uint8)
    rotation, shift, shear, zoom = AFFINE[size]
    height, width = image.shape[:2]
    angle, slant = np.deg2rad(rng.uniform(-rotation, rotation)), rng.uniform(-shear, shear)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, -np.sin(slant)], [0, np.cos(slant)]]) @ np.diag(rng.uniform(1 - zoom, 1 + zoom, 2))
    if size != "small":
        matrix = matrix @ np.diag([rng.choice([-1, 1]), rng.choice([-1, 1]) if size == "large" else 1])
    # what lies outside repeats the edge: a black frame would be seen by any test
    large = Image.fromarray(np.pad(image, ((height, height), (width, width), (0, 0)), mode="edge"))
    centre, moved = np.array([(width - 1) / 2, (height - 1) / 2]), rng.uniform(-shift, shift, 2) * (width, height)
    start = centre + np.array([width, height]) + moved - matrix @ centre
    row = (*matrix[0], start[0], *matrix[1], start[1])
    return np.asarray(large.transform((width, height), Image.Transform.AFFINE, row, Image.Resampling.BILINEAR))


def _some(rows: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rows, count, replace=len(rows) < count)
