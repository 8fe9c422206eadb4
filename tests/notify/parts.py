"""Shared by the delivery tests: a server with scripted answers, a clock that is set by hand, and alert documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from monitor.core.alert_document import About, Evidence, MovedSignal, alert_document
from monitor.core.alert_state import alert_id
from monitor.core.types import Alert, AlertPhase, Exemplar, Verdict
from monitor.store import Kept, Store

T0_MS = 1_795_508_400_000
"""2026-11-24T08:20:00Z: event time of the tests' alerts."""


@dataclass(frozen=True)
class Answer:
    """What the server answers; `hang` keeps the client waiting until the server stops."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hang: bool = False


@dataclass(frozen=True)
class Request:
    """What the server was sent."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """Answers every POST with the next of `answers`, and with `default` when there are none left."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.default = Answer()
        self._released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = server.answers.pop(0) if server.answers else server.default
                server.requests.append(Request(self.path, headers, body))
                if answer.hang:
                    server._released.wait(60)
                    return
                self.send_response(answer.status)
                for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def ids(self) -> list[str]:
        """`webhook-id` of every request."""
        return [request.headers["webhook-id"] for request in self.requests]


class Clock:
    """Milliseconds that pass only by `pass_s`."""

    def __init__(self, now_ms: int = T0_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(1000 * seconds)


def eventually(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Return when the condition holds; fail where it does not within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ documents

VERDICT = Verdict(True, 0.31, 0.24, 0.1, 300, "12 % of 300 images <b>& more</b>", (0.2, 0.25, 0.3), "ood: 5 % cut")
EVIDENCE = Evidence(
    moved=(MovedSignal("layer3", True, 0.41, 0.35, "low", (1, 2, 3, 4, 5, 6, 7, 8, 9)),),
    triage="sensor",
    exemplars=(Exemplar("images/0/17", "cam-1", T0_MS, T0_MS, 0.0011, (0.0011,), b""),),
)


def alert_of(stream: str = "cam-1", rule: str = "drift", phase: AlertPhase = AlertPhase.FIRING) -> Alert:
    """An alert that began at T0, fired ten seconds later and, where resolved, ended a minute later."""
    resolved_ms = T0_MS + 60_000 if phase is AlertPhase.RESOLVED else 0
    name = alert_id("layerwatch", rule, stream, T0_MS)
    return Alert(rule, stream, phase, name, T0_MS, T0_MS + 10_000, 0, resolved_ms, VERDICT)


def document_of(alert: Alert, labels: Mapping[str, str] | None = None) -> str:
    """The document of its change into the phase that it has."""
    about = About(
        "layerwatch",
        alert.rule,
        "rate",
        {"severity": "page"} if labels is None else labels,
        f"http://status.example/streams/{alert.stream}?a=1&b=2",
    )
    return alert_document(about, alert, EVIDENCE)


def firing(stream: str = "cam-1", rule: str = "drift", labels: Mapping[str, str] | None = None) -> str:
    return document_of(alert_of(stream, rule), labels)


def resolved(stream: str = "cam-1", rule: str = "drift") -> str:
    return document_of(alert_of(stream, rule, AlertPhase.RESOLVED))


def decide(store: Store, stream: str = "cam-1", phase: AlertPhase = AlertPhase.FIRING, rule: str = "drift") -> str:
    """Let the alert change as the evaluator would: its state and its document in one step. Returns the webhook id."""
    alert = alert_of(stream, rule, phase)
    kept = alert if phase is AlertPhase.FIRING else Alert(rule, stream)
    document = document_of(alert)
    firing = {alert.id: document if phase is AlertPhase.FIRING else ""}
    assert store.evaluation.decide(store.evaluation.state().version, T0_MS, [kept], [document], Kept(firing))
    return f"{alert.id}-{phase}"
