"""Pictures of the reference from both ends of each coordinate of the mix: what more, or fewer, images look like now.

A coordinate has no meaning of its own; what it tells is what its two ends show. They are kept as JPEG files in a folder
of the profile, named mix3-low-1.jpg: people may look at them there, and delete the folder if nobody should.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.profile.files import replace_file

EXAMPLES = "examples"
FILES = "mix*-*-*.jpg"
ENDS = ("low", "high")
AT_EACH_END = 3
OUTERMOST = 0.1
"""Share of the reference that an end is; its pictures lie evenly in it, so that they are no freaks."""
MOST_PX, QUALITY = 128, 85
"""2 KB a picture and 100 KB a profile, for parts on a belt at 96 px."""


def examples_of(
    names: Sequence[str], coordinates: NDArray[np.float64], pixels: Mapping[int, NDArray[np.uint8]]
) -> dict[str, bytes]:
    """{"mix3-low-1": JPEG, ...} of the images whose pixels are at hand.

    Args:
        names: of the K coordinates.
        coordinates: (N, K), of the N images of the reference.
        pixels: row -> (H, W, 3) uint8, of some of them.
    """
    rows = np.array(sorted(pixels), dtype=np.int64)
    if OUTERMOST * len(rows) < AT_EACH_END:
        return {}
    found: dict[str, bytes] = {}
    places = np.linspace(0, OUTERMOST * (len(rows) - 1), AT_EACH_END).round().astype(int)
    for name, column in zip(names, coordinates[rows].T, strict=True):
        ascending = rows[np.argsort(column, kind="stable")]
        for end, ordered in zip(ENDS, (ascending, ascending[::-1]), strict=True):
            found |= {f"{name}-{end}-{i}": jpeg_of(pixels[row]) for i, row in enumerate(ordered[places].tolist(), 1)}
    return found


def save_examples(folder: Path, examples: Mapping[str, bytes]) -> None:
    """Write them as files in the place of those that are there."""
    if examples:
        folder.mkdir(exist_ok=True)
    for name, picture in examples.items():
        replace_file(folder / f"{name}.jpg", picture)
    for old in folder.glob(FILES):
        if old.stem not in examples:
            old.unlink()


def load_examples(folder: Path) -> dict[str, bytes]:
    """What `save_examples` wrote; empty where the folder was deleted."""
    return {path.stem: path.read_bytes() for path in sorted(folder.glob(FILES))}


def jpeg_of(pixels: NDArray[np.uint8]) -> bytes:
    picture, held = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((MOST_PX, MOST_PX))
    picture.save(held, "JPEG", quality=QUALITY)
    return held.getvalue()
