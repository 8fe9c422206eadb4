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
from detectors.images.decode import STEPS, ImageError, Limits, Picture, Shrink, decode, from_array
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
Decoding = Literal["full", "scaled"]
"""full: every pixel, and what is measured is measured on them. scaled: no more than the model's input needs; see
`Preparer.shrink`."""
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
Colour = tuple[int, int, int]
GREY: Colour = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be scored; small enough to cross process borders.

    pixels: (H, W, 3) uint8 at the model's input size. properties: (P,) float64, in the order of
    `detectors.images.properties.NAMES`. digest: 16 bytes that are equal exactly for equal decoded pixels. key: breaks
    ties between equal scores. width, height, mode: of the whole image, upright, whatever was decoded of it. notes: what
    of the image was not used: FURTHER_PICTURES, ABOVE_WHITE. resize: how the pixels were made of the image.
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
    decoding: Decoding = "full"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what the model gets."""
        return shape_of(self.input_px)

    @property
    def name(self) -> str:
        """For the fingerprint; what profiles of earlier versions did adds nothing to it."""
        height, width = self.shape
        is_as_before = self.resize == "stretch" and height == width
        shaped = "" if is_as_before else f"/{self.resize}/{height}x{width}/{self.fill}"
        return self.tones.name + shaped + ("" if self.decoding == "full" else f"/{self.decoding}")

    def shrink(self, height: int, width: int) -> int:
        """What the sides of an image of that size are divided by before anything looks at it: 1, 2, 4 or 8.

        The most that leaves as many pixels as the input takes of the image; a matter of its size alone, so that all
        images of a camera are treated alike, whatever their format. JPEGs are shrunk by their decoder, others by means
        of squares once they are decoded.

        >>> Preparer(224, decoding="scaled").shrink(1080, 1920), Preparer(224).shrink(1080, 1920)
        (4, 1)
        """
        if self.decoding == "full":
            return 1
        ratios = height / self.shape[0], width / self.shape[1]
        # a letterbox shows the longer side whole, and the other in proportion
        most = max(ratios) if self.resize == "letterbox" else min(ratios)
        return next((step for step in STEPS if step <= most), 1)

    def __call__(self, image: AnyImage, key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image.

        Args:
            image: JPEG, PNG, WebP or TIFF bytes, the path of such a file, or pixels (H, W) or (H, W, 1 | 3 | 4).
            key: identity that breaks ties between equal scores, such as the record's id; the digest by default.

        Raises:
            ImageError: the image cannot be used; its `code` says why.
            OSError: the file cannot be read.
        """
        picture, n_bytes = self._picture(image, self.shrink)
        shrink = self.shrink(*picture.size)
        pixels, notes = self._rgb(picture, shrink)
        # the last pixels stand for less than the others where a side is no multiple of `shrink`
        extent = picture.size[0] / shrink, picture.size[1] / shrink
        resized = resize(pixels, self.shape, self.filter, self.resize, self.fill, extent)
        measured, digest = properties.measure(pixels, n_bytes, picture.mode, picture.size), _digest(pixels)
        key = digest if key is None else key
        height, width = picture.size
        return Prepared(resized, measured, digest, key, width, height, picture.mode, notes, self.resize)

    def upright(self, image: AnyImage, longest_px: int | None = None) -> NDArray[np.uint8]:
        """(H, W, 3), the whole image in its own size, as it is before the resize; raises what a call raises.

        Args:
            longest_px: where images are shrunk anyway, the longer side need not be longer; None: its own size.
        """

        def shrink(height: int, width: int) -> int:
            if self.decoding == "full" or longest_px is None:
                return 1
            return next((step for step in STEPS if max(height, width) >= step * longest_px), 1)

        return self._rgb(self._picture(image, shrink)[0])[0]

    def _picture(self, image: AnyImage, shrink: Shrink) -> tuple[Picture, int]:
        """The decoded image, and the bytes as they came; `shrink` is heeded by the decoder of JPEG alone."""
        if isinstance(image, Path):
            image = image.read_bytes()
        white_level = self.tones.white_level
        if isinstance(image, np.ndarray):
            picture = from_array(image, self.limits)
            if picture.values.dtype == np.uint16 and white_level is None:
                raise ImageError("dtype", "uint16 pixels, but the profile was fitted on 8-bit images only")
            return picture, image.nbytes
        return decode(image, self.limits, white_level not in {None, 65_535}, shrink), len(image)

    def _rgb(self, picture: Picture, shrink: int = 1) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """(H, W, 3) with the sides of the image divided by `shrink`, and all notes."""
        pixels, notes = self.tones.rgb(picture.values)
        if shrink > picture.shrunk:
            # means of squares, as libjpeg gives them but for rounding; its sides are rounded up, too
            pixels = np.asarray(Image.fromarray(pixels).reduce(shrink))
        return pixels, (*picture.notes, *notes)


def shape_of(input_px: InputSize) -> tuple[int, int]:
    """(height, width) of an input."""
    return (input_px, input_px) if isinstance(input_px, int) else input_px


def resize(
    pixels: NDArray[np.uint8],
    size_px: InputSize,
    resize_filter: Filter,
    how: Resize = "stretch",
    fill: Colour = GREY,
    extent: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to `size_px`, antialiased; pixels already of that size come back unchanged.

    Args:
        extent: (height, width) that the image covers of `pixels`, from their upper left; None: all of them.
    """
    height, width = shape = shape_of(size_px)
    if pixels.shape[:2] == shape:
        return pixels
    image, resample = Image.fromarray(pixels), Image.Resampling[resize_filter.upper()]
    high, wide = extent or pixels.shape[:2]
    if how == "stretch":
        return np.asarray(image.resize((width, height), resample, (0, 0, wide, high)))
    if how == "crop":
        scale = min(high / height, wide / width)
        # the difference of two equal floats may come out below zero
        left, top = max(0.0, wide - scale * width) / 2, max(0.0, high - scale * height) / 2
        return np.asarray(image.resize((width, height), resample, (left, top, wide - left, high - top)))
    rows, columns = _inside((high, wide), shape)
    canvas = np.full((*shape, 3), fill, np.uint8)
    inner = columns.stop - columns.start, rows.stop - rows.start
    canvas[rows, columns] = np.asarray(image.resize(inner, resample, (0, 0, wide, high)))
    return canvas


def _inside(image: tuple[float, float], shape: tuple[int, int]) -> tuple[slice, slice]:
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
