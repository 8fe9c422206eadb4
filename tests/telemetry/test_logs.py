"""The log: one JSON object per line, whatever wrote it."""

from __future__ import annotations

import json
import subprocess
import sys

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
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events[:2] == ["started", "of a\nlibrary"]
    assert "UserWarning: of Python" in events[2]
    assert len(events) == 3
