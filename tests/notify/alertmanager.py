"""A real Alertmanager as a child process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from monitor.store.child_process import ChildProcess, free_port
from tests.plain_http import get

BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
START_TIMEOUT_S = 20.0


class Alertmanager(ChildProcess):
    """Runs between `start` and `stop`, or as a context manager.

    Args:
        folder: where its settings, data and log lie.
        settings: its whole configuration.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__("Alertmanager", folder / "alertmanager.log", stop_timeout_s=5.0)
        self._folder = folder
        self._address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self._address}"
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(dict(settings)))

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._launch(
            [
                str(BINARY),
                f"--config.file={self._folder / 'alertmanager.yml'}",
                f"--storage.path={self._folder / 'alertmanager'}",
                f"--web.listen-address={self._address}",
                "--cluster.listen-address=",
            ]
        )
        self._wait_until(self._ready, START_TIMEOUT_S)

    def get(self, path: str) -> Any:
        """What its API answers."""
        return get(f"{self.url}/api/v2/{path}", timeout=5).raise_for_status().json()

    def active(self) -> list[str]:
        """Streams of the alerts that fire, as it sees it."""
        return sorted(alert["labels"]["stream"] for alert in self.get("alerts"))

    def _ready(self) -> bool:
        try:
            return get(f"{self.url}/-/ready", timeout=5).is_success
        except httpx.TransportError:
            return False
