"""The JSON API under /api/v1: what the pages show, for scripts. `static/openapi.json` describes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from monitor.core.alert_document import rfc3339
from monitor.fleet.overview import Overview
from monitor.fleet.stream_view import view_stream
from monitor.rules.settings import RuleSettings
from monitor.store import Store, StoreError
from monitor.web import health, silencing
from monitor.web.guard import Credentials, from_our_pages
from monitor.web.pages import read_profiles
from monitor.web.silencing import MAX_BODY_BYTES, RequestError
from monitor.web.troubles import Teller

UNAVAILABLE = "Redis does not answer"


class Api:
    """Answers in JSON; errors are `{"error": text}`."""

    def __init__(
        self,
        store: Store,
        overview: Overview,
        rules: Sequence[RuleSettings],
        credentials: Credentials,
        why_unready: Callable[[], str],
    ) -> None:
        self._store, self._overview, self._credentials = store, overview, credentials
        self._teller, self._why_unready = Teller(rules), why_unready

    def routes(self) -> list[BaseRoute]:
        """Below /api/v1."""
        return [
            Route("/streams", _guarded(self._streams)),
            Route("/streams/{name:path}", _guarded(self._stream)),
            Route("/alerts", _guarded(self._alerts)),
            Route("/silences", _guarded(self._silences)),
            Route("/silences", self._add_silence, methods=["POST"]),
            Route("/silences/{silence_id}", _guarded(self._expire_silence), methods=["DELETE"]),
            Route("/profile", _guarded(self._profile)),
            Route("/health", _guarded(self._health)),
        ]

    def _streams(self, _: Request) -> Response:
        snapshot = self._overview.snapshot()
        return JSONResponse(
            {
                "watermark": None if snapshot.watermark_ms is None else rfc3339(snapshot.watermark_ms),
                "streams": {stream: row.to_json() for stream, row in snapshot.rows.items()},
            }
        )

    def _stream(self, request: Request) -> Response:
        name = request.query_params.get("name", "") or request.path_params["name"]
        snapshot = self._overview.snapshot()
        if name not in snapshot.rows:
            return _error(404, "no such stream")
        view = view_stream(self._store, snapshot, name, request.query_params.get("alert", ""))
        own = [alert for alert in self._known_alerts() if alert["stream"] == name]
        return JSONResponse({"stream": name, **snapshot.rows[name].to_json(), "known_alerts": own, **view.to_json()})

    def _alerts(self, _: Request) -> Response:
        return JSONResponse({"alerts": self._known_alerts()})

    def _known_alerts(self) -> list[dict[str, Any]]:
        snapshot, now_ms = self._overview.snapshot(), time.time_ns() // 1_000_000
        silences = silencing.readable(snapshot.silences)
        return [self._teller.show(alert, snapshot, silences, now_ms).to_json() for alert in snapshot.alerts]

    def _silences(self, _: Request) -> Response:
        found = silencing.readable(self._overview.snapshot().silences)
        return JSONResponse({"silences": [silencing.to_json(silence) for silence in found]})

    async def _add_silence(self, request: Request) -> Response:
        if refused := self._may_not_write(request):
            return refused
        # a form of another site cannot have this type without being asked first
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "content-type must be application/json")
        try:
            wanted = silencing.from_json(await read_body(request))
            silence = silencing.keep(self._store, wanted)
        except RequestError as error:
            return _error(422, str(error))
        except StoreError:
            return _error(503, UNAVAILABLE)
        self._overview.changed()
        return JSONResponse(silencing.to_json(silence), status_code=201)

    def _expire_silence(self, request: Request) -> Response:
        if refused := self._may_not_write(request):
            return refused
        if not silencing.expire(self._store, request.path_params["silence_id"]):
            return _error(404, "no such silence")
        self._overview.changed()
        return Response(status_code=204)

    def _may_not_write(self, request: Request) -> Response | None:
        if not self._credentials.configured:
            return _error(403, "nothing can be written without a token or password: set web.token")
        if not from_our_pages(request.headers):
            return _error(403, "sent by another site")
        return None

    def _profile(self, _: Request) -> Response:
        self._overview.snapshot()
        return JSONResponse({"profiles": read_profiles(self._store, self._overview)})

    def _health(self, _: Request) -> Response:
        return JSONResponse(health.look(self._store, self._overview, self._why_unready()).to_json())


async def read_body(request: Request) -> bytes:
    """The body of a small request.

    Raises:
        RequestError: it is longer than MAX_BODY_BYTES.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError("too long")
    return body


def _guarded(handler: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            return handler(request)
        except StoreError:
            return _error(503, UNAVAILABLE)

    return answer


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)
