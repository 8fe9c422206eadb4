"""The routes. Health is open to everyone; all else asks for the token or the password where one is configured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from monitor.store import Store
from monitor.telemetry import metrics
from monitor.web import api, pages
from monitor.web.events import Events
from monitor.web.guard import Guard, Prefix
from monitor.web.openapi import document
from monitor.web.presenter import RuleInfo
from monitor.web.settings import WebSettings
from monitor.web.site import Site


def build_app(
    store: Store,
    monitor: str,
    settings: WebSettings,
    lateness_ms: int,
    why_unready: Callable[[], str],
    rules: Sequence[RuleInfo] = (),
) -> Starlette:
    """The daemon's pages and API; `WebServer` serves them. Arguments as those of `Site`."""
    site = Site(store, monitor, settings, lateness_ms, why_unready, rules)
    openapi = document(api.ENDPOINTS)
    app = Starlette(
        routes=[
            *pages.routes(site),
            Route("/events", Events(site.overview).answer),
            Mount("/static", _Static(packages=[("monitor.web", "static")])),
            Route("/healthz", _healthz),
            Route("/readyz", partial(_readyz, site)),
            Route("/metrics", _metrics),
            Route("/api/v1/openapi.json", lambda _: JSONResponse(openapi)),
            Mount("/api/v1", routes=api.routes(site)),
        ],
        middleware=[Middleware(Prefix, site.base), Middleware(Guard, site.credentials)],
        exception_handlers={404: partial(_not_found, site)},
    )
    app.state.overview, app.state.first_page = site.overview, partial(pages.first_page, site)
    return app


class _Static(StaticFiles):
    """Files whose addresses change with their content: browsers may keep them."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "max-age=86400"
        return response


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _readyz(site: Site, _: Request) -> Response:
    reason = site.why_unready()
    return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)


async def _not_found(site: Site, request: Request, _: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": "no such path"}, 404)
    return pages.error_page(site, "Not found", "There is no such page.", 404)


def _metrics(_: Request) -> Response:
    body, content_type = metrics.exposition()
    return Response(body, media_type=content_type)
