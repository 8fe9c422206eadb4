"""Turns one record into its images, or a DecodeError with a reason code. No broker, no Redis, no torch.

The type of a record's value comes from its `content-type` header, else from its first bytes: an encoded image (one),
`application/x-npy` (uint8 HW, HWC or NHWC) or `application/msgpack`
(`{"images": [bytes, ...], "ids": [str, ...], "timestamps": [ms, ...]}`; the last two are optional). Either all images
of a record are used or none.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from detectors.images.prepare import ImageError, Prepared
from monitor.core.time_text import parse_time_ms
from monitor.core.types import Record, RecordImage
from monitor.ingest.scoring.profiles import Preparers
from monitor.ingest.settings import DecodingSettings, StreamNaming

MAX_NAME_CHARS = 200
"""Stream names and ids become Redis fields, labels and page titles; longer ones are cut."""

Image = bytes | NDArray[np.uint8]

_NPY_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


class DecodeError(Exception):
    """A record that cannot be used; `reason` is a short code for metrics and dead letters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class Decoded:
    """One image of a stream, ready to be scored."""

    id: str
    stream: str
    event_time_ms: int
    prepared: Prepared


@dataclass(frozen=True)
class Decoder:
    """Decodes records with the configured names and limits; thread-safe and picklable."""

    preparers: Preparers
    naming: StreamNaming
    settings: DecodingSettings

    def __call__(self, record: Record) -> list[Decoded]:
        """Every image of the record.

        Raises:
            DecodeError: the whole record is unusable; the message names the broken image.
        """
        decoded: list[Decoded] = []
        for item in expand(record, self.naming, self.settings):
            try:
                prepared = self.preparers.of(item.stream)(item.image, item.id.encode())
            except ImageError as error:
                raise DecodeError(error.code, f"image {len(decoded)}: {error}") from error
            decoded.append(Decoded(item.id, item.stream, item.event_time_ms, prepared))
        return decoded


def expand(record: Record, naming: StreamNaming, limits: DecodingSettings) -> list[RecordImage]:
    """The images of a record, still encoded, with their ids, stream and event times.

    Raises:
        DecodeError: empty, too large, of an unknown type, or malformed.
    """
    value = record.value
    if not value:
        raise DecodeError("empty", "the record has no value")
    if len(value) > limits.max_record_bytes:
        raise DecodeError("bytes", f"{len(value)} bytes are more than decoding.max_record_bytes")
    kind = _kind(record.header("content-type"), value)
    ids: Sequence[str | int] | None = None
    times: Sequence[int] | None = None
    if kind == "npy":
        images = _npy(value)
    elif kind == "msgpack":
        images, ids, times = _msgpack(value)
    else:
        images = [value]
    if len(images) > limits.max_images_per_record:
        raise DecodeError("images", f"{len(images)} images are more than decoding.max_images_per_record")
    stream, event_time_ms = stream_of(record, naming), _event_time(record, naming)
    if ids is None:
        base = f"{record.partition.topic}/{record.partition.index}/{record.offset}"
        ids = [base] if len(images) == 1 else [f"{base}/{i}" for i in range(len(images))]
    if times is None:
        times = [event_time_ms] * len(images)
    return [
        RecordImage(str(id_)[:MAX_NAME_CHARS], stream, time_ms, image)
        for id_, time_ms, image in zip(ids, times, images, strict=True)
    ]


def count_images(record: Record) -> int:
    """How many images a record claims to hold, at least 1, without unpacking them: for the limit of memory."""
    value = record.value or b""
    if not value:
        return 1
    kind = _kind(record.header("content-type"), value)
    try:
        if kind == "npy":
            stream = io.BytesIO(value[:4096])
            shape, _, _ = _NPY_HEADERS[npy_format.read_magic(stream)](stream)
            return max(1, shape[0]) if len(shape) == 4 else 1
        if kind == "msgpack":
            unpacker = msgpack.Unpacker(max_buffer_size=len(value) + 1)
            unpacker.feed(value)
            for _ in range(unpacker.read_map_header()):
                if unpacker.unpack() == "images":
                    return max(1, int(unpacker.read_array_header()))
                unpacker.skip()
    except Exception:  # malformed: decoding will reject it
        return 1
    return 1


def stream_of(record: Record, naming: StreamNaming) -> str:
    """The stream of a record; `naming.name` if its key or header is missing."""
    if naming.source == "constant":
        return naming.name
    raw = record.key if naming.source == "key" else record.header(naming.header)
    return (raw or b"").decode("utf-8", "replace")[:MAX_NAME_CHARS] or naming.name


def _kind(content_type: bytes | None, value: bytes) -> str:
    named = (content_type or b"").split(b";")[0].strip().lower()
    if named == b"application/x-npy" or value[:6] == b"\x93NUMPY":
        return "npy"
    # a msgpack map of 1 to 15 entries starts with 0x81..0x8f; PNG starts with 0x89 and its name
    is_map = 0x81 <= value[0] <= 0x8F and value[1:4] != b"PNG"
    if named in {b"application/msgpack", b"application/x-msgpack"} or (not named and is_map):
        return "msgpack"
    return "image"


def _npy(value: bytes) -> list[Image]:
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
    return list(array) if array.ndim == 4 else [array]


def _msgpack(value: bytes) -> tuple[list[Image], list[str | int] | None, list[int] | None]:
    """(images, ids, timestamps) of a msgpack map."""
    try:
        body = msgpack.unpackb(value, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, msgpack.ExtraData) as error:
        raise DecodeError("msgpack", f"not a readable msgpack map: {error}") from error
    images = body.get("images") if isinstance(body, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, bytes) for image in images):
        raise DecodeError("msgpack", "`images` must be a list of one or more encoded images")
    ids, times = body.get("ids"), body.get("timestamps")
    for name, values, kinds in (("ids", ids, {str, int}), ("timestamps", times, {int})):
        one_each = isinstance(values, list) and len(values) == len(images) and kinds.issuperset(map(type, values))
        if values is not None and not one_each:
            raise DecodeError("msgpack", f"`{name}` must have one plain value per image")
    return images, ids, times


def _event_time(record: Record, naming: StreamNaming) -> int:
    raw = record.header(naming.event_time_header) if naming.event_time_header else None
    if raw is None:
        return record.timestamp_ms
    try:
        return parse_time_ms(raw.decode("utf-8", "replace"))
    except ValueError as error:
        raise DecodeError("event-time", f"header {naming.event_time_header}: {error}") from error
