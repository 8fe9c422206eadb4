"""An authority that gives tokens, and settings with which a client asks it."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from monitor.sources.kafka.settings import KafkaSaslSettings


def jwt(life_s: float) -> str:
    """A token as the broker's own validator takes it: unsigned."""
    now_s = int(time.time())
    parts = [{"alg": "none"}, {"sub": "layerwatch", "iat": now_s, "exp": now_s + life_s}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, ""])


class Issuer:
    """An OIDC authority that gives tokens for client credentials.

    answers: what comes next instead of a token, as (status, body).
    """

    def __init__(self, life_s: float) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.answers: list[tuple[int, object]] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                issuer.asked.append((self.headers["authorization"], form))
                token = {"access_token": jwt(life_s), "expires_in": life_s}
                status, body = issuer.answers.pop(0) if issuer.answers else (200, token)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sasl(**oauth: Any) -> KafkaSaslSettings:
    return KafkaSaslSettings.model_validate({"mechanism": "OAUTHBEARER", "oauth": oauth})


def login(issuer: Issuer, **fields: Any) -> dict[str, Any]:
    return {"token_url": issuer.url, "client_id": "lw", "client_secret": "hunter1", "scope": "kafka", **fields}
