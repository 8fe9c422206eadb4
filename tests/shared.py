"""Parts that the worker processes of a test run share: each is started once, by the process that began the run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Client, Listener
from pathlib import Path

from monitor.store.child_process import ChildProcess
from tests.kafka.broker import Broker

ZYGOTE_START_TIMEOUT_S = 30.0
END = "end"


class ZygoteProcess(ChildProcess):
    """Forks daemons; see tests/faults/zygote.py."""

    def __init__(self, socket: Path, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__("the zygote", socket.with_suffix(".log"), stop_timeout_s=1.0)
        self.socket, self._environ = socket, environ

    def start(self) -> None:
        """Start it and wait until requests can be sent; it answers them once it has loaded torch."""
        command = [sys.executable, "-m", "tests.faults.zygote", str(self.socket)]
        self._launch(command, env=self._environ)
        self._wait_until(self.socket.exists, ZYGOTE_START_TIMEOUT_S)


class SharedParts:
    """Starts parts on request and ends them all with the run.

    Workers find it by its folder, which holds its socket. One thread serves them all and lives as long as the run:
    the kernel ends what a thread has started when that thread ends.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="layerwatch-tests-"))
        self._listener = Listener(str(_socket(self.folder)), "AF_UNIX", backlog=64)
        self._broker: Broker | None = None
        self._zygote: ZygoteProcess | None = None
        self._environ = dict(os.environ)  # a test may change it
        self._thread = threading.Thread(target=self._serve, name="shared parts", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        parts = {"kafka": self._bootstrap_servers, "zygote": self._zygote_socket}
        while True:
            with self._listener.accept() as connection:
                part = connection.recv()
                if part == END:
                    return
                try:
                    connection.send(parts[part]())
                except Exception as error:  # raised where it was asked for
                    connection.send(error)

    def _bootstrap_servers(self) -> str:
        if self._broker is None:
            broker = Broker(self.folder)
            broker.start()
            self._broker = broker
        return self._broker.bootstrap_servers

    def _zygote_socket(self) -> str:
        if self._zygote is None:
            zygote = ZygoteProcess(self.folder / "zygote", self._environ)
            zygote.start()
            self._zygote = zygote
        return str(self._zygote.socket)

    def close(self) -> None:
        """End every part."""
        for part in (self._zygote, self._broker):
            if part is not None:
                part.kill()
        with Client(str(_socket(self.folder)), "AF_UNIX") as connection:
            connection.send(END)
        self._thread.join()
        self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def ask(folder: Path, part: str) -> str:
    """Where a part is found; starts it if this is the first request.

    Raises:
        BrokerUnavailableError: this machine cannot run a Kafka broker.
    """
    with Client(str(_socket(folder)), "AF_UNIX") as connection:
        connection.send(part)
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return str(answer)


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Whether the caller is the first of all workers, and has to fill the folder; the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not folder.exists()


def _socket(folder: Path) -> Path:
    return folder / "shared"
