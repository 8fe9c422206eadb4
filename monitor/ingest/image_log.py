"""The image log: one line of JSON for every image, for labelling queues and audits (configured as `verdicts`).

At least once, and in the order of each partition: the consumer writes a batch before it applies it, so every image that
is counted has been written, and a batch that is read again after a crash is written again, with the same ids. Lines are
keyed by stream, so that a stream stays in order in a topic too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from monitor.core.aggregate import Judged
from monitor.core.alert_document import rfc3339
from monitor.core.buckets import Layout
from monitor.ingest.settings import VerdictSettings
from monitor.sources import Producer
from monitor.sources.protocol import SourceError

SCHEMA = "layerwatch.verdict/1"
OOD_LEVEL = 0.05
"""`ood` is true at p <= this: the level of the overview and of the default rule."""
CONTENT_TYPE = ("content-type", b"application/json")
SUBJECT = "verdicts"
"""Subject of the alert about a log that cannot be written."""

Line = tuple[str, bytes]
"""(stream, one line of JSON without its end)"""


class LineWriter(Protocol):
    """Writes lines to one place. Belongs to one thread; after an error, give everything that was not flushed again."""

    def write(self, stream: str, line: bytes) -> None:
        """Take one line; raises as `flush`."""

    def flush(self) -> None:
        """Return when everything taken is on disk or acknowledged.

        Raises:
            SourceError: it is not; write it again after a while.
            FatalSourceError: writing there is refused.
        """

    def close(self) -> None:
        """Free everything; never raises."""


class ImageLog:
    """Makes lines of the images that pass the filter, and writes them; belongs to the consumer's thread.

    Args:
        layouts: fingerprint -> layout of the loaded profiles.
        max_p_value: images whose OOD p-value is larger are left out.
    """

    def __init__(self, writer: LineWriter, layouts: Mapping[str, Layout], max_p_value: float) -> None:
        self._writer, self._layouts, self._max_p_value = writer, layouts, max_p_value

    def lines(self, images: Iterable[Judged]) -> list[Line]:
        """The lines of these images, in their order."""
        made = []
        for image in images:
            if image.p_values[0] <= self._max_p_value:
                signals = self._layouts[image.fingerprint].signals
                p_values = dict(zip(signals, image.p_values.tolist(), strict=True))
                made.append((image.stream, verdict_line(image, p_values)))
        return made

    def write(self, lines: Iterable[Line]) -> None:
        """Return when all of them are on disk or acknowledged.

        Raises:
            SourceError, FatalSourceError: see `LineWriter.flush`; give all of them again.
        """
        for stream, line in lines:
            self._writer.write(stream, line)
        self._writer.flush()

    def close(self) -> None:
        """Free everything; never raises."""
        self._writer.close()


def verdict_line(image: Judged, p_values: Mapping[str, float]) -> bytes:
    """One line of JSON, without its end; names that are not UTF-8 are escaped."""
    row = {
        "schema": SCHEMA,
        "id": image.id,
        "stream": image.stream,
        "event_time": rfc3339(image.event_time_ms),
        "profile": image.fingerprint,
        "ood": p_values["ood"] <= OOD_LEVEL,
        # six digits: p-values of ten thousand calibration images differ in the fourth
        "p_values": {signal: float(f"{p:.6g}") for signal, p in p_values.items()},
    }
    return json.dumps(row, separators=(",", ":")).encode("ascii")


class TopicWriter:
    """Writes to a Kafka topic or a Redis stream, keyed by stream."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer, self._topic = producer, topic

    def write(self, stream: str, line: bytes) -> None:
        """See `LineWriter.write`."""
        self._producer.send(self._topic, line, stream.encode("utf-8", "backslashreplace"), [CONTENT_TYPE])

    def flush(self) -> None:
        """See `LineWriter.flush`."""
        self._producer.flush()

    def close(self) -> None:
        """See `LineWriter.close`."""
        self._producer.close()


class FileWriter:
    """Appends to a file, which is on disk when `flush` returns. A file that was rotated or removed is created again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._waiting: list[bytes] = []

    def write(self, stream: str, line: bytes) -> None:  # noqa: ARG002 - the signature of `LineWriter`
        """See `LineWriter.write`."""
        self._waiting.append(line + b"\n")

    def flush(self) -> None:
        """See `LineWriter.flush`."""
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            file = self._opened()
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            self.close()
            raise SourceError(f"verdicts: cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """See `LineWriter.close`."""
        self._waiting = []
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk; what was not flushed is written again
                self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is not None and not self._is_still_there(self._file):
            self._file.close()
            self._file = None
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
            _drop_torn_line(self._file)
        return self._file

    def _is_still_there(self, file: BinaryIO) -> bool:
        try:
            found, mine = self._path.stat(), os.fstat(file.fileno())
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut off the part of a last line that a crash left: it was never acknowledged, and is written again."""
    end = file.seek(0, os.SEEK_END)
    kept = end
    while kept > 0:
        begin = max(0, kept - 4096)
        file.seek(begin)
        found = file.read(kept - begin).rfind(b"\n")
        if found >= 0:
            kept = begin + found + 1
            break
        kept = begin
    if kept < end:
        file.truncate(kept)
    file.seek(0, os.SEEK_END)


def open_image_log(
    settings: VerdictSettings, layouts: Mapping[str, Layout], open_producer: Callable[[], Producer]
) -> ImageLog | None:
    """The configured log; None where there is none.

    Args:
        open_producer: makes the producer for the broker that `settings.type` names; it connects on first use.
    """
    if settings.type == "none":
        return None
    target = settings.target
    writer = FileWriter(Path(target)) if settings.type == "jsonl" else TopicWriter(open_producer(), target)
    return ImageLog(writer, layouts, settings.max_p_value)
