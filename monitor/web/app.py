"""The routes. Health is open to everyone; all else asks for the token or the password where one is configured."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from monitor import metrics
from monitor.config import Web
from monitor.document import rfc3339
from monitor.overview import fleet_watermark_ms, stream_rows
from monitor.store import Store, StoreError
from monitor.web.pages import Pages

SAFE = {
    "Content-Security-Policy": "; ".join(
        ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "style-src 'self'", "img-src data:")
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Nothing inline, nothing from elsewhere: names of streams and ids of images are whatever their senders wrote."""


def build_app(store: Store, monitor: str, settings: Web, lateness_ms: int, why_unready: Callable[[], str]) -> Starlette:
    """The daemon's pages.

    Args:
        monitor: its name, for the head of the pages.
        why_unready: what keeps this process from doing its work, in words; empty when it is ready.
    """
    guard = _Guard(settings)
    pages = Pages(store, monitor, lateness_ms)

    def page_overview(_: Request) -> Response:
        return _page(pages.overview)

    def page_stream(request: Request) -> Response:
        return _page(lambda: pages.stream(request.path_params["name"]))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reason = why_unready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    def page_metrics(_: Request) -> Response:
        body, content_type = metrics.exposition()
        return Response(body, media_type=content_type)

    def api_streams(_: Request) -> Response:
        try:
            rows = stream_rows(store, lateness_ms)
            watermark = fleet_watermark_ms(store, lateness_ms)
        except StoreError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        return JSONResponse(
            {
                "watermark": None if watermark is None else rfc3339(watermark),
                "streams": {stream: row.to_json() for stream, row in rows.items()},
            }
        )

    return Starlette(
        routes=[
            Route("/", guard(page_overview)),
            Route("/streams/{name:path}", guard(page_stream)),
            Mount("/static", StaticFiles(packages=[("monitor.web", "static")])),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", guard(page_metrics)),
            Route("/api/v1/streams", guard(api_streams)),
        ]
    )


def _page(render: Callable[[], str | None]) -> Response:
    try:
        html = render()
    except StoreError as error:
        return PlainTextResponse(f"Redis does not answer: {error}\n", status_code=503)
    if html is None:
        return PlainTextResponse("no such stream\n", status_code=404)
    return HTMLResponse(html, headers=SAFE)


class _Guard:
    """Bearer token or basic auth, compared in constant time; open where neither is configured."""

    def __init__(self, settings: Web) -> None:
        self._token = settings.token.get_secret_value() if settings.token else None
        password = settings.password.get_secret_value() if settings.password else None
        self._basic = None if password is None else f"{settings.username or ''}:{password}"

    def __call__(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        def guarded(request: Request) -> Response:
            if not self._allows(request.headers.get("authorization", "")):
                challenge = {"WWW-Authenticate": 'Basic realm="layerwatch"' if self._basic else "Bearer"}
                return PlainTextResponse("authorization needed\n", status_code=401, headers=challenge)
            response: Response = handler(request)
            return response

        return guarded

    def _allows(self, header: str) -> bool:
        if self._token is None and self._basic is None:
            return True
        scheme, _, given = header.partition(" ")
        if scheme.lower() == "bearer" and self._token is not None:
            return secrets.compare_digest(given.encode(), self._token.encode())
        if scheme.lower() == "basic" and self._basic is not None:
            expected = base64.b64encode(self._basic.encode())
            return secrets.compare_digest(given.encode(), expected)
        return False
