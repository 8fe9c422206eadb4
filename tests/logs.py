"""What one module logs, whatever `configure_logs` has set before in this process."""

from __future__ import annotations

from types import ModuleType

import pytest
import structlog
from structlog.testing import LogCapture


def capture_log_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> LogCapture:
    """Its `entries` are filled from now on."""
    capture = LogCapture()
    everything = structlog.make_filtering_bound_logger(0)
    monkeypatch.setattr(module, "log", structlog.wrap_logger(None, [capture], wrapper_class=everything))
    return capture
