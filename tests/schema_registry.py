"""A small schema registry over HTTP: as much of Confluent's API as its serializers and its client use."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit


class SchemaRegistry:
    """Registers schemas and gives them back; `broken` answers 503 to everything, `login` wants a password."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.broken = False
        self.login = ""
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def register(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """Keep a schema; its id counts from 1, each subject has one version."""
        known = next((s for s in self.schemas if s["subject"] == subject and s["schema"] == body["schema"]), None)
        if known is None:
            known = {**body, "subject": subject, "version": 1, "id": len(self.schemas) + 1}
            self.schemas.append(known)
        return known

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, JSON) of a request."""
        steps = [unquote(step) for step in urlsplit(path).path.strip("/").split("/")]
        if self.broken:
            return 503, {"error_code": 50301, "message": "not now"}
        match method, steps:
            case "POST", ["subjects", subject, *_]:
                return 200, self.register(subject, body)
            case "GET", ["schemas", "ids", number]:
                found = [schema for schema in self.schemas if schema["id"] == int(number)]
            case "GET", ["subjects", subject, "versions", _]:
                found = [schema for schema in self.schemas if schema["subject"] == subject]
            case _:
                found = []
        return (200, found[0]) if found else (404, {"error_code": 40403, "message": "Schema not found"})


class _Handler(BaseHTTPRequestHandler):
    registry: SchemaRegistry

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        self.registry.asked.append(f"{self.command} {self.path}")
        status, answer = self.registry.answer(self.command, self.path, body)
        expected = f"Basic {base64.b64encode(self.registry.login.encode()).decode()}"
        if self.registry.login and self.headers.get("Authorization") != expected:
            status, answer = 401, {"error_code": 40101, "message": "Unauthorized"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
