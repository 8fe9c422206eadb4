"""A program that runs as a child of this process: started, awaited and ended in one way."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_S = 0.05
LOG_TAIL_LINES = 5


class ChildError(Exception):
    """The program is missing, did not become ready, or ended by itself; with the last lines of its log."""


class ChildProcess(ABC):
    """Runs a program between `start` and `stop`, or as a context manager; `start` again starts it again.

    Its output is appended to a log file. Ctrl-C in the terminal does not reach it, and the kernel kills it (Linux)
    when this process ends without `stop`.

    Args:
        name: what messages call it, such as "the daemon".
        log_path: where its output goes.
        stop_timeout_s: what it gets between SIGTERM and SIGKILL.
    """

    def __init__(self, name: str, log_path: Path, stop_timeout_s: float) -> None:
        self._name, self._log_path, self._stop_timeout_s = name, log_path, stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it can be used: `_launch`, then `_wait_until`.

        Raises:
            ChildError: it did not become ready; it has been killed.
        """

    @property
    def pid(self) -> int | None:
        """Process id of the running program."""
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """SIGKILL, as a crash would; does nothing where it does not run."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after `stop_timeout_s`; it has ended when this returns or raises."""
        try:
            if self._process:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(self._stop_timeout_s)
        finally:
            self.kill()

    def check_alive(self) -> None:
        """Raises ChildError where it has ended by itself."""
        if self._process and self._process.poll() is not None:
            raise ChildError(f"{self._name} ended with status {self._process.returncode}{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log, each on a line of its own."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "".join(f"\n  {line}" for line in lines)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(
        self, command: Sequence[str], directory: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the program and return at once; directory and environment are those of this process where None."""
        self.kill()
        with self._log_path.open("ab") as log_file:
            self._process = subprocess.Popen(  # noqa: S603 - the subclasses name their own programs
                [*_dies_with_parent(), *command],
                cwd=directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `is_ready` returns True; kills it and raises ChildError when it ends or takes longer."""
        deadline = time.monotonic() + timeout_s
        with ExitStack() as on_failure:
            on_failure.callback(self.kill)
            while not is_ready():
                self.check_alive()
                if time.monotonic() > deadline:
                    raise ChildError(f"{self._name} was not ready after {timeout_s:.0f} s{self.log_tail()}")
                time.sleep(POLL_S)
            on_failure.pop_all()


@cache
def _dies_with_parent() -> tuple[str, ...]:
    """A prefix that lets the kernel kill the program when this process dies; empty where util-linux is missing."""
    setpriv = shutil.which("setpriv")
    if not setpriv:
        return ()
    supported = subprocess.run([setpriv, "--help"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    return (setpriv, "--pdeathsig", "KILL") if "--pdeathsig" in supported else ()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
