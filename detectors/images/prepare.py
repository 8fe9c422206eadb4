"""From encoded bytes to the input of a backbone: one code path for fit and for serving.

Imports no torch, so that decoder workers start fast and stay small. Every step is deterministic and the same for a
reference image and a live one: decode the first frame, turn it upright by its EXIF orientation (a camera that writes
the tag and one that turns the pixels score alike), drop alpha, bring 16-bit grey to 8 bits, and resize the whole
picture to a square. The aspect ratio is not kept and nothing is cropped: what happens at the border counts too.
The resize filter is Pillow's, which widens with the scale when shrinking (antialiased).
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from detectors.images import properties

AnyImage = bytes | Path | NDArray[np.uint8]
"""An encoded image, its file, or uint8 pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
Filter = Literal["bilinear", "bicubic", "lanczos"]
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}


class ImageError(ValueError):
    """An image cannot be used.

    `code` is the short reason: empty, bytes, format, pixels, truncated, corrupt, shape or dtype.

    >>> try:
    ...     Preparer(input_px=96)(b"GIF89a")
    ... except ImageError as error:
    ...     error.code
    'format'
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.code, str(self))


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest and the kinds of images that are accepted; checked before any pixel is decoded.

    >>> Preparer(96, Limits(max_pixels=100))(np.zeros((20, 20), np.uint8))
    Traceback (most recent call last):
    detectors.images.prepare.ImageError: 20 x 20 pixels are more than the limit of 100
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - set(_PLUGINS):
            raise ValueError(f"unknown image formats {sorted(unknown)}; choose from {sorted(_PLUGINS)}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be scored; small enough to cross process borders.

    pixels: (S, S, 3) uint8 at the model's input size. properties: (P,) float64, in the order of
    `detectors.images.properties.NAMES`. digest: 16 bytes that are equal exactly for equal decoded pixels. key: breaks
    ties between equal scores. width, height, mode: of the image as decoded, before the resize.
    """

    pixels: NDArray[np.uint8]
    properties: NDArray[np.float64]
    digest: bytes
    key: bytes
    width: int
    height: int
    mode: str


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

    def __call__(self, image: AnyImage, key: bytes | None = None) -> Prepared:
        """Decode, measure and resize one image.

        Args:
            image: JPEG, PNG or WebP bytes, the path of such a file, or uint8 pixels (H, W) or (H, W, 1 | 3 | 4).
            key: identity that breaks ties between equal scores, such as the record's id; the digest by default.

        Raises:
            ImageError: the image cannot be used; its `code` says why.
            OSError: the file cannot be read.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, np.ndarray):
            pixels, mode = from_array(image, self.limits)
            n_bytes = image.nbytes
        else:
            pixels, mode = decode(image, self.limits)
            n_bytes = len(image)
        height, width = pixels.shape[:2]
        resized, measured = resize(pixels, self.input_px, self.filter), properties.measure(pixels, n_bytes, mode)
        digest = _digest(pixels)
        return Prepared(resized, measured, digest, digest if key is None else key, width, height, mode)


def decode(image: bytes, limits: Limits) -> tuple[NDArray[np.uint8], str]:
    """Decode the first frame: ((H, W, 3) uint8 RGB pixels, Pillow's name of the original mode).

    Raises:
        ImageError: empty, over a limit, of another format, truncated or corrupt.
    """
    if not image:
        raise ImageError("empty", "the image has no bytes")
    if len(image) > limits.max_bytes:
        raise ImageError("bytes", f"{len(image)} bytes are more than the limit of {limits.max_bytes}")
    name = _format(image)
    if name not in limits.formats:
        raise ImageError("format", f"not one of {', '.join(limits.formats)} (starts with {bytes(image[:12])!r})")
    try:
        if name == "WEBP":  # its plugin allocates the whole canvas when it opens, so the header is read here
            _check_pixels(_webp_size(image), limits)
        # The plugin class itself, not Image.open: no other format is ever tried and no bomb warning is emitted.
        with _PLUGINS[name](io.BytesIO(image)) as opened:
            _check_pixels(opened.size, limits)
            mode = opened.mode
            return _upright_rgb(opened), mode
    except ImageError:
        raise
    except (OSError, EOFError, IndexError) as error:
        code = "truncated" if isinstance(error, EOFError) or "truncated" in str(error) else "corrupt"
        raise ImageError(code, f"{name} cannot be decoded: {error}") from error
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error, zlib.error, OverflowError) as error:
        raise ImageError("corrupt", f"{name} cannot be decoded: {error}") from error


def from_array(array: NDArray[np.uint8], limits: Limits) -> tuple[NDArray[np.uint8], str]:
    """Check a uint8 array and bring it to ((H, W, 3), mode); mode is L, RGB or RGBA by its channels.

    Raises:
        ImageError: wrong dtype or shape, no pixels, or more pixels than the limit.
    """
    if array.dtype != np.uint8:
        raise ImageError("dtype", f"arrays must be uint8 (got {array.dtype})")
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in {2, 3} or channels not in {1, 3, 4}:
        raise ImageError("shape", f"expected (H, W) or (H, W, 1 | 3 | 4), got {array.shape}")
    if array.size == 0:
        raise ImageError("empty", f"the array has no pixels (shape {array.shape})")
    height, width = array.shape[:2]
    _check_pixels((width, height), limits)
    planes = array.reshape(height, width, channels)
    if channels == 1:
        return np.repeat(planes, 3, axis=2), "L"
    return np.ascontiguousarray(planes[:, :, :3]), "RGB" if channels == 3 else "RGBA"


def resize(pixels: NDArray[np.uint8], size_px: int, resize_filter: Filter) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to (size_px, size_px, 3), antialiased; pixels already of that size come back unchanged."""
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling[resize_filter.upper()]))


def _format(image: bytes) -> str:
    if image[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "WEBP"
    return "unknown"


def _webp_size(image: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = image[12:16], image[20:30]
    if len(body) < 10:
        raise ImageError("truncated", "the WebP file ends inside its header")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ImageError("corrupt", f"unknown first WebP chunk {kind!r}")


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError("pixels", f"{width} x {height} pixels are more than the limit of {limits.max_pixels}")


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    with suppress(Exception):  # a broken tag must not cost the picture, and Pillow raises many kinds here
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    digest = xxhash.xxh3_128(np.array(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
