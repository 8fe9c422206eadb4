"""What a record's value holds: one encoded image, an npy array or a msgpack batch.

Runs in the decoder processes only; of all this the daemon calls `most_images`, which looks at the type alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from monitor.core.types import Record
from monitor.ingest.decode.flat import FlatError, FlatReader
from monitor.ingest.settings import LAYOUTS, DecodingSettings

MAX_KEYS = 64
"""Of a msgpack batch; three have a meaning, the others are skipped."""

Image = bytes | NDArray[Any]

_LAYOUT_OF = {2: "HW", 3: "HWC", 4: "NHWC"}
"""Of an array whose layout nobody declares, by its number of axes."""

_COLUMNS: dict[str, tuple[type[Any], ...]] = {"images": (bytes,), "ids": (str, int), "timestamps": (int,)}
"""Keys of a msgpack batch, and the types of their values."""

_NPY_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


REASONS = {
    *("empty", "bytes", "images", "npy", "msgpack", "event-time"),
    *("format", "pixels", "truncated", "corrupt", "shape", "dtype", "depth"),
    *("json", "avro", "protobuf", "claim-check", "unavailable"),
    *("memory", "crashed", "timeout"),
}
"""Every reason why a record is refused: they are labels of metrics, so a decoder process may send no other."""


class DecodeError(Exception):
    """A record that cannot be used; `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class Contents:
    """One or more images, still encoded or raw, and the ids and event times that came with them, one per image."""

    images: Sequence[Image]
    ids: Sequence[str | int] | None = None
    times: Sequence[int] | None = None


def read_value(value: bytes, content_type: bytes | None, limits: DecodingSettings) -> Contents:
    """The images of a value.

    Raises:
        DecodeError: malformed, or with more images than allowed.
    """
    kind = _kind(content_type, value)
    if kind == "npy":
        return Contents(_npy(value, _declared(content_type) or limits.npy_layout or "", limits.max_images_per_record))
    return _msgpack(value, limits.max_images_per_record) if kind == "msgpack" else Contents([value])


def most_images(record: Record, max_images: int) -> int:
    """The most images that a record may hold, by its type alone: nothing of it is parsed.

    The memory for so many is set aside until the record is decoded. A new kind of value that can hold several images
    must be counted here.
    """
    value = record.value or b""
    return 1 if not value or _kind(record.header("content-type"), value) == "image" else max_images


def _kind(content_type: bytes | None, value: bytes) -> str:
    named = (content_type or b"")[:100].split(b";")[0].strip().lower()
    if named == b"application/x-npy" or value[:6] == b"\x93NUMPY":
        return "npy"
    # a msgpack map of 1 to 15 entries starts with 0x81..0x8f; PNG starts with 0x89 and its name
    is_map = 0x81 <= value[0] <= 0x8F and value[1:4] != b"PNG"
    if named in {b"application/msgpack", b"application/x-msgpack"} or (not named and is_map):
        return "msgpack"
    return "image"


def _declared(content_type: bytes | None) -> str:
    """The parameter `layout` of a content type such as `application/x-npy; layout=NCHW`."""
    for parameter in (content_type or b"")[:200].decode("ascii", "replace").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "layout":
            return value.strip().strip('"').upper()
    return ""


def _npy(value: bytes, layout: str, max_images: int) -> list[Image]:
    """The images of an array: one, or one for each entry of its axis N."""
    array = _array(value)
    layout = layout or _LAYOUT_OF.get(array.ndim, "")
    if layout not in LAYOUTS or len(layout) != array.ndim:
        known = ", ".join(LAYOUTS)
        raise DecodeError("npy", f"an array of shape {array.shape} has no layout {layout!r}; known layouts: {known}")
    if layout.startswith("N"):
        _check_count(len(array), max_images)
    batch = array if layout.startswith("N") else array[None]
    if "C" in layout:
        batch = np.moveaxis(batch, layout.replace("N", "").index("C") + 1, -1)
        if batch.shape[-1] not in {1, 3, 4}:
            raise DecodeError(
                "npy",
                f"{batch.shape[-1]} channels in shape {array.shape} as {layout}; 1, 3 or 4 are allowed. Another layout "
                "is declared by `application/x-npy; layout=NCHW` or decoding.npy_layout",
            )
    return list(batch)


def _array(value: bytes) -> NDArray[Any]:
    # not np.load: it also opens zip files, and allocates what the header claims before it reads the data
    stream = io.BytesIO(value)
    try:
        version = npy_format.read_magic(stream)
        header = _NPY_HEADERS[version](stream) if version in _NPY_HEADERS else None
    except MemoryError:
        raise
    except Exception as error:  # the errors of the header's parser are not documented
        raise DecodeError("npy", f"unreadable npy header: {str(error) or type(error).__name__}") from error
    if header is None:
        known = " and ".join(f"{major}.{minor}" for major, minor in _NPY_HEADERS)
        raise DecodeError("npy", f"npy format {version[0]}.{version[1]}; {known} are allowed")
    shape, fortran_order, dtype = header
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise DecodeError("npy", f"an array of {dtype} {shape}; uint8 and uint16 are allowed")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise DecodeError("npy", f"an array of shape {shape}; no side may be negative")
    if 0 in shape:
        raise DecodeError("empty", f"the array holds no pixels (shape {shape})")
    needed, held = math.prod(shape) * dtype.itemsize, len(value) - stream.tell()
    if needed != held:
        raise DecodeError("npy", f"{held} bytes of pixels, but {dtype} {shape} has {needed}")
    flat = np.frombuffer(value, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _msgpack(value: bytes, max_images: int) -> Contents:
    """A map of `images`, and perhaps `ids` and `timestamps`, one plain value per image; other keys are skipped."""
    reader = FlatReader(value)
    columns: dict[str, list[Any]] = {}
    try:
        pairs = reader.open_map()
        if pairs > MAX_KEYS:
            raise DecodeError("msgpack", f"a map of {pairs} keys is no batch; {MAX_KEYS} are allowed")
        for _ in range(pairs):
            name = reader.plain(str)
            if name in columns:
                raise DecodeError("msgpack", f"`{name}` is there twice")
            if name not in _COLUMNS or reader.kind == "nil":
                reader.skip()
                continue
            count = reader.open_list()
            _check_count(count, max_images)
            columns[name] = [reader.plain(*_COLUMNS[name]) for _ in range(count)]
        reader.end()
    except FlatError as error:
        raise DecodeError("msgpack", f"not a batch of images: {error}") from error
    if "images" not in columns:
        raise DecodeError("msgpack", "the map has no key `images`")
    for name, column in columns.items():
        if len(column) != len(columns["images"]):
            raise DecodeError("msgpack", f"{len(column)} {name} for {len(columns['images'])} images; give one for each")
    return Contents(columns["images"], columns.get("ids"), columns.get("timestamps"))


def _check_count(count: int, max_images: int) -> None:
    if count > max_images:
        raise DecodeError("images", f"{count} images are more than decoding.max_images_per_record ({max_images})")
