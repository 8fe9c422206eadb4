"""Structured logs on stderr: one JSON object per line, or coloured lines for a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Literal

import structlog
from structlog.typing import Processor


class _UnfailingStream:
    """A stream whose writes never raise: a full disk or a closed pipe loses log lines and does not stop the daemon."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


LIBRARY_EVERY_S = 60.0
"""Between two lines from one place in a library: while a broker is away, its client writes several a second."""


class FewerRepeats(logging.Filter):
    """Lets one line a minute through from each place in a library, with the number of those left out since.

    Args:
        now_s: the monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now_s = now_s
        self._places: dict[tuple[str, str, int], tuple[float, int]] = {}  # -> (when one got through, left out since)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; called from many threads, which may at worst miscount."""
        if record.name == "py.warnings":  # all of them come from one place, and Python repeats none
            return True
        place, now_s = (record.name, record.pathname, record.lineno), self._now_s()
        since_s, left_out = self._places.get(place, (float("-inf"), 0))
        if now_s - since_s < LIBRARY_EVERY_S:
            self._places[place] = since_s, left_out + 1
            return False
        self._places[place] = now_s, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        return True


def configure_logs(level: Literal["debug", "info", "warning", "error"], style: Literal["json", "console"]) -> None:
    """Write the events of Layerwatch and of its libraries to stderr in one style."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=_UnfailingStream(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_UnfailingStream(sys.stderr))
    handler.addFilter(FewerRepeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # libraries log warnings and above only; at DEBUG the Kafka client would write the SASL password
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)  # they would stand between the lines as bare text
    # below errors it only says that a client sent no HTTP, as port scanners do
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.ERROR))
