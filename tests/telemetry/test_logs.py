"""The log: one JSON object per line, whatever wrote it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from monitor.telemetry.logs import LIBRARY_EVERY_S, FewerRepeats

PROGRAM = """
import logging, warnings
import structlog
from monitor.telemetry.logs import configure_logs

configure_logs("info", "json")
structlog.get_logger("ours").info("started", lines="a\\nb")
logging.getLogger("kafka").warning("of a\\nlibrary")
warnings.warn("of Python")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
"""


def test_every_line_is_an_object_and_strangers_write_none() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line.get("logger") for line in lines] == [None, "kafka", "py.warnings"]
    events = [line["event"] for line in lines]
    assert events[:2] == ["started", "of a\nlibrary"]
    assert "UserWarning: of Python" in events[2]
    assert len(events) == 3


def test_a_library_that_repeats_itself_is_heard_once_a_minute_with_the_number_of_repeats() -> None:
    now_s = 100.0
    repeats = FewerRepeats(lambda: now_s)

    def said(text: str, place: int) -> str | None:
        record = logging.LogRecord("kafka.net", logging.WARNING, "manager.py", place, "%s refused", (text,), None)
        return record.getMessage() if repeats.filter(record) else None

    assert [said(host, 7) for host in "abc"] == ["a refused", None, None]
    assert said("d", 8) == "d refused"
    now_s += LIBRARY_EVERY_S
    assert [said(host, 7) for host in "ef"] == ["e refused (2 more like it were left out)", None]
    assert said("g", 8) == "g refused"
