"""Reads the images of a shard, each with its id, stream and event time.

The id is the name that `layerwatch score` gives an image: it breaks ties between equal scores, so another one would
give another p-value. Stream and event time come from the fields that travel with an image (columns of a Parquet file,
the JSON of a WebDataset sample), else from its path by a pattern, else the stream is `Naming.stream` and the time is
when the file was written.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from detectors.images.reading import InputError
from monitor.cli.archive.shards import Shard, is_image, sample_of
from monitor.core.time_text import parse_time_ms
from monitor.ingest.decode.records import MAX_NAME_CHARS, MAX_TIME_MS, MIN_TIME_MS

AT_ONCE = 32
"""Files that are fetched together from an object store: their round trips overlap."""
ROWS_AT_ONCE = 64
UNREADABLE, NO_TIME = "unreadable", "event-time"
"""Reason codes beside those of `detectors.ImageError`."""


@dataclass(frozen=True)
class Naming:
    """Where an image's stream and event time are found.

    stream: of images that name none. pattern: a regular expression with the groups `stream` and `time`, searched in the
    path of an image, without a match where it does not matter. time_format: of the time, as `strptime` has it; RFC 3339
    or ms since the epoch without one. The fields are columns of a Parquet file or keys of a sample's JSON.

    Raises:
        InputError: no valid pattern, or one without these groups.
    """

    stream: str = "default"
    pattern: str = ""
    time_format: str = ""
    image_field: str = "image"
    id_field: str = "id"
    stream_field: str = "stream"
    time_field: str = "time"

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise InputError(f"--path-pattern {self.pattern!r}: {error}") from error
        if self.pattern and not groups.keys() & {"stream", "time"}:
            raise InputError(f"--path-pattern {self.pattern!r} has neither a group (?P<stream>...) nor (?P<time>...)")

    def stream_of(self, path: str, fields: Mapping[str, Any]) -> str:
        """The stream of an image; `path` is its URI, with its name within a tar file."""
        given = fields.get(self.stream_field)
        text = str(given) if given is not None else self._in_path(path, "stream") or self.stream
        return text[:MAX_NAME_CHARS]

    def time_of(self, path: str, fields: Mapping[str, Any], written_ms: int) -> int:
        """The event time of an image in ms since the epoch; errors as ValueError."""
        given = fields.get(self.time_field)
        given = self._in_path(path, "time") if given is None else given
        at_ms = written_ms if given is None else self._parsed(given)
        if not MIN_TIME_MS <= at_ms <= MAX_TIME_MS:
            raise ValueError(f"{at_ms} ms are outside the years 1 to 9999; is it in milliseconds?")
        return at_ms

    def _in_path(self, path: str, group: str) -> str | None:
        found = re.search(self.pattern, path) if self.pattern else None
        return found.groupdict().get(group) if found else None

    def _parsed(self, given: Any) -> int:
        if isinstance(given, str) and self.time_format:
            given = datetime.strptime(given, self.time_format)  # noqa: DTZ007 - in UTC unless it gives an offset
        if isinstance(given, datetime):
            return round((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)
        return parse_time_ms(str(given))


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a shard, still encoded.

    source: URI of the folder, tar or Parquet file. reason: code of why it cannot be used; empty where it can.
    """

    id: str
    source: str
    stream: str
    event_time_ms: int
    image: bytes = b""
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    image: bytes
    written_ms: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def read_shard(shard: Shard, naming: Naming) -> Iterator[Item]:
    """Every image of a shard in its order.

    Raises:
        InputError: the tar or Parquet file is damaged, or has no column of images.
        OSError: the store does not answer.
    """
    fs, path = url_to_fs(shard.root)
    readers = {"files": _files, "tar": _tar, "parquet": _parquet}
    try:
        for found in readers[shard.kind](fs, path, shard, naming):
            yield _item(found, shard.root, naming)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{shard.root}: cannot be read as a tar file: {error}") from error


def _item(found: _Found, source: str, naming: Naming) -> Item:
    place = f"{source}/{found.name}"
    stream, reason, error = naming.stream_of(place, found.fields), UNREADABLE if found.error else "", found.error
    try:
        at_ms = naming.time_of(place, found.fields, found.written_ms)
    except (ValueError, OverflowError) as problem:
        at_ms, reason, error = found.written_ms, NO_TIME, str(problem)
    return Item(found.name, source, stream, at_ms, b"" if reason else found.image, reason, error)


def _files(fs: AbstractFileSystem, path: str, shard: Shard, _naming: Naming) -> Iterator[_Found]:
    pairs = iter(zip(shard.names, shard.times, strict=True))
    while batch := list(islice(pairs, AT_ONCE)):
        places = [f"{path}/{name}" for name, _ in batch]
        contents = cast(dict[str, Any], fs.cat(places, on_error="return"))
        for (name, at_ms), place in zip(batch, places, strict=True):
            content = contents[place]
            if isinstance(content, FileNotFoundError | PermissionError | IsADirectoryError):
                yield _Found(name, b"", at_ms, error=f"{type(content).__name__}: {content}")
            elif isinstance(content, BaseException):
                raise content  # the store may answer later: the shard is tried again, not written off
            else:
                yield _Found(name, content, at_ms)


def _tar(fs: AbstractFileSystem, path: str, shard: Shard, _naming: Naming) -> Iterator[_Found]:
    offset, count = shard.span
    with fs.open(path) as file:
        if offset:
            file.seek(offset)
        # a stream unless there is something to skip: no seeking in what comes over the network, or is compressed
        with tarfile.open(fileobj=file, mode="r:" if count else "r|*") as archive:
            for _, sample in groupby(islice(archive, count or None), key=lambda member: sample_of(member.name)):
                images, fields = [], {}
                for member in sample:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None and is_image(member.name):
                        images.append((member.name, content.read(), round(member.mtime * 1000) or shard.modified_ms))
                    elif content is not None and member.name.endswith(".json"):
                        fields = _object(content.read())
                if count:
                    archive.members = []  # type: ignore[attr-defined]
                yield from (_Found(name, image, at_ms, fields) for name, image, at_ms in images)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parquet(fs: AbstractFileSystem, path: str, shard: Shard, naming: Naming) -> Iterator[_Found]:
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 - of the extra

    name, row = path.rpartition("/")[2], shard.first_row
    with fs.open(path) as file:
        try:
            table = parquet.ParquetFile(file)
            wanted = {naming.image_field, naming.id_field, naming.stream_field, naming.time_field}
            columns = [column for column in table.schema_arrow.names if column in wanted]
            if naming.image_field not in columns:
                known = ", ".join(table.schema_arrow.names)
                raise InputError(f"{shard.root}: no column {naming.image_field!r} of images (it has {known})")
            for batch in table.iter_batches(ROWS_AT_ONCE, range(*shard.span), columns):
                for fields in batch.to_pylist():
                    image, own_name = _bytes_of(fields[naming.image_field])
                    given = fields.get(naming.id_field)
                    yield _Found(
                        str(given) if given is not None else own_name or f"{name}/{row}",
                        image,
                        shard.modified_ms,
                        fields,
                    )
                    row += 1
        except ArrowException as error:
            raise InputError(f"{shard.root}: cannot be read as Parquet: {error}") from error


def _bytes_of(value: Any) -> tuple[bytes, str]:
    """An image column holds bytes, or {"bytes", "path"} as Hugging Face writes it; no bytes for anything else."""
    if isinstance(value, Mapping):
        return value.get("bytes") or b"", str(value.get("path") or "")
    return value if isinstance(value, bytes) else b"", ""
