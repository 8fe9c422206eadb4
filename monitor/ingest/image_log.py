"""The sink of per-image verdicts: one line of JSON for every image, for labelling queues and audits.

At least once, and in the order of each partition: the reader writes a batch before it applies it, so what is counted
has been written, and a batch that is read again after a crash is written again, with the same ids. Lines are keyed by
stream, so that a stream stays in order in the topic too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from monitor.core.aggregate import Judged
from monitor.core.alert_document import rfc3339
from monitor.core.buckets import Layout
from monitor.sources import Producer, open_producer
from monitor.sources.protocol import SourceError

if TYPE_CHECKING:
    from monitor.config.schema import Config


SCHEMA = "layerwatch.verdict/1"
OOD_LEVEL = 0.05
"""`ood` is true at p <= this: the level of the overview and of the default rule."""
CONTENT_TYPE = ("content-type", b"application/json")
SUBJECT = "verdicts"
"""What the alert about a sink that cannot be written names as its subject."""

Line = tuple[str, bytes]
"""(stream, one line of JSON without its end)"""


class Lines(Protocol):
    """Where lines go. Belongs to one thread; may be used again after an error, with all that was not flushed."""

    def write(self, stream: str, line: bytes) -> None:
        """Hand one line over; raises as `flush`."""

    def flush(self) -> None:
        """Return when everything handed over is kept.

        Raises:
            SourceError: it is not; write it again after a while.
            FatalSourceError: we may not write there.
        """

    def close(self) -> None:
        """Free everything; never raises."""


class ImageLog:
    """Makes lines of what passes the filter, and writes them; belongs to the reader's thread.

    Args:
        layouts: fingerprint -> layout of the loaded profiles.
        max_p_value: images whose OOD p-value is larger are left out.
    """

    def __init__(self, lines: Lines, layouts: Mapping[str, Layout], max_p_value: float) -> None:
        self._lines, self._layouts, self._max_p_value = lines, layouts, max_p_value

    def lines(self, judged: Iterable[Judged]) -> list[Line]:
        """The lines of these images, in their order."""
        made = []
        for image in judged:
            if image.p_values[0] <= self._max_p_value:
                signals = self._layouts[image.fingerprint].signals
                p_values = dict(zip(signals, image.p_values.tolist(), strict=True))
                made.append((image.stream, verdict_line(image, p_values)))
        return made

    def write(self, lines: Iterable[Line]) -> None:
        """Return when all of them are kept.

        Raises:
            SourceError, FatalSourceError: see `Lines.flush`; give all of them again.
        """
        for stream, line in lines:
            self._lines.write(stream, line)
        self._lines.flush()

    def close(self) -> None:
        """Free everything; never raises."""
        self._lines.close()


def verdict_line(image: Judged, p_values: Mapping[str, float]) -> bytes:
    """One line of JSON, without its end; names that are no UTF-8 are escaped."""
    row: dict[str, Any] = {
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


class TopicLines:
    """Into a Kafka topic or a Redis stream, keyed by stream.

    Args:
        open_it: makes the producer, which connects on first use and anew after a failure.
    """

    def __init__(self, open_it: Callable[[], Producer], topic: str) -> None:
        self._producer, self._topic = open_it(), topic

    def write(self, stream: str, line: bytes) -> None:
        """See `Lines.write`."""
        self._producer.send(self._topic, line, stream.encode("utf-8", "backslashreplace"), [CONTENT_TYPE])

    def flush(self) -> None:
        """See `Lines.flush`."""
        self._producer.flush()

    def close(self) -> None:
        """See `Lines.close`."""
        self._producer.close()


class FileLines:
    """Appended to a file, on disk when `flush` returns. A rotated or removed file is begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._waiting: list[bytes] = []

    def write(self, stream: str, line: bytes) -> None:  # noqa: ARG002 - the signature of `Lines`
        """See `Lines.write`."""
        self._waiting.append(line + b"\n")

    def flush(self) -> None:
        """See `Lines.flush`."""
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
        """See `Lines.close`."""
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
    """Cut off what a crash left of a last line: it was never acknowledged, and is written again."""
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


def open_image_log(settings: Config, layouts: Mapping[str, Layout]) -> ImageLog | None:
    """The configured sink; None where there is none. It connects on first use."""
    sink = settings.verdicts
    lines: Lines
    if sink.type == "none":
        return None
    if sink.type == "jsonl":
        lines = FileLines(Path(sink.target))
    else:
        # the sink's broker need not be the source's: each has its own section
        broker = settings.source_settings(sink.type)
        lines = TopicLines(lambda: open_producer(broker), sink.target)
    return ImageLog(lines, layouts, sink.max_p_value)
