"""The usable images of a fit or a calibration, read one batch at a time: only what is learned from is kept."""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import islice
from operator import xor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.decode import ImageError, Limits
from detectors.images.likeness import Hashes, hashes_of
from detectors.images.prepare import AnyImage, Prepared, Preparer
from detectors.images.tones import Tones
from detectors.methods.detector import Turned
from detectors.profile.backbone import Backbone
from detectors.profile.depth import by_tones
from detectors.profile.places import LocalSample, PixelSample
from detectors.profile.steady import steady_features

BATCH = 64
TURNED = 600
"""Images kept to be turned (see `detectors.methods.dlsr`): the standard error of an AUROC is then about .015."""
PASTED = 300
"""Images that get a patch of another one (see `detectors.profile.choice`); the choice of a grid needs differences of
.01, which the same images on every grid show although the error of one AUROC is .02."""
TURNED_BYTES = 128 * 2**20
"""Half of PASTED at 512 px, all TURNED up to 270 px."""

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done (negative: unknown)."""
Toned = Iterable[tuple[Iterator[tuple[str, AnyImage]], Tones]]
"""Parts of the images, each with the tones to prepare it by."""


@dataclass
class Reference:
    """What is kept of each usable image, and the names of those left out.

    features: (N, D) float32. hashes: (N, 4), see `detectors.images.likeness`. measured: N rows of properties. keys: N
    tie-breakers. turnable: row -> (H, W, 3) pixels of the images that may be turned or get a patch. hash: over all
    digests, whatever their order. tones: by which the images were prepared. notes: images of which a part was not used,
    by the kind of part.
    """

    features: Tensor
    hashes: Hashes = field(default_factory=lambda: np.empty((0, 4), np.uint64))
    measured: list[NDArray[np.float64]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    turnable: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    hash: str = ""
    tones: Tones = field(default_factory=Tones)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, features: Sequence[NDArray[np.float32]]) -> Reference:
        """Of features alone, (n, D) each."""
        return cls(torch.from_numpy(np.concatenate(features)) if features else torch.empty(0, 0))

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.keys)

    @property
    def left_out(self) -> str:
        """How many images could not be used, for error messages."""
        return f"{len(self.broken)} broken, {len(self.duplicates)} duplicates left out"

    def facts(self, fit: int, calibration: int) -> dict[str, Any]:
        """For the manifest: counts, the hash, and up to 20 names of what was left out."""
        left_out = {"broken": len(self.broken), "duplicates": len(self.duplicates)}
        return {
            "images": {"fit": fit, "calibration": calibration, **left_out, **self.notes},
            "images_hash": self.hash,
            "broken": self.broken[:20],
            "duplicates": self.duplicates[:20],
        }

    def turned(self, rows: NDArray[np.int64], backbone: Backbone) -> Turned | None:
        """Up to an eighth of `rows`, turned by 90 and by 180 degrees; `Turned.rows` counts within `rows`.

        By 180 degrees only where a quarter turn would show without a look at the content: it does not fit into an
        input that is not square, and it takes the bars of a letterbox to the other sides.
        """
        chosen = [(place, row) for place, row in enumerate(rows) if row in self.turnable][: len(rows) // 8]
        if not chosen:
            return None
        features, (height, width) = [], backbone.shape
        for quarter_turns in (1, 2) if height == width and backbone.spec.resize != "letterbox" else (2,):
            pixels = [np.rot90(self.turnable[row], quarter_turns) for _, row in chosen]
            batches = (np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
            features.append(torch.cat([backbone.features(batch) for batch in batches]))
        return Turned(torch.tensor([place for place, _ in chosen]), features)

    def pasted(self, backbone: Backbone) -> tuple[NDArray[np.int64], Tensor]:
        """Rows of up to PASTED images, and their features with a patch of another image pasted in.

        The patch is a square of 7 to 21 % of the side, from a random place to a random place.
        """
        rows = np.array(sorted(self.turnable))
        rows = rows[:: -(-len(rows) // min(PASTED, len(self) // 2))]  # from everywhere: references are sorted by kind
        rng = np.random.default_rng(0)
        copies = []
        for place, row in enumerate(rows):
            copy, donor = self.turnable[row].copy(), self.turnable[rows[place - rng.integers(1, len(rows))]]
            height, width = copy.shape[:2]
            side = max(2, round(min(height, width) * rng.uniform(0.07, 0.21)))
            (top, left), (y, x) = rng.integers(0, (height - side + 1, width - side + 1), (2, 2))
            copy[top : top + side, left : left + side] = donor[y : y + side, x : x + side]
            copies.append(copy)
        batches = (np.stack(copies[start : start + BATCH]) for start in range(0, len(copies), BATCH))
        return rows, torch.cat([backbone.features(batch) for batch in batches])


def read_reference(
    images: Iterable[tuple[str, AnyImage]],
    backbone: Backbone,
    limits: Limits,
    progress: Progress,
    tones: Tones | None = None,
    local: LocalSample | None = None,
) -> Reference:
    """Prepare all images, leave out broken ones and exact duplicates, and extract the features of the others.

    Args:
        tones: by which to prepare them; None learns the white level.
        local: sees the maps of some of them.
    """
    reference = Reference(torch.empty(0, sum(backbone.layers)))
    toned = by_tones(images, limits, progress) if tones is None else [(iter(images), tones)]
    usable = _usable(toned, backbone.preparer(limits, tones or Tones()), reference)
    parts, hashes = [reference.features], [reference.hashes]
    sample, expected = PixelSample(backbone.shape), operator.length_hint(images)
    # images are decoded while the network is at work on those before
    with ThreadPoolExecutor(1, "features") as network:
        under_way: Future[Tensor] | None = None
        while batch := list(islice(usable, BATCH)):
            pixels = np.stack([image.pixels for image in batch])
            hashes.append(hashes_of([image.pixels for image in batch]))
            if local:
                sample.see(pixels)
            if under_way:
                parts.append(under_way.result())
            under_way = network.submit(steady_features, backbone, pixels)
            share = min(1.0, len(reference) / expected) if expected else -1.0
            progress(f"features of {len(reference)} images", share)
        if under_way:
            parts.append(under_way.result())
    reference.features, reference.hashes = torch.cat(parts), np.concatenate(hashes)
    if local:
        local.show(sample.kept, backbone)
    return reference


def prepared(
    images: Iterable[tuple[str, AnyImage]], preparer: Preparer, broken: list[str]
) -> Iterator[tuple[str, Prepared]]:
    """Prepare (name, image) pairs one by one; those that cannot be used are added to `broken` with the reason."""
    for name, image in images:
        try:
            yield name, preparer(image, name.encode("utf-8", "backslashreplace"))
        except ImageError as error:
            broken.append(f"{name}: {error}")


def _prepared(toned: Toned, preparer: Preparer, reference: Reference) -> Iterator[tuple[str, Prepared]]:
    for part, reference.tones in toned:
        yield from prepared(part, replace(preparer, tones=reference.tones), reference.broken)


def _usable(toned: Toned, preparer: Preparer, reference: Reference) -> Iterator[Prepared]:
    """Prepare images one by one, and fill `reference` with all but their features."""
    seen: set[bytes] = set()
    kept = turnable_images(preparer.shape)
    # A heap of (minus the digest, row, pixels) with the smallest digests: a choice by content, whatever the order.
    sample: list[tuple[int, int, NDArray[np.uint8]]] = []
    for name, image in _prepared(toned, preparer, reference):
        if image.digest in seen:
            reference.duplicates.append(name)
            continue
        seen.add(image.digest)
        reference.notes.update(image.notes)
        push = heapq.heappush if len(sample) < kept else heapq.heappushpop
        push(sample, (-digest_number(image.digest), len(reference), image.pixels))
        reference.measured.append(image.properties)
        reference.keys.append(image.key)
        yield image
    reference.turnable = {row: pixels for _, row, pixels in sample}
    reference.hash = hash_of(seen)


def turnable_images(shape: tuple[int, int]) -> int:
    """How many images of (height, width) are kept to be turned: those with the smallest `digest_number`."""
    return max(1, min(TURNED, TURNED_BYTES // (3 * shape[0] * shape[1])))


def hash_of(digests: Iterable[bytes]) -> str:
    """Of a set of images, whatever their order."""
    return f"{reduce(xor, map(digest_number, digests), 0):016x}"


def digest_number(digest: bytes) -> int:
    """By which images are chosen: the first 64 bits of the digest."""
    return int.from_bytes(digest[:8], "big")
