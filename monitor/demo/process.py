"""The daemon as a process of its own: the same command a service manager would run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import httpx
import yaml

from monitor.store.private_server import dies_with_parent, free_port

READY_TIMEOUT_S = 90.0
"""Loading torch takes 4 s on a quiet machine, and several times that on a crowded one."""
STOP_TIMEOUT_S = 30.0
PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment for processes that share few cores: threads of torch that wait sleep instead of spinning.

Two processes with two spinning threads each slowed a fit on two cores from 34 s to beyond 120 s.
"""


class DemoError(Exception):
    """Something that the demo needs does not work; the message says what."""


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


class DaemonProcess:
    """`layerwatch run` on a configuration, between `__enter__` (ready) and `__exit__` (ended).

    Args:
        folder: where its configuration and its log are written.
        settings: the configuration; the section `web` is filled in here.

    Raises:
        DemoError: it ended or did not become ready; with the end of its log.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._log_path, self._config_path = folder / "daemon.log", folder / "config.yaml"
        web = {"host": "127.0.0.1", "port": port, "external_url": self.address}
        self._config_path.write_text(yaml.safe_dump({**settings, "web": web}, sort_keys=False), encoding="utf-8")
        self._http = httpx.Client(base_url=self.address, timeout=5.0, trust_env=False)  # never through a proxy
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DaemonProcess:
        with self._log_path.open("wb") as log_file:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [*dies_with_parent(), sys.executable, "-m", "monitor", "run", "-c", str(self._config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the demo only, which ends its parts in order
                env={k: v for k, v in os.environ.items() if not k.startswith("LAYERWATCH__")} | PASSIVE_WAITING,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        self._http.close()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def streams(self) -> dict[str, StreamJson]:
        """What the daemon reports of every stream that it has seen, by name.

        Raises:
            DemoError: it has ended or does not answer.
        """
        self._check_alive()
        try:
            answer = self._http.get("/api/v1/streams")
            answer.raise_for_status()
            streams: dict[str, StreamJson] = answer.json()["streams"]
        except (httpx.HTTPError, ValueError) as error:
            raise DemoError(f"the daemon does not answer: {error}{self.log_tail()}") from error
        return streams

    def watch_until_interrupted(self) -> None:
        """Return at Ctrl-C; raises DemoError when the daemon ends by itself."""
        try:
            while True:
                self._check_alive()
                time.sleep(0.5)
        except KeyboardInterrupt:
            return

    def log_tail(self) -> str:
        """The last lines of its log, each on a line of its own."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "".join(f"\n  {line}" for line in lines)

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise DemoError(f"the daemon ended with status {self._process.returncode}{self.log_tail()}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                if self._http.get("/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.1)
        raise DemoError(f"the daemon was not ready after {READY_TIMEOUT_S:.0f} s{self.log_tail()}")
