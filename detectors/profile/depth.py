"""Learns the white level of a reference: how deep its 16-bit images really are (see `detectors.images.tones`).

The images may be a stream that is read once, and none can be scaled before the largest value of all is known. So the
8-bit images go straight through; from the first 16-bit one on, all wait in a temporary file as they came.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detectors.images.decode import ImageError, Limits, decode, from_array, is_deep
from detectors.images.prepare import AnyImage
from detectors.images.tones import Tones

Named = tuple[str, AnyImage]

SHOWN_EVERY = 32
"""Images between two reports of progress: .6 s of a core where they are 16-bit PNGs of a megapixel."""


def by_tones(
    images: Iterable[Named], limits: Limits, progress: Callable[[str, float], None] = lambda _step, _share: None
) -> Iterator[tuple[Iterator[Named], Tones]]:
    """All images in their order, in one or two parts, each with the tones to prepare it by.

    Args:
        progress: called with (step, -1) while images are read to learn the white level; how many come is not known.
    """
    source = iter(images)
    first: list[Named] = []

    def shallow() -> Iterator[Named]:
        for name, image in source:
            if is_deep(image):
                first.append((name, image))
                return
            yield name, image

    yield shallow(), Tones()
    if first:
        with tempfile.TemporaryFile() as file:
            waiting, largest = [], 0
            for name, image in chain(first, source):
                largest = max(largest, _largest(image, limits))
                waiting.append((name, _put(file, image)))
                if len(waiting) % SHOWN_EVERY == 0:
                    progress(f"white level of {len(waiting)} images", -1.0)
            yield ((name, _take(file, place)) for name, place in waiting), Tones.of(largest)


def _largest(image: AnyImage, limits: Limits) -> int:
    """Largest value of a 16-bit image; 0 for others, and for those that will be left out as broken."""
    if not is_deep(image):
        return 0
    try:
        decoded = from_array(image, limits) if isinstance(image, np.ndarray) else decode(_encoded(image), limits)
    except ImageError:
        return 0
    return int(decoded.values[:, :, :3].max()) if decoded.values.dtype == np.uint16 else 0


def _encoded(image: bytes | Path) -> bytes:
    return image if isinstance(image, bytes) else image.read_bytes()


_Place = Path | tuple[int, int, bool]
"""A file of its own, or (offset, length, whether it is an array) in the temporary file."""


def _put(file: BinaryIO, image: AnyImage) -> _Place:
    if isinstance(image, Path):
        return image
    held: Any = image
    is_array = isinstance(image, np.ndarray)
    if is_array:
        buffer = io.BytesIO()
        np.save(buffer, image, allow_pickle=False)
        held = buffer.getbuffer()
    place = file.seek(0, io.SEEK_END), len(held), is_array
    file.write(held)
    return place


def _take(file: BinaryIO, place: _Place) -> AnyImage:
    if isinstance(place, Path):
        return place
    offset, length, is_array = place
    file.seek(offset)
    held = file.read(length)
    return np.load(io.BytesIO(held), allow_pickle=False) if is_array else held
