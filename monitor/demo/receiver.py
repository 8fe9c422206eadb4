"""The demo's own receiver: an HTTP server that takes signed alerts, as a team's endpoint would."""

from __future__ import annotations

import base64
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BODY_BYTES = 1 << 20
REMEMBERED = 1000
"""Ids of deliveries already taken; the daemon delivers at least once, so repeats are normal and dropped here."""


class AlertReceiver:
    """Listens on 127.0.0.1 between `__enter__` and `__exit__`.

    A POST whose Standard Webhooks signature holds is answered 204 and put into `alerts` once per webhook-id; any other
    is answered 401 and counted in `refused`.
    """

    def __init__(self) -> None:
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self.alerts: queue.Queue[dict[str, Any]] = queue.Queue()
        self.refused = 0
        self._verifier = Webhook(self.secret)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def url(self) -> str:
        """Where to POST alerts."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/alerts"

    def take(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Judge one delivery; returns the HTTP status to answer with."""
        try:
            document: dict[str, Any] = self._verifier.verify(body, dict(headers))
        except (WebhookVerificationError, ValueError):  # ValueError: a signature that is no base64, a body no JSON
            with self._lock:
                self.refused += 1
            return 401
        delivery = next(value for name, value in headers.items() if name.lower() == "webhook-id")
        with self._lock:
            if delivery in self._seen:
                return 204
            self._seen[delivery] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self.alerts.put(document)
        return 204

    def __enter__(self) -> AlertReceiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(receiver: AlertReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not length.isascii() or not length.isdigit():
                status = 411
            elif int(length) > MAX_BODY_BYTES:
                status = 413
            else:
                status = receiver.take(self.rfile.read(int(length)), dict(self.headers.items()))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """The console belongs to the demo."""

    return Handler
