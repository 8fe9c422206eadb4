"""The web server of a process: routes and access, probes, metrics and events, served by uvicorn in a thread.

Health is open to everyone; all else asks for the token or the password where one is configured, and for a known host
name where none is.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from monitor.core.types import Exemplar
from monitor.fleet.overview import Overview
from monitor.store import StoreError
from monitor.telemetry import metrics
from monitor.web import api
from monitor.web.connections import Connection
from monitor.web.guard import Guard
from monitor.web.openapi import document
from monitor.web.pages import Pages
from monitor.web.silencing import RequestError
from monitor.web.site import Site

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 10.0
MOST_WATCHERS = 100
"""Each is one open connection."""
LOOK_S = 0.25
ALIVE_S = 15.0
"""Proxies cut connections that are quiet for longer, usually a minute."""


class WebServerError(Exception):
    """The address cannot be bound; the message names it."""


class WebServer:
    """Serves a site between `start` and `stop`, and keeps its overview up to date meanwhile.

    Args:
        host, port: where to listen; port 0 picks a free one, known from `bind` on.
    """

    def __init__(self, site: Site, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._overview, self._pages = site.overview, Pages(site)
        app = _app(site, self._pages)
        settings = uvicorn.Config(
            app, http=Connection, ws="none", log_config=None, access_log=False, lifespan="off",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """`http://host:port` as bound."""
        host, port = self._socket.getsockname()[:2] if self._socket else (self._host, self._port)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def bind(self) -> int:
        """Take the address; requests wait until `start`. Returns the port.

        Raises:
            WebServerError: the address is taken or not ours.
        """
        if self._socket is None:
            try:
                family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
                self._socket = socket.create_server((self._host, self._port), family=family, backlog=128)
            except OSError as error:
                raise WebServerError(f"web: cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        """Bind, where `bind` was not called, and serve.

        Raises:
            WebServerError: the address is taken or not ours.
        """
        self.bind()
        self._overview.start()
        try:
            self._pages.first()  # the first visitor must not wait longer than the others
        except Exception:
            log.exception("web.first_page_failed")  # no reason not to count and to alert
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Finish open requests and free the address."""
        self._overview.stop()  # first: those who watch for events would keep their connections open
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        if self._socket is not None:
            self._socket.close()


# ------------------------------------------------------------------------------------------------ routes


def _app(site: Site, pages: Pages) -> Starlette:
    openapi = document(api.ENDPOINTS)
    return Starlette(
        routes=[
            *pages.routes(),
            Route("/pictures/{name}", partial(_picture, site)),
            Route("/events", partial(_events, site.overview)),
            Mount("/static", _Static(packages=[("monitor.web", "static")])),
            Route("/healthz", _healthz),
            Route("/readyz", partial(_readyz, site)),
            Route("/metrics", _metrics),
            Route("/api/v1/openapi.json", lambda _: JSONResponse(openapi)),
            Mount("/api/v1", routes=api.routes(site)),
        ],
        middleware=[Middleware(Guard, site.credentials, site.hosts, site.base)],
        exception_handlers={
            404: partial(_not_found, pages),
            StoreError: partial(_redis_away, pages),
            RequestError: _refused,
            ClientDisconnect: lambda *_: Response(status_code=400),  # nobody reads it; not worth a traceback
        },
    )


class _Static(StaticFiles):
    """Files whose addresses change with their content: browsers may keep them."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "max-age=86400"
        return response


def _picture(site: Site, request: Request) -> Response:
    """The large picture of one of the worst images."""
    asked, partitions = request.query_params, site.overview.snapshot().partitions
    time_ms = asked.get("time", "").removeprefix("-")
    if not (time_ms.isascii() and time_ms.isdigit() and len(time_ms) < 16):
        return PlainTextResponse("no such picture\n", 404)
    profile, stream, name = asked.get("profile", ""), asked.get("stream", ""), request.path_params["name"]
    beside = Exemplar("", stream, int(asked["time"]), 0, 1.0, (), b"", profile)
    picture = site.store.pictures.of(partitions, beside, name)
    if not picture:
        return PlainTextResponse("no such picture\n", 404)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _readyz(site: Site, _: Request) -> Response:
    reason = site.why_unready()
    return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)


def _metrics(_: Request) -> Response:
    body, content_type = metrics.exposition()
    return Response(body, media_type=content_type)


def _not_found(pages: Pages, request: Request, _: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "no such path"}, 404)
    return pages.error("Not found", "There is no such page.", 404)


def _redis_away(pages: Pages, request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "Redis does not answer"}, 503)
    return pages.error("Redis does not answer", str(error), 503)


def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, RequestError) else 500)


# ------------------------------------------------------------------------------------------------ events


async def _events(overview: Overview, _: Request) -> Response:
    """Server-sent events: the number of the newest snapshot, whenever it changes; the page then reloads its parts."""
    if overview.watchers >= MOST_WATCHERS:
        return PlainTextResponse("too many watchers\n", 503, {"Retry-After": "30"})
    return StreamingResponse(_changes(overview), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _changes(overview: Overview) -> AsyncIterator[str]:
    overview.watch(1)
    try:
        sent, quiet_s = overview.newest.number, 0.0
        yield f"retry: 3000\ndata: {sent}\n\n"
        while not overview.stopping.is_set():
            await asyncio.sleep(LOOK_S)
            quiet_s += LOOK_S
            if overview.newest.number != sent:
                sent, quiet_s = overview.newest.number, 0.0
                yield f"data: {sent}\n\n"
            elif quiet_s >= ALIVE_S:
                quiet_s = 0.0
                yield ": still here\n\n"
    finally:
        overview.watch(-1)
