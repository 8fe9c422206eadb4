"""From encoded bytes or an array to the values of its pixels, under limits that are checked before any is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from detectors.images.ends import JPEG_START, PNG_START, first_end, is_followed
from detectors.images.tones import Values

FURTHER_PICTURES = "further_pictures"
"""Note on an image: its file holds more pictures (an animation, pages, a second JPEG), which are not used."""

_PLUGINS: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B"}
_OTHER_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
"""Pillow keeps the high byte of 16-bit colour; read in the other byte order, it keeps the low one."""
_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284
"""TIFF tags (TIFF 6.0, section 8)."""
_ORIENTATION, _ON_THEIR_SIDE = 0x0112, {5, 6, 7, 8}
"""EXIF tag, and its values for pictures whose width becomes their height."""
STEPS = (8, 4, 2)
"""By which a JPEG can be shrunk while it is decoded: libjpeg computes 1, 2 x 2 or 4 x 4 pixels of a block instead of
8 x 8, and none of the others."""

Shrink = Callable[[int, int], int]
"""(height, width) of an image, upright -> what both are divided by: 1, or one of STEPS."""


class ImageError(ValueError):
    """An image cannot be used.

    `code` is the short reason: empty, bytes, format, pixels, truncated, corrupt, shape, dtype or depth.

    >>> try:
    ...     decode(b"GIF89a", Limits())
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

    >>> from_array(np.zeros((20, 20), np.uint8), Limits(max_pixels=100))
    Traceback (most recent call last):
    detectors.images.decode.ImageError: 20 x 20 pixels are more than the limit of 100
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "TIFF")

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - set(_PLUGINS):
            raise ValueError(f"unknown image formats {sorted(unknown)}; choose from {sorted(_PLUGINS)}")


@dataclass(frozen=True, slots=True)
class Picture:
    """The values of an image's pixels, before they are scaled to 8 bits.

    values: (H, W, 1 | 3 | 4), upright: grey, RGB or RGBA; uint16 where the file has 16 bits. mode: Pillow's name of the
    original mode. notes: FURTHER_PICTURES, or none. size: (height, width) of the whole image, upright. shrunk: what the
    sides of `values` are divided by already.
    """

    values: Values
    mode: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    shrunk: int = 1


def decode(image: bytes, limits: Limits, deep: bool = True, shrink: Shrink = lambda _height, _width: 1) -> Picture:
    """Decode the first picture of a JPEG, PNG, WebP or TIFF file.

    Args:
        deep: False if the high bytes of 16-bit colour suffice; they then come as uint8, in half the time.
        shrink: by what a JPEG is to be shrunk while it is decoded; other formats cannot be.

    Raises:
        ImageError: empty, over a limit, of another format or depth, truncated or corrupt.
    """
    if not image:
        raise ImageError("empty", "the image has no bytes")
    if len(image) > limits.max_bytes:
        raise ImageError("bytes", f"{len(image)} bytes are more than the limit of {limits.max_bytes}")
    name = _format(image)
    if name not in limits.formats:
        found = f"{name} is not allowed" if name in _PLUGINS else f"it starts with {bytes(image[:12])!r}"
        raise ImageError("format", f"not one of {', '.join(limits.formats)} ({found})")
    try:
        if name == "WEBP":  # its plugin allocates the whole canvas when it opens, so the header is read here
            _check_pixels(_webp_size(image), limits)
        return _decoded(image, name, limits, deep, shrink)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, and half a dozen others
        said = str(error) or type(error).__name__
        cut = "truncated" in said or isinstance(error, EOFError)
        cut = cut or first_end(image, name) is None
        code, what = ("truncated", "ends before its picture does") if cut else ("corrupt", "cannot be decoded")
        raise ImageError(code, f"{name} of {len(image)} bytes {what}: {said}") from error


def from_array(array: NDArray[Any], limits: Limits) -> Picture:
    """Check a uint8 or uint16 array, (H, W) or (H, W, 1 | 3 | 4); mode is L, I;16, RGB or RGBA by its channels.

    Raises:
        ImageError: wrong dtype or shape, no pixels, or more pixels than the limit.
    """
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError("dtype", f"expected an array of uint8 or uint16, got {array.dtype} {array.shape}")
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in {2, 3} or channels not in {1, 3, 4}:
        raise ImageError("shape", f"expected (H, W) or (H, W, 1 | 3 | 4), got {array.shape}")
    if array.size == 0:
        raise ImageError("empty", f"the array has no pixels (shape {array.shape})")
    height, width = array.shape[:2]
    _check_pixels((width, height), limits)
    deep = array.dtype.itemsize == 2
    mode = {1: "I;16" if deep else "L", 3: "RGB", 4: "RGBA"}[channels]
    planes = array.reshape(height, width, channels)
    # other byte orders become the machine's own
    values = planes.astype(np.uint16, copy=False) if deep else planes.astype(np.uint8, copy=False)
    return Picture(values, mode, (height, width))


def is_deep(image: bytes | Path | NDArray[Any]) -> bool:
    """Whether an image has 16 bits, by its header alone; False for what cannot be read."""
    if isinstance(image, np.ndarray):
        return image.dtype.itemsize == 2
    with suppress(Exception):  # decoding will say what is wrong with it
        head = image if isinstance(image, bytes) else image.read_bytes()
        if head[:8] == PNG_START:
            return bool(head[24] == 16)
        if _format(head) == "TIFF":
            with TiffImagePlugin.TiffImageFile(io.BytesIO(head)) as opened:
                return bool(max(opened.tag_v2.get(_BITS, (1,))) > 8)
    return False


def _decoded(image: bytes, name: str, limits: Limits, deep: bool, shrink: Shrink) -> Picture:
    # The plugin class itself, not Image.open: no other format is ever tried and no bomb warning is emitted.
    with _PLUGINS[name](io.BytesIO(image)) as opened:
        _check_pixels(opened.size, limits)
        if isinstance(opened, TiffImagePlugin.TiffImageFile):
            _check_tiff(opened)
            several = bool(opened.tag_v2.next)
        else:
            several = getattr(opened, "n_frames", 1) > 1 or is_followed(image, name)
        mode, raw_mode = opened.mode, _raw_mode(opened.tile)
        size, shrunk = None, 1
        if isinstance(opened, JpegImagePlugin.JpegImageFile):
            size = _upright_size(opened)
            if (shrunk := shrink(*size)) > 1:
                opened.draft(None, (opened.width // shrunk, opened.height // shrunk))
        values = _values(opened)
    if deep and ";16" in raw_mode and not mode.startswith("I"):
        kind, _, order = raw_mode.partition(";")
        if kind not in {"RGB", "RGBX", "RGBA"}:
            raise ImageError("depth", f"16-bit {name} of kind {kind}; with 16 bits, grey, RGB and RGBA are allowed")
        with _PLUGINS[name](io.BytesIO(image)) as again:
            other = f"{kind};{_OTHER_BYTES[order]}"
            again.tile = [tile._replace(args=_with_raw_mode(tile.args, other)) for tile in again.tile]
            values = (values.astype(np.uint16) * 256 + _values(again)).astype(np.uint16, copy=False)
    mode = "I;16" if mode.startswith("I;16") else mode
    notes = (FURTHER_PICTURES,) if several else ()
    return Picture(values, mode, size or (values.shape[0], values.shape[1]), notes, shrunk)


def _upright_size(image: JpegImagePlugin.JpegImageFile) -> tuple[int, int]:
    """(height, width) of an opened image, as `_values` will turn it; other formats keep the tag behind the pixels."""
    with suppress(Exception):  # as there
        if image.getexif().get(_ORIENTATION) in _ON_THEIR_SIDE:
            return image.width, image.height
    return image.height, image.width


def _raw_mode(tiles: Sequence[Any]) -> str:
    """How a file stores its pixels, by Pillow's name; empty where its plugin does not say."""
    args = tiles[0].args if tiles else ""
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    return raw_mode if isinstance(raw_mode, str) else ""


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    bits = image.tag_v2.get(_BITS, (1,))
    deep = max(bits) > 8
    found = f"{'/'.join(map(str, bits))} bits, mode {image.mode}"
    if image.mode not in _TIFF_MODES:
        raise ImageError("depth", f"TIFF of {found}; 8 or 16 bits, grey or RGB, without sign or fraction, are allowed")
    if deep and image.tag_v2.get(_PLANAR) == 2:
        raise ImageError("depth", f"TIFF of {found} in separate planes; with 16 bits, colours must be interleaved")
    if deep and image.tag_v2.get(_PHOTOMETRIC) == 0:
        raise ImageError("depth", f"TIFF of {found} where white is zero; with 16 bits, black must be zero")


def _values(image: Image.Image) -> Values:
    """(H, W, 1 | 3 | 4) of an opened image, upright."""
    image.load()
    with suppress(Exception):  # a broken tag must not cost the picture, and Pillow raises many kinds here
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(image)
        return (grey if grey.dtype == np.uint16 else np.clip(grey, 0, 65_535).astype(np.uint16))[:, :, None]
    if image.mode in {"LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in {"L", "RGB", "RGBA"}:
        image = image.convert("RGB")
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


def _format(image: bytes) -> str:
    if image[:3] == JPEG_START:
        return "JPEG"
    if image[:8] == PNG_START:
        return "PNG"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "WEBP"
    if image[:4] in _TIFF_STARTS:
        return "TIFF"
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
