"""The demo's own receiver: an HTTP server that accepts signed alerts, as a team's endpoint would."""

from __future__ import annotations

import base64
import secrets
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BODY_BYTES = 1 << 20


class AlertReceiver(HTTPServer):
    """Listens on 127.0.0.1 between `__enter__` and `__exit__`.

    A POST whose Standard Webhooks signature is valid is answered 204 and put into `alerts` once per webhook-id; any
    other is answered 401 and counted in `refused`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Delivery)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/alerts"
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self.alerts: deque[dict[str, Any]] = deque()
        self.refused = 0
        self._verifier = Webhook(self.secret)
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        """Check one delivery, its headers' names in lower case; returns the HTTP status to answer with."""
        try:
            document: dict[str, Any] = self._verifier.verify(body, headers)
        except (WebhookVerificationError, ValueError):  # ValueError: the signature is not base64, the body not JSON
            self.refused += 1
            return 401
        if headers["webhook-id"] not in self._seen:  # the daemon delivers at least once: repeats are normal
            self._seen.add(headers["webhook-id"])
            self.alerts.append(document)
        return 204

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Delivery(BaseHTTPRequestHandler):
    server: AlertReceiver
    timeout = 10

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            status = 411
        elif int(length) > MAX_BODY_BYTES:
            status = 413
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = self.server.take(self.rfile.read(int(length)), headers)
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """The console belongs to the demo."""
