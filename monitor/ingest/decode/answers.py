"""What a decoder process sends back for a record: packed there, checked here.

A decoder that runs a sender's code may send anything, so the daemon takes no more bytes than the images of one record
can have, builds nothing but flat values, and checks each against what the record and the profile allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgpack
import numpy as np

from detectors.images import properties
from detectors.images.decode import FURTHER_PICTURES
from detectors.images.prepare import Prepared, Preparer
from detectors.images.tones import ABOVE_WHITE
from monitor.core.types import Record
from monitor.ingest.decode.flat import FlatError, FlatReader
from monitor.ingest.decode.large import JPEG_START, MOST_BYTES
from monitor.ingest.decode.records import MAX_NAME_CHARS, MAX_TIME_MS, MIN_TIME_MS, Decoded, Decoder, stream_of
from monitor.ingest.decode.values import REASONS

MAX_TEXT_CHARS = 2000
BESIDE_PIXELS = 4096
"""Most bytes of an image's other values: two names of 200 characters, 17 properties, and small numbers."""
NOTES = {ABOVE_WHITE, FURTHER_PICTURES}

Refusal = tuple[str, str]
"""(reason code, text for a person)"""


def pack_images(images: Sequence[Decoded], took_s: float) -> bytes:
    """The answer for a record whose images are usable: 3 values, then 10 for each image, in one flat list."""
    values: list[object] = [took_s, "", len(images)]
    for image in images:
        p = image.prepared
        pixels, measured = np.ascontiguousarray(p.pixels), np.ascontiguousarray(p.properties, dtype="<f8")
        values += [image.id, image.event_time_ms, pixels.data.cast("B"), measured.data.cast("B")]
        values += [p.digest, p.key, p.width, p.height, p.mode, ",".join(p.notes)]
    return _packed(values)


def pack_large(picture: bytes, took_s: float) -> bytes:
    """The answer to a `LargePicture`."""
    return _packed([took_s, "", picture])


def pack_refusal(reason: str, text: str, took_s: float) -> bytes:
    """The answer for a record that cannot be used."""
    return _packed([took_s, reason, text[:MAX_TEXT_CHARS]])


def most_bytes(decoder: Decoder) -> int:
    """Size of the largest answer that the decoder's limits allow."""
    pixels = max(math.prod(preparer.shape) for preparer in decoder.preparers.all())
    return decoder.settings.max_images_per_record * (3 * pixels + BESIDE_PIXELS) + 4 * MAX_TEXT_CHARS + 64 + MOST_BYTES


def read_answer(message: bytes, record: Record, decoder: Decoder) -> tuple[float, list[Decoded] | Refusal]:
    """(seconds that decoding took, images or why the record is refused).

    Raises:
        FlatError: not an answer to this record.
    """
    reader = FlatReader(message)
    reader.open_list()
    took_s, reason = reader.plain(float), reader.plain(str)
    _check(0 <= took_s < 1e9, "seconds")
    if reason:
        _check(reason in REASONS, "reason")
        text = reader.plain(str)
        reader.end()
        return took_s, (reason, text[:MAX_TEXT_CHARS])
    count = reader.plain(int)
    _check(1 <= count <= decoder.settings.max_images_per_record, "number of images")
    stream = stream_of(record, decoder.naming)
    preparer = decoder.preparers.of(stream)
    images = [_read_image(reader, stream, preparer) for _ in range(count)]
    reader.end()
    return took_s, images


def read_large(message: bytes) -> bytes | Refusal:
    """The JPEG that `pack_large` packed, or why there is none.

    Raises:
        FlatError: not such an answer.
    """
    reader = FlatReader(message)
    reader.open_list()
    reader.plain(float)
    if reason := reader.plain(str):
        return reason, reader.plain(str)[:MAX_TEXT_CHARS]
    picture = reader.plain(bytes)
    reader.end()
    _check(picture.startswith(JPEG_START) and len(picture) <= MOST_BYTES, "picture")
    return picture


def _read_image(reader: FlatReader, stream: str, preparer: Preparer) -> Decoded:
    id_, event_time_ms = reader.plain(str), reader.plain(int)
    _check(len(id_) <= MAX_NAME_CHARS, "id")
    _check(MIN_TIME_MS <= event_time_ms <= MAX_TIME_MS, "event time")
    pixels, measured = reader.plain(bytes), reader.plain(bytes)
    _check(len(pixels) == 3 * math.prod(preparer.shape), "pixels")
    _check(len(measured) == 8 * len(properties.NAMES), "properties")
    floats = np.frombuffer(measured, "<f8")
    _check(bool(np.isfinite(floats).all()), "properties")
    digest, key = reader.plain(bytes), reader.plain(bytes)
    _check(len(digest) == 16, "digest")
    _check(len(key) <= 4 * MAX_NAME_CHARS, "key")
    width, height, mode = reader.plain(int), reader.plain(int), reader.plain(str)
    _check(0 < width < 2**31 and 0 < height < 2**31 and len(mode) <= 20, "size or mode")
    notes = tuple(note for note in reader.plain(str).split(",") if note)
    _check(NOTES.issuperset(notes), "notes")
    array = np.frombuffer(pixels, np.uint8).reshape(*preparer.shape, 3)
    prepared = Prepared(array, floats, digest, key, width, height, mode, notes, preparer.resize)
    return Decoded(id_, stream, event_time_ms, prepared)


def _check(allowed: bool, what: str) -> None:
    if not allowed:
        raise FlatError(f"{what} out of range")


def _packed(values: Sequence[object]) -> bytes:
    # a text out of broken bytes may hold half a surrogate pair
    packed: bytes = msgpack.packb(values, unicode_errors="backslashreplace")
    return packed
