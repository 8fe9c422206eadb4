"""From encoded bytes to the input of a backbone: one code path for fit and for serving.

Imports no torch, so that decoder workers start fast and stay small. Every step is deterministic and the same for a
reference image and a live one: decode the first frame, turn it upright by its EXIF orientation (a camera that writes
the tag and one that turns the pixels score alike), bring it to 8-bit RGB (`tones.py`), and resize the whole picture to
a square. The aspect ratio is not kept and nothing is cropped: what happens at the border counts too.
The resize filter is Pillow's, which widens with the scale when shrinking (antialiased).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from detectors.images import properties
from detectors.images.decode import ImageError, Limits, decode, from_array
from detectors.images.tones import Tones

AnyImage = bytes | Path | NDArray[Any]
"""An encoded image, its file, or uint8 pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint16 with a white level."""
Filter = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be scored; small enough to cross process borders.

    pixels: (S, S, 3) uint8 at the model's input size. properties: (P,) float64, in the order of
    `detectors.images.properties.NAMES`. digest: 16 bytes that are equal exactly for equal decoded pixels. key: breaks
    ties between equal scores. width, height, mode: of the image as decoded, before the resize. notes: what of the image
    was not used: FURTHER_PICTURES, ABOVE_WHITE.
    """

    pixels: NDArray[np.uint8]
    properties: NDArray[np.float64]
    digest: bytes
    key: bytes
    width: int
    height: int
    mode: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparer:
    """Turns encoded bytes or arrays into `Prepared`; picklable and thread-safe.

    >>> prepared = Preparer(input_px=96)(np.zeros((48, 64, 3), np.uint8))
    >>> prepared.pixels.shape, prepared.width, prepared.height, prepared.mode
    ((96, 96, 3), 64, 48, 'RGB')
    """

    input_px: int
    limits: Limits = field(default_factory=Limits)
    filter: Filter = "bilinear"
    tones: Tones = field(default_factory=Tones)

    def __call__(self, image: AnyImage, key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image.

        Args:
            image: JPEG, PNG, WebP or TIFF bytes, the path of such a file, or pixels (H, W) or (H, W, 1 | 3 | 4).
            key: identity that breaks ties between equal scores, such as the record's id; the digest by default.

        Raises:
            ImageError: the image cannot be used; its `code` says why.
            OSError: the file cannot be read.
        """
        pixels, mode, n_bytes, notes = self._rgb(image)
        height, width = pixels.shape[:2]
        resized = resize(pixels, self.input_px, self.filter)
        measured, digest = properties.measure(pixels, n_bytes, mode), _digest(pixels)
        key = digest if key is None else key
        return Prepared(resized, measured, digest, key, width, height, mode, notes)

    def upright(self, image: AnyImage) -> NDArray[np.uint8]:
        """(H, W, 3), the whole image in its own size, as it is before the resize; raises what a call raises."""
        return self._rgb(image)[0]

    def _rgb(self, image: AnyImage) -> tuple[NDArray[np.uint8], str, int, tuple[str, ...]]:
        """(pixels (H, W, 3), mode, bytes as they came, notes)."""
        if isinstance(image, Path):
            image = image.read_bytes()
        white_level = self.tones.white_level
        if isinstance(image, np.ndarray):
            decoded, n_bytes = from_array(image, self.limits), image.nbytes
            if decoded.values.dtype == np.uint16 and white_level is None:
                raise ImageError("dtype", "uint16 pixels, but the profile was fitted on 8-bit images only")
        else:
            decoded, n_bytes = decode(image, self.limits, deep=white_level not in {None, 65_535}), len(image)
        pixels, notes = self.tones.rgb(decoded.values)
        return pixels, decoded.mode, n_bytes, (*decoded.notes, *notes)


def resize(pixels: NDArray[np.uint8], size_px: int, resize_filter: Filter) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to (size_px, size_px, 3), antialiased; pixels already of that size come back unchanged."""
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling[resize_filter.upper()]))


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    digest = xxhash.xxh3_128(np.array(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
