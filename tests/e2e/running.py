"""Configurations of daemons, commands as processes of their own, and waiting for what they do."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from monitor.store.child_process import free_port

PATIENCE_S = 110.0
"""Long enough for a busy machine to load torch several times; nothing waits for it to pass."""


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; fails with `what` when it never comes."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            faulthandler.dump_traceback(2)  # to stderr: what all threads wait for
            raise AssertionError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(0.05)
    return value


def config_file(folder: Path, settings: dict[str, Any]) -> Path:
    """A configuration whose status page has a port of its own."""
    port = free_port()
    path = folder / f"config-{port}.yaml"
    path.write_text(yaml.safe_dump({**settings, "web": {**settings.get("web", {}), "port": port}}))
    return path


def layerwatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the command line, run to its end."""
    command = [sys.executable, "-m", "monitor", *arguments]
    patience_s = 2 * PATIENCE_S  # some of them score thousands of images
    return subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
