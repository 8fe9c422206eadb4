"""Structured logs on stderr: one JSON object per line, or coloured lines for a terminal."""

from __future__ import annotations

import logging
import sys
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
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # libraries log warnings and above only; at DEBUG the Kafka client would write the SASL password
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)  # they would stand between the lines as bare text
    # below errors it only says that a client sent no HTTP, as port scanners do
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.ERROR))
