"""The routes. Health is open to everyone; all else asks for the token or the password where one is configured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlencode, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from monitor.fleet.overview import Overview
from monitor.rules.settings import RuleSettings
from monitor.store import Store, StoreError
from monitor.telemetry import metrics
from monitor.web import health, silencing
from monitor.web.api import Api, read_body
from monitor.web.events import Events
from monitor.web.guard import Credentials, Guard, Prefix, from_our_pages, user_of
from monitor.web.pages import Pages, Visitor
from monitor.web.settings import WebSettings
from monitor.web.silencing import RequestError


def build_app(
    store: Store,
    monitor: str,
    settings: WebSettings,
    lateness_ms: int,
    why_unready: Callable[[], str],
    rules: Sequence[RuleSettings] = (),
) -> Starlette:
    """The daemon's pages; `WebServer` serves them.

    Args:
        monitor: its name, for the head of the pages.
        why_unready: what keeps this process from doing its work, in words; empty when it is ready.
        rules: as configured: their kinds and labels say what alerts are about.
    """
    credentials, overview = Credentials(settings), Overview(store, lateness_ms)
    base = urlsplit(settings.external_url).path.rstrip("/")
    pages = Pages(store, overview, monitor, rules, base)
    site = _Site(store, overview, pages, credentials, why_unready, base)
    api = Api(store, overview, rules, credentials, why_unready)
    app = Starlette(
        routes=[
            Route("/", site.overview),
            Route("/streams/{name:path}", site.stream),
            Route("/alerts", site.alerts),
            Route("/alerts/silences", site.add_silence, methods=["POST"]),
            Route("/alerts/silences/expire", site.expire_silence, methods=["POST"]),
            Route("/profile", site.profile),
            Route("/health", site.health),
            Route("/events", Events(overview).answer),
            Mount("/static", _Static(packages=[("monitor.web", "static")])),
            Route("/healthz", _healthz),
            Route("/readyz", site.readyz),
            Route("/metrics", _metrics),
            Route("/api/v1/openapi.json", _openapi),
            Mount("/api/v1", routes=api.routes()),
        ],
        middleware=[Middleware(Prefix, base), Middleware(Guard, credentials)],
        exception_handlers={404: site.not_found},
    )
    app.state.overview, app.state.first_page = overview, pages.overview
    return app


class _Static(StaticFiles):
    """Files whose addresses change with what is in them: browsers may keep them."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "max-age=86400"
        return response


class _Site:
    """The pages' handlers."""

    def __init__(
        self,
        store: Store,
        overview: Overview,
        pages: Pages,
        credentials: Credentials,
        why_unready: Callable[[], str],
        base: str,
    ) -> None:
        self._store, self._overview, self._pages = store, overview, pages
        self._credentials, self._why_unready, self._base = credentials, why_unready, base

    def overview(self, request: Request) -> Response:
        number = request.query_params.get("page", "1")
        page = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 1
        return self._page(lambda: self._pages.overview(request.query_params.get("q", ""), page))

    def stream(self, request: Request) -> Response:
        name = request.query_params.get("name", "") or request.path_params["name"]
        return self._page(lambda: self._pages.stream(name, request.query_params.get("alert", "")))

    def alerts(self, request: Request) -> Response:
        return self._page(lambda: self._pages.alerts(self._visitor(request), dict(request.query_params)))

    def profile(self, _: Request) -> Response:
        return self._page(self._pages.profiles)

    def health(self, _: Request) -> Response:
        return self._page(lambda: self._pages.health(health.look(self._store, self._overview, self._why_unready())))

    async def readyz(self, _: Request) -> Response:
        reason = self._why_unready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def add_silence(self, request: Request) -> Response:
        fields = await self._form(request)
        if isinstance(fields, Response):
            return fields

        def add() -> Response:
            try:
                silencing.keep(self._store, silencing.from_form(fields, self._visitor(request).user))
            except RequestError as error:
                text = str(error)
                return self._page(lambda: self._pages.alerts(self._visitor(request), fields, text), 422)
            return self._written("silenced")

        return await run_in_threadpool(self._answer, add)

    async def expire_silence(self, request: Request) -> Response:
        fields = await self._form(request)
        if isinstance(fields, Response):
            return fields

        def expire() -> Response:
            silencing.expire(self._store, fields.get("id", ""))
            return self._written("expired")

        return await run_in_threadpool(self._answer, expire)

    async def not_found(self, request: Request, _: Exception) -> Response:
        if request.url.path.startswith("/api/"):
            return PlainTextResponse('{"error": "no such path"}', 404, media_type="application/json")
        return HTMLResponse(self._pages.error("Not found", "There is no such page."), 404)

    def _visitor(self, request: Request) -> Visitor:
        token = self._credentials.form_token() if self._credentials.configured else ""
        return Visitor(user_of(request.headers.get("authorization", "")), token)

    async def _form(self, request: Request) -> dict[str, str] | Response:
        """Fields of a form that one of our own pages sent; else what to answer."""
        try:
            fields = silencing.parse_form(await read_body(request))
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", 400)
        if not (from_our_pages(request.headers) and self._credentials.is_form_token(fields.get("form", ""))):
            return HTMLResponse(self._pages.error("Refused", "This form is not one of ours; load the page again."), 403)
        return fields

    def _written(self, what: str) -> Response:
        self._overview.changed()
        return RedirectResponse(f"{self._base}/alerts?{urlencode({'done': what})}", 303)

    def _page(self, render: Callable[[], str | None], status: int = 200) -> Response:
        def answer() -> Response:
            html = render()
            if html is None:
                return HTMLResponse(self._pages.error("Not found", "No stream of that name has sent anything."), 404)
            return HTMLResponse(html, status)

        return self._answer(answer)

    def _answer(self, answer: Callable[[], Response]) -> Response:
        try:
            return answer()
        except StoreError as error:
            return HTMLResponse(self._pages.error("Redis does not answer", str(error)), 503)


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


def _metrics(_: Request) -> Response:
    body, content_type = metrics.exposition()
    return Response(body, media_type=content_type)


def _openapi(_: Request) -> Response:
    path, _stat = StaticFiles(packages=[("monitor.web", "static")]).lookup_path("openapi.json")
    return FileResponse(path, media_type="application/json")
