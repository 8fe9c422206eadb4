"""A TCP proxy that fails as networks do: cut, refuse, delay, throttle, half-open, or swallow the answers only."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CHUNK = 65536


class Proxy:
    """Forwards from a port of its own to a target; behaviour changes take effect on open connections too.

    `target` may be changed: new connections go to the new one (`cut` ends the old).
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        """0 is unlimited."""
        self.frozen = False
        """Half-open: connections stay, nothing passes."""
        self.refusing = False
        self.swallow_answers = 0
        """So many chunks of answers are dropped, and their connections cut after each."""
        self.swallowed = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every open connection."""
        with self._lock:
            held, self._open = self._open, set()
        for connection in held:
            _end(connection)

    def close(self) -> None:
        """End for good."""
        self._closed = True
        _end(self._server)
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.refusing:
                _end(client)
                continue
            try:
                upstream = socket.create_connection(self.target, 5.0)
            except OSError:
                _end(client)
                continue
            upstream.settimeout(None)
            with self._lock:
                self._open |= {client, upstream}
            for source, sink, answers in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                while self.frozen and not self._closed:
                    time.sleep(0.02)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.bytes_per_s:
                    time.sleep(len(chunk) / self.bytes_per_s)
                if answers and self.swallow_answers > 0:
                    self.swallow_answers -= 1
                    self.swallowed += 1
                    break
                sink.sendall(chunk)
        for end in (source, sink):
            _end(end)
            with self._lock:
                self._open.discard(end)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
