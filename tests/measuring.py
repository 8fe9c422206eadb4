"""What coverage's tracer, which doubles the time of Python code, need not see."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

PROGRAMS = "COVERAGE_PROCESS_CONFIG"
"""Environment variable by which coverage also measures the Python programs that a process starts."""


def load_untraced(*names: str) -> None:
    """Import these libraries, those that are installed, while nothing is traced in this thread."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        for name in names:
            with suppress(ImportError):
                importlib.import_module(name)
    finally:
        sys.settrace(tracer)
