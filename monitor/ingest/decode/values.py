"""What a record's value holds: one encoded image, an npy array or a msgpack batch.

Runs in the decoder processes only; of all this the daemon calls `most_images`, which looks at the type alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from monitor.core.types import Record
from monitor.ingest.decode.flat import FlatError, FlatReader

MAX_KEYS = 64
"""Of a msgpack batch; three have a meaning, the others are skipped."""

Image = bytes | NDArray[np.uint8]

_COLUMNS: dict[str, tuple[type[Any], ...]] = {"images": (bytes,), "ids": (str, int), "timestamps": (int,)}
"""Keys of a msgpack batch, and the types of their values."""

_NPY_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


REASONS = {
    *("empty", "bytes", "images", "npy", "msgpack", "event-time"),
    *("format", "pixels", "truncated", "corrupt", "shape", "dtype"),
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


def read_value(value: bytes, content_type: bytes | None, max_images: int) -> Contents:
    """The images of a value.

    Raises:
        DecodeError: malformed, without an image, or with more than `max_images`.
    """
    kind = _kind(content_type, value)
    if kind == "npy":
        return Contents(_npy(value, max_images))
    return _msgpack(value, max_images) if kind == "msgpack" else Contents([value])


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


def _npy(value: bytes, max_images: int) -> list[Image]:
    # not np.load: it also opens zip files, and allocates what the header claims before it reads the data
    stream = io.BytesIO(value)
    try:
        read_header = _NPY_HEADERS[npy_format.read_magic(stream)]
        shape, fortran_order, dtype = read_header(stream)
        if dtype == np.uint8:
            flat = np.frombuffer(value, np.uint8, offset=stream.tell())
            array = flat.reshape(shape, order="F" if fortran_order else "C")
    except Exception as error:  # the errors of the header's parser are not documented
        raise DecodeError("npy", f"not a readable npy array: {type(error).__name__}: {error}") from error
    if dtype != np.uint8 or len(shape) not in {2, 3, 4}:
        raise DecodeError("npy", "an npy record must be one uint8 array, HW, HWC or NHWC")
    if array.ndim == 4:
        _check_count(len(array), max_images)
        return list(array)
    return [array]


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
