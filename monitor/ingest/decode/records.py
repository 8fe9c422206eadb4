"""Turns one record into its images, or a DecodeError with a reason code. No broker, no Redis, no torch.

What the value holds, `values.py` reads. Either all images of a record are used or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from detectors.images.decode import ImageError
from detectors.images.prepare import Prepared
from monitor.core.time_text import parse_time_ms
from monitor.core.types import Record, RecordImage
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.large import LargePicture, large_jpeg
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.wrapped import ValueReader
from monitor.ingest.settings import DecodingSettings, StreamNaming, ValueSettings

MAX_NAME_CHARS = 200
"""Stream names and ids become Redis fields, labels and page titles; longer ones are cut."""
MIN_TIME_MS, MAX_TIME_MS = -62_135_596_800_000, 253_402_300_799_999
"""Event times of the years 1 to 9999: others cannot be written as a date."""


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
    value: ValueSettings = field(default_factory=ValueSettings)

    @cached_property
    def reader(self) -> ValueReader:
        """Reads the values of records."""
        return ValueReader(self.settings, self.value)

    def __call__(self, record: Record) -> list[Decoded]:
        """Every image of the record.

        Raises:
            DecodeError: the whole record is unusable; the message names the broken image.
            UnavailableError: a server that the record needs does not answer.
        """
        decoded: list[Decoded] = []
        for item in expand(record, self.naming, self.reader):
            try:
                prepared = self.preparers.of(item.stream)(item.image, item.id.encode())
            except ImageError as error:
                raise DecodeError(error.code, f"image {len(decoded)}: {error}") from error
            decoded.append(Decoded(item.id, item.stream, item.event_time_ms, prepared))
        return decoded

    def large(self, asked: LargePicture) -> bytes:
        """One image of a record as a JPEG; raises what a call raises."""
        item = expand(asked.record, self.naming, self.reader)[asked.index]
        try:
            pixels = self.preparers.of(item.stream).upright(item.image, asked.longest_px)
        except ImageError as error:
            raise DecodeError(error.code, str(error)) from error
        return large_jpeg(pixels, asked.longest_px)


def expand(record: Record, naming: StreamNaming, reader: ValueReader) -> list[RecordImage]:
    """The images of a record, still encoded, with their ids, stream and event times.

    Raises:
        DecodeError: empty, too large, of an unknown type, or malformed.
        UnavailableError: a server that the record needs does not answer.
    """
    check_size(record, reader.limits.max_record_bytes)
    contents = reader(record.value or b"", record.header("content-type"))
    count = len(contents.images)
    if not count:
        raise DecodeError("empty", "the record holds no images")
    base = f"{record.partition.topic}/{record.partition.index}/{record.offset}"
    ids = contents.ids or ([base] if count == 1 else [f"{base}/{i}" for i in range(count)])
    times = contents.times or [_event_time(record, naming)] * count
    if wrong := [time_ms for time_ms in times if not MIN_TIME_MS <= time_ms <= MAX_TIME_MS]:
        raise DecodeError("event-time", f"{wrong[0]} ms are outside the years 1 to 9999; is it in milliseconds?")
    stream = stream_of(record, naming)
    return [
        # "replace": half a surrogate pair cannot be written anywhere
        RecordImage(str(id_)[:MAX_NAME_CHARS].encode("utf-8", "replace").decode(), stream, time_ms, image)
        for id_, time_ms, image in zip(ids, times, contents.images, strict=True)
    ]


def check_size(record: Record, max_bytes: int) -> None:
    """Refuse a record by its size alone, before anything looks into it.

    Raises:
        DecodeError: without a value, or larger than `max_bytes` with its key and headers.
    """
    if not record.value:
        raise DecodeError("empty", "the record has no value")
    if record.size > max_bytes:
        raise DecodeError(
            "bytes", f"{record.size} bytes (with key and headers) are more than decoding.max_record_bytes ({max_bytes})"
        )


def stream_of(record: Record, naming: StreamNaming) -> str:
    """The stream of a record; `naming.name` if its key or header is missing."""
    if naming.source == "constant":
        return naming.name
    raw = record.key if naming.source == "key" else record.header(naming.header)
    # four bytes a character at most: the rest of a long key is not looked at
    return (raw or b"")[: 4 * MAX_NAME_CHARS].decode("utf-8", "replace")[:MAX_NAME_CHARS] or naming.name


def _event_time(record: Record, naming: StreamNaming) -> int:
    raw = record.header(naming.event_time_header) if naming.event_time_header else None
    if raw is None:
        return record.timestamp_ms
    try:
        return parse_time_ms(raw[:100].decode("utf-8", "replace"))
    except ValueError as error:
        raise DecodeError("event-time", f"header {naming.event_time_header}: {error}") from error
