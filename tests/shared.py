"""Parts that the worker processes of a test run share: each is started once, by the process that began the run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path

from monitor.store.private_server import dies_with_parent
from tests.kafka.broker import Broker

ZYGOTE_STOP_TIMEOUT_S = 10.0
END = "end"


class SharedParts:
    """Starts parts on request and ends them all with the run.

    Workers find it by its folder, which holds its socket. One thread serves them all and lives as long as the run:
    the kernel ends what a thread has started when that thread ends.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="layerwatch-tests-"))
        self._listener = Listener(str(_socket(self.folder)), "AF_UNIX", backlog=64)
        self._broker: Broker | None = None
        self._zygote: subprocess.Popen[bytes] | None = None
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
        path = str(self.folder / "zygote")
        if self._zygote is None:
            one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)
                server.listen(64)
                self._zygote = subprocess.Popen(
                    [*dies_with_parent(), sys.executable, "-m", "tests.faults.zygote", str(server.fileno())],
                    pass_fds=[server.fileno()],
                    env={**os.environ, **one_thread},
                )
        return path

    def close(self) -> None:
        """End every part."""
        if self._zygote is not None:
            self._zygote.terminate()
            try:
                self._zygote.wait(ZYGOTE_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        if self._broker is not None:
            self._broker.kill()
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
