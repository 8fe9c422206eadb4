"""The usable images of a fit or a calibration, read one batch at a time: only what is learned from is kept."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.images.prepare import AnyImage, ImageError, Limits, Prepared, Preparer
from detectors.methods.detector import Turned
from detectors.profile.backbone import Backbone

BATCH = 64
TURNED = 600
"""Images kept to be turned (see `detectors.methods.dlsr`): the standard error of an AUROC is then about .015."""
TURNED_BYTES = 64 * 2**20

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done (negative: unknown)."""


@dataclass
class Reference:
    """What is kept of each usable image, and the names of those left out.

    features: (N, D) float32. measured: N rows of properties. keys: N tie-breakers. turnable: row -> (S, S, 3) pixels of
    the images that may be turned. hash: over all digests, whatever their order.
    """

    features: Tensor
    measured: list[NDArray[np.float64]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    turnable: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    hash: str = ""

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
            "images": {"fit": fit, "calibration": calibration, **left_out},
            "images_hash": self.hash,
            "broken": self.broken[:20],
            "duplicates": self.duplicates[:20],
        }

    def turned(self, rows: NDArray[np.int64], backbone: Backbone) -> Turned | None:
        """Up to an eighth of `rows`, turned by 90 and by 180 degrees; `Turned.rows` counts within `rows`."""
        chosen = [(place, row) for place, row in enumerate(rows) if row in self.turnable][: len(rows) // 8]
        if not chosen:
            return None
        features = []
        for quarter_turns in (1, 2):
            pixels = [np.rot90(self.turnable[row], quarter_turns) for _, row in chosen]
            batches = (np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
            features.append(torch.cat([backbone(batch).cpu() for batch in batches]))
        return Turned(torch.tensor([place for place, _ in chosen]), features)


def read_reference(
    images: Iterable[tuple[str, AnyImage]], backbone: Backbone, limits: Limits, progress: Progress
) -> Reference:
    """Prepare all images, leave out broken ones and exact duplicates, and extract the features of the others."""
    reference = Reference(torch.empty(0, sum(backbone.layers)))
    prepared = _usable(images, Preparer(backbone.input_px, limits, backbone.filter), reference)
    parts: list[Tensor] = []
    while batch := list(islice(prepared, BATCH)):
        parts.append(backbone(np.stack([image.pixels for image in batch])).cpu())
        progress(f"features of {len(reference)} images", -1.0)
    if parts:
        reference.features = torch.cat(parts)
    return reference


def _usable(images: Iterable[tuple[str, AnyImage]], preparer: Preparer, reference: Reference) -> Iterator[Prepared]:
    """Prepare images one by one, and fill `reference` with all but their features."""
    seen: set[bytes] = set()
    sample = _Sample(reference.turnable, max(1, min(TURNED, TURNED_BYTES // (3 * preparer.input_px**2))))
    for name, image in images:
        try:
            prepared = preparer(image, name.encode("utf-8", "backslashreplace"))
        except ImageError as error:
            reference.broken.append(f"{name}: {error}")
            continue
        if prepared.digest in seen:
            reference.duplicates.append(name)
            continue
        seen.add(prepared.digest)
        sample.offer(prepared, len(reference))
        reference.measured.append(prepared.properties)
        reference.keys.append(prepared.key)
        yield prepared
    combined = 0
    for digest in seen:
        combined ^= int.from_bytes(digest[:8], "big")
    reference.hash = f"{combined:016x}"


class _Sample:
    """Pixels of the `size` images with the smallest digests: a choice by content alone, whatever the order."""

    def __init__(self, pixels: dict[int, NDArray[np.uint8]], size: int) -> None:
        self._pixels, self._size = pixels, size
        self._largest_first: list[tuple[int, int]] = []  # (minus the digest, row)

    def offer(self, prepared: Prepared, row: int) -> None:
        """Keep the image if its digest is among the smallest so far."""
        entry = (-int.from_bytes(prepared.digest[:8], "big"), row)
        if len(self._largest_first) < self._size:
            heapq.heappush(self._largest_first, entry)
        elif entry > self._largest_first[0]:
            _, dropped = heapq.heapreplace(self._largest_first, entry)
            del self._pixels[dropped]
        else:
            return
        self._pixels[row] = prepared.pixels
