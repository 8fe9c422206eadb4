"""What one client may cost the web server: time for a request, time for an answer, connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from monitor.web import connections
from tests.e2e.running import wait_for
from tests.plain_http import get
from tests.web.fleet import Fleet, served

pytestmark = pytest.mark.slow

_create_server = socket.create_server
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def hasty(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with short limits."""
    monkeypatch.setattr(connections, "REQUEST_S", 0.3)
    monkeypatch.setattr(connections, "TAKE_S", 0.3)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(socket, "create_server", _with_small_buffers)  # else the kernel holds megabytes
    with served(fleet.store) as address:
        yield address


def _with_small_buffers(*args: Any, **options: Any) -> socket.socket:
    listening = _create_server(*args, **options)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    return listening


@contextmanager
def connected(address: str, receive_bytes: int = 0) -> Iterator[socket.socket]:
    url = urlsplit(address)
    with socket.socket() as client:
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(5.0)
        client.connect((url.hostname, url.port))
        yield client


def is_closed(client: socket.socket) -> bool:
    """Waits for the other side to close; False when it sends something instead."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def is_open(client: socket.socket) -> bool:
    """Takes what has come."""
    client.settimeout(0.05)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize(
    "started", [b"", WHOLE[:-2], b"POST /alerts/silences HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"]
)
def test_a_request_that_never_ends_is_cut_off_without_a_word(
    hasty: str, started: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(hasty) as client:
        client.sendall(started)
        assert is_closed(client)
    time.sleep(0.1)
    assert caplog.records == []


def test_a_request_that_trickles_in_is_cut_off_too(hasty: str) -> None:
    with connected(hasty) as client:
        client.sendall(WHOLE)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        began_s = time.monotonic()
        with suppress(OSError):
            for byte in WHOLE * 10:  # some seconds
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began_s < 2.0


def test_requests_one_after_the_other_are_answered_on_one_connection(hasty: str) -> None:
    with httpx.Client(base_url=hasty) as client:
        for _ in range(5):
            assert client.get("/healthz").status_code == 200
            time.sleep(0.1)  # longer together than one request may take


def test_silent_connections_do_not_keep_a_probe_out(hasty: str) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(hasty)) for _ in range(12)]
        assert get(f"{hasty}/healthz").status_code == 200
        assert all(is_closed(client) for client in silent[:8])


def test_beyond_the_limit_busy_connections_stay_and_the_new_one_is_refused(hasty: str) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(connected(hasty)) for _ in range(4)]
        for client in watchers:
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        with connected(hasty) as one_more:
            assert is_closed(one_more)
        time.sleep(0.4)  # longer than a request may take: theirs are complete
        for client in watchers:
            assert is_open(client)


@pytest.mark.parametrize("requests", [1, 30], ids=["short", "long"])
def test_clients_that_take_no_answer_do_not_keep_a_probe_out(hasty: str, requests: int) -> None:
    def answered() -> bool:
        with connected(hasty) as client, suppress(OSError):
            client.sendall(WHOLE)
            return client.recv(4096).startswith(b"HTTP/1.1 200")
        return False

    asked = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(connected(hasty, receive_bytes=1024))
            client.sendall((asked + b"\r\n") * (requests - 1) + asked + b"Connection: close\r\n\r\n")
        time.sleep(0.1)
        assert not answered()
        wait_for("a probe that is answered", answered, 5.0)
