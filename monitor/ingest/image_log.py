"""The image log: one line of JSON per image, for labelling queues and audits (configured as `verdicts`).

At least once, and in the order of each partition: a batch is written before it is applied, so every counted image has
been written, and after a crash a batch is written again with the same ids. Lines are keyed by stream, so that a stream
stays in order in a topic too.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

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

Line = tuple[str, bytes]
"""(stream, one line of JSON without its end)"""


class ImageLog:
    """Makes lines of the images that pass the filter, and writes them; belongs to the consumer's thread.

    Args:
        target: topic or stream key to write to.
        max_p_value: images whose OOD p-value is larger are left out.
    """

    def __init__(self, producer: Producer, target: str, max_p_value: float) -> None:
        self._producer, self._target, self._max_p_value = producer, target, max_p_value

    def lines(self, images: Iterable[Judged], layouts: Mapping[str, Layout]) -> list[Line]:
        """The lines of these images, in their order; `layouts`: fingerprint -> layout of the profiles that judged."""
        return [
            (image.stream, _line(image, layouts[image.fingerprint]))
            for image in images
            if image.p_values[0] <= self._max_p_value
        ]

    def write(self, lines: Iterable[Line]) -> None:
        """Return when all of them are on disk or acknowledged.

        Raises:
            SourceError, FatalSourceError: see `Producer`; write all of them again.
        """
        for stream, line in lines:
            self._producer.send(self._target, line, stream.encode("utf-8", "backslashreplace"), [CONTENT_TYPE])
        self._producer.flush()

    def close(self) -> None:
        """Free everything; never raises."""
        self._producer.close()


def _line(image: Judged, layout: Layout) -> bytes:
    """Names that are not UTF-8 are escaped."""
    row = {
        "schema": SCHEMA,
        "id": image.id,
        "stream": image.stream,
        "event_time": rfc3339(image.event_time_ms),
        "profile": image.fingerprint,
        **({"condition": layout.condition} if layout.condition else {}),
        "ood": bool(image.p_values[0] <= OOD_LEVEL),
        # six digits: p-values of ten thousand calibration images differ in the fourth
        "p_values": {
            signal: float(f"{p:.6g}") for signal, p in zip(layout.signals, image.p_values.tolist(), strict=True)
        },
    }
    return json.dumps(row, separators=(",", ":")).encode("ascii")


class LineFile:
    """A `Producer` whose only topic is a file: one line per record, on disk when `flush` returns.

    The file is opened for every flush, so it may be rotated or removed at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []

    def send(
        self,
        topic: str,  # noqa: ARG002 - this and the following: the signature of `Producer`
        value: bytes,
        key: bytes | None = None,  # noqa: ARG002
        headers: Sequence[tuple[str, bytes]] = (),  # noqa: ARG002
        timestamp_ms: int | None = None,  # noqa: ARG002
    ) -> None:
        """Queue one line, given without its end."""
        self._waiting.append(value + b"\n")

    def flush(self) -> None:
        """See `Producer.flush`."""
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                _cut_incomplete_line(file)
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SourceError(f"verdicts: cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """See `Producer.close`."""
        self._waiting = []


def _cut_incomplete_line(file: BinaryIO) -> None:
    """Cut off an incomplete last line that a crash left: it was never acknowledged, and is written again."""
    if os.fstat(file.fileno()).st_size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            complete = content.rfind(b"\n") + 1
        file.truncate(complete)


def open_image_log(settings: VerdictSettings, open_producer: Callable[[], Producer]) -> ImageLog | None:
    """The configured log; None if `settings.type` is none.

    Args:
        open_producer: makes the producer for the broker that `settings.type` names; it connects on first use.
    """
    if settings.type == "none":
        return None
    producer = LineFile(Path(settings.target)) if settings.type == "jsonl" else open_producer()
    return ImageLog(producer, settings.target, settings.max_p_value)
