"""From encoded bytes to the input of a backbone: one code path for fit and for serving.

Imports no torch, so that decoder workers start fast and stay small. Every step is deterministic and the same for a
reference image and a live one: decode the first frame, turn it upright by its EXIF orientation (a camera that writes
the tag and one that turns the pixels score alike), bring it to 8-bit RGB (`tones.py`), and resize it to the input of
the model. By default the whole picture is stretched: its proportions are lost, but what happens at the border counts.
The resize filter is Pillow's, which widens with the scale when shrinking (antialiased).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

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
InputSize = int | tuple[int, int]
"""Pixels of a model's input: the side of a square, or (height, width)."""
Resize = Literal["stretch", "letterbox", "crop"]
"""stretch: the whole picture, without its proportions. letterbox: the whole picture in its proportions, in the middle
between bars. crop: the largest part of the picture that has the input's proportions, from its middle."""
RESIZES: tuple[Resize, ...] = get_args(Resize)
Colour = tuple[int, int, int]
GREY: Colour = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be scored; small enough to cross process borders.

    pixels: (H, W, 3) uint8 at the model's input size. properties: (P,) float64, in the order of
    `detectors.images.properties.NAMES`. digest: 16 bytes that are equal exactly for equal decoded pixels. key: breaks
    ties between equal scores. width, height, mode: of the image as decoded, before the resize. notes: what of the image
    was not used: FURTHER_PICTURES, ABOVE_WHITE. resize: how the pixels were made of the image.
    """

    pixels: NDArray[np.uint8]
    properties: NDArray[np.float64]
    digest: bytes
    key: bytes
    width: int
    height: int
    mode: str
    notes: tuple[str, ...] = ()
    resize: Resize = "stretch"

    @property
    def seen(self) -> NDArray[np.uint8]:
        """The part of `pixels` that shows the image: all but the bars of a letterbox."""
        if self.resize != "letterbox":
            return self.pixels
        rows, columns = _inside((self.height, self.width), (self.pixels.shape[0], self.pixels.shape[1]))
        return self.pixels[rows, columns]

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the whole image, in fractions of `pixels`; beyond [0, 1] what was cropped."""
        height, width = self.pixels.shape[:2]
        if self.resize == "letterbox":
            rows, columns = _inside((self.height, self.width), (height, width))
            return columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
        if self.resize == "crop":
            scale = min(self.height / height, self.width / width)
            beyond_x, beyond_y = (self.width / (scale * width) - 1) / 2, (self.height / (scale * height) - 1) / 2
            return -beyond_x, -beyond_y, 1 + beyond_x, 1 + beyond_y
        return 0.0, 0.0, 1.0, 1.0


@dataclass(frozen=True)
class Preparer:
    """Turns encoded bytes or arrays into `Prepared`; picklable and thread-safe.

    fill: the colour of letterbox bars.

    >>> prepared = Preparer(input_px=96)(np.zeros((48, 64, 3), np.uint8))
    >>> prepared.pixels.shape, prepared.width, prepared.height, prepared.mode
    ((96, 96, 3), 64, 48, 'RGB')
    >>> Preparer((96, 160), resize="letterbox")(np.zeros((48, 48, 3), np.uint8)).seen.shape
    (96, 96, 3)
    """

    input_px: InputSize
    limits: Limits = field(default_factory=Limits)
    filter: Filter = "bilinear"
    tones: Tones = field(default_factory=Tones)
    resize: Resize = "stretch"
    fill: Colour = GREY

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what the model gets."""
        return shape_of(self.input_px)

    @property
    def name(self) -> str:
        """For the fingerprint; what profiles of earlier versions did adds nothing to it."""
        height, width = self.shape
        is_as_before = self.resize == "stretch" and height == width
        return self.tones.name + ("" if is_as_before else f"/{self.resize}/{height}x{width}/{self.fill}")

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
        resized = resize(pixels, self.shape, self.filter, self.resize, self.fill)
        measured, digest = properties.measure(pixels, n_bytes, mode), _digest(pixels)
        key = digest if key is None else key
        return Prepared(resized, measured, digest, key, width, height, mode, notes, self.resize)

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


def shape_of(input_px: InputSize) -> tuple[int, int]:
    """(height, width) of an input."""
    return (input_px, input_px) if isinstance(input_px, int) else input_px


def resize(
    pixels: NDArray[np.uint8],
    size_px: InputSize,
    resize_filter: Filter,
    how: Resize = "stretch",
    fill: Colour = GREY,
) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to `size_px`, antialiased; pixels already of that size come back unchanged."""
    height, width = shape = shape_of(size_px)
    if pixels.shape[:2] == shape:
        return pixels
    image, resample = Image.fromarray(pixels), Image.Resampling[resize_filter.upper()]
    if how == "stretch":
        return np.asarray(image.resize((width, height), resample))
    if how == "crop":
        scale = min(image.height / height, image.width / width)
        # the difference of two equal floats may come out below zero
        left, top = max(0.0, image.width - scale * width) / 2, max(0.0, image.height - scale * height) / 2
        box = (left, top, image.width - left, image.height - top)
        return np.asarray(image.resize((width, height), resample, box))
    rows, columns = _inside((image.height, image.width), shape)
    canvas = np.full((*shape, 3), fill, np.uint8)
    canvas[rows, columns] = np.asarray(image.resize((columns.stop - columns.start, rows.stop - rows.start), resample))
    return canvas


def _inside(image: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a letterbox of `shape` that an image of (height, width) fills."""
    scale = min(shape[0] / image[0], shape[1] / image[1])
    sides = [min(whole, max(1, round(side * scale))) for side, whole in zip(image, shape, strict=True)]
    starts = [(whole - side) // 2 for side, whole in zip(sides, shape, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    digest = xxhash.xxh3_128(np.array(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
