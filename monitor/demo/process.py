"""The daemon as a process of its own: the same command a service manager would run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import httpx
import yaml

from monitor.store.child_process import ChildError, ChildProcess, free_port

READY_TIMEOUT_S = 90.0
"""Loading torch takes 4 s on a quiet machine, and several times that on a crowded one."""
STOP_TIMEOUT_S = 30.0
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment for processes that share few cores: threads of torch that wait sleep instead of spinning.

Two processes with two spinning threads each slowed a fit on two cores from 34 s to beyond 120 s.
"""


class StreamJson(TypedDict):
    """What the demo reads of a stream in `/api/v1/streams`."""

    applied: int
    rejected: int
    late: int
    duplicates: int
    ood_share: float | None
    """Of the last minute of event time."""
    alerts: list[str]
    """Rules that are pending or firing."""


class DaemonProcess(ChildProcess):
    """`layerwatch run` on a configuration; `start` returns once it is ready.

    Args:
        folder: where its configuration and its log are written.
        settings: the configuration; the section `web` is filled in here.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__("the daemon", folder / "daemon.log", STOP_TIMEOUT_S)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.config = folder / "config.yaml"
        web = {"host": "127.0.0.1", "port": port, "external_url": self.address}
        self.config.write_text(yaml.safe_dump({**settings, "web": web}, sort_keys=False), encoding="utf-8")
        self._http = httpx.Client(base_url=self.address, timeout=5.0, trust_env=False)  # never through a proxy

    def start(self) -> None:
        self._launch([sys.executable, "-m", "monitor", "run", "-c", str(self.config)], env=environment())
        self._wait_until(self._is_ready, READY_TIMEOUT_S)

    def stop(self) -> None:
        self._http.close()
        super().stop()

    def streams(self) -> dict[str, StreamJson]:
        """What the daemon reports of every stream that it has seen, by name.

        Raises:
            ChildError: it has ended or does not answer.
        """
        streams: dict[str, StreamJson] = self._get("streams")["streams"]
        return streams

    def profiles(self) -> dict[str, str]:
        """{address in its configuration: address of the version that it scores with}; errors as `streams`."""
        replicas = self._get("profile")["replicas"]
        found: dict[str, str] = replicas[0]["profiles"] if replicas else {}
        return found

    def _get(self, what: str) -> dict[str, Any]:
        self.check_alive()
        try:
            answer = self._http.get(f"/api/v1/{what}")
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ChildError(f"the daemon does not answer: {error}{self.log_tail()}") from error
        return found

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False  # not listening yet


def environment() -> dict[str, str]:
    """Of the daemon and of commands: nothing of this machine's own configuration."""
    return {k: v for k, v in os.environ.items() if not k.startswith("LAYERWATCH__")} | PASSIVE_WAITING


def layerwatch(*words: str) -> subprocess.CompletedProcess[str]:
    """One command of the command line, run to its end."""
    command = [sys.executable, "-m", "monitor", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)  # noqa: S603 - our own
