"""The large pictures of unusual images: one image of a record, decoded again, as a JPEG of bounded size."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monitor.core.types import Record

MOST_BYTES = 48 * 1024
"""Of one picture: photographs of 512 px need it at QUALITIES[1], pictures of parts on a belt at a third of it."""
QUALITIES = (75, 50, 30)
"""JPEG: a WebP of the same look has two thirds of the bytes and takes fifteen times as long to encode."""
JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class LargePicture:
    """Asks a decoder process for one image of a record, to be looked at."""

    record: Record
    index: int
    """Of the image in the record."""
    longest_px: int
    """Longer side of the picture; smaller images keep their size."""


def large_jpeg(pixels: NDArray[np.uint8], longest_px: int) -> bytes:
    """(H, W, 3) as a JPEG of at most MOST_BYTES, in their proportions and never enlarged: never the sender's bytes."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.BILINEAR)
    while True:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= MOST_BYTES:
                return buffer.getvalue()
        picture = picture.reduce(2)
