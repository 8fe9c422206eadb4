"""The pages for people, readable without JavaScript. A page is one function here and the template of the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from monitor.core.types import AlertPhase, Exemplar
from monitor.fleet.overview import Snapshot, StreamRow
from monitor.fleet.stream_view import StreamEvidence
from monitor.store import StoreError
from monitor.web import drawing, labels, silencing
from monitor.web.guard import from_our_pages, user_of
from monitor.web.health import read_health
from monitor.web.presenter import AlertView, StreamAlerts
from monitor.web.silencing import RequestError, read_body
from monitor.web.site import NAV, Site, now_ms

ROWS = 100
"""Streams on one page: as many as a person reads, and quickly made; a search field and further pages lead on."""
CARDS = 8
"""Alerting streams that are described in full; the table below has all."""
POINTS = 60
RESOLVED = 100
FIELDS = ("stream", "rule", "duration_s", "author", "comment")
DONE = {"silenced": "Silenced.", "expired": "The silence is over."}

Facts = Mapping[str, Any]
"""What a template shows, by name."""
View = Callable[[Site, Snapshot, Request], Facts | None]
PAGES: dict[str, View] = {}
"""Path -> the function of the page."""


@dataclass(frozen=True, slots=True)
class StreamLine:
    """One row of the overview's table."""

    name: str
    row: StreamRow
    alerts: StreamAlerts | None
    spark: drawing.Spark | None
    quiet: str
    """How long it has sent nothing, where that is longer than the last minute."""


def _page(path: str, nav: str = "") -> Callable[[View], View]:
    """Serve a view at that path; `nav` is the text of the link to it in the head of all pages."""

    def register(view: View) -> View:
        PAGES[path] = view
        if nav:
            NAV.append((view.__name__, path, nav))
        return view

    return register


# ------------------------------------------------------------------------------------------------ pages


@_page("/", nav="Streams")
def overview(site: Site, snapshot: Snapshot, request: Request) -> Facts:
    """All streams, alerting ones first."""
    search, number = request.query_params.get("q", ""), request.query_params.get("page", "1")
    alerting = site.alerting(snapshot)
    names = _most_urgent(snapshot, alerting, search)
    pages = max(1, -(-len(names) // ROWS))
    page = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 1
    page = min(max(1, page), pages)
    cards = alerting[:CARDS]
    return {
        "alerting": alerting,
        "cards": list(zip(cards, site.evidence(snapshot, [c.first.alert for c in cards]), strict=True)),
        "lines": _lines(site, snapshot, names[(page - 1) * ROWS : page * ROWS], alerting),
        "found": len(names),
        "search": search,
        "page": page,
        "pages": pages,
        "behind": site.overview.behind,
    }


@_page("/streams/{name:path}")
def stream(site: Site, snapshot: Snapshot, request: Request) -> Facts | None:
    """One stream during one of its alerts, or now; None where no such stream was ever seen."""
    name = request.query_params.get("name", "") or request.path_params["name"]
    if name not in snapshot.rows:
        return None
    view = site.view_stream(snapshot, name, request.query_params.get("alert", ""))
    alerts = site.alert_views(snapshot, name)
    chart = drawing.chart(view.points, view.step_ms)
    (line,) = _lines(site, snapshot, [name], site.alerting(snapshot))
    layout = view.evidence.layout
    return {
        "name": name,
        "line": line,
        "focus": next((alert for alert in alerts if view.focus and alert.alert.id == view.focus.id), None),
        "view": view,
        "chart": chart,
        "spans": _spans(chart, alerts, snapshot.state.high_ms),
        "moved": [(moved, drawing.histogram(layout, moved)) for moved in view.evidence.moved] if layout else [],
        "exemplars": [(image, _p_values(view.evidence, image)) for image in view.evidence.exemplars],
        "typical": [(image, _p_values(view.evidence, image)) for image in view.typical],
    }


@_page("/alerts", nav="Alerts")
def alerts(site: Site, snapshot: Snapshot, request: Request) -> Facts:
    """Active and lately resolved alerts, silences, and the form for a new silence."""
    return _alerts(site, snapshot, request, request.query_params)


@_page("/profile", nav="Profile")
def profile(site: Site, snapshot: Snapshot, _: Request) -> Facts:
    """What each profile in use was learned from, and what it measures."""
    return {"profiles": site.profiles(snapshot).profiles}


@_page("/health", nav="Health")
def health(site: Site, _: Snapshot, __: Request) -> Facts:
    """Health of the monitor itself."""
    return {"health": read_health(site.store, site.overview, site.why_unready())}


def _alerts(site: Site, snapshot: Snapshot, request: Request, asked: Mapping[str, str], error: str = "") -> Facts:
    """Facts of the alerts page.

    Args:
        asked: what to fill the form with (stream, rule, ...); `done` says what was done just now.
        error: what was wrong with the form.
    """
    resolved = [alert for alert in snapshot.state.alerts if alert.phase is AlertPhase.RESOLVED][:RESOLVED]
    return {
        "alerting": site.alerting(snapshot),
        "resolved": [site.presenter.view(alert, snapshot, now_ms()) for alert in resolved],
        "silences": [(silence, silence.active(now_ms())) for silence in snapshot.silences],
        "durations": silencing.DURATIONS_S,
        "user": user_of(request.headers.get("authorization", "")),
        "form_token": site.credentials.form_token() if site.credentials.configured else "",
        "asked": {**dict.fromkeys(FIELDS, ""), **asked},
        "done": DONE.get(asked.get("done", ""), ""),
        "error": error,
    }


# ------------------------------------------------------------------------------------------------ parts of pages


def _lines(site: Site, snapshot: Snapshot, names: Sequence[str], alerting: Sequence[StreamAlerts]) -> list[StreamLine]:
    by_stream = {alerts.stream: alerts for alerts in alerting}
    lines = site.overview.lines(names, POINTS)
    since_ms = min((points[0][0] for points in lines.values() if points), default=0)
    found = []
    for name in names:
        row = snapshot.rows[name]
        silent = row.ood_share is None and row.last_event_ms > 0
        quiet = labels.duration(snapshot.state.high_ms - row.last_event_ms) if silent else ""
        spark = drawing.spark(lines.get(name, ()), since_ms, snapshot.state.high_ms)
        found.append(StreamLine(name, row, by_stream.get(name), spark, quiet))
    return found


def _most_urgent(snapshot: Snapshot, alerting: Sequence[StreamAlerts], search: str) -> list[str]:
    place = {alerts.stream: i for i, alerts in enumerate(alerting)}
    wanted = search.casefold()
    names = [name for name in snapshot.rows if wanted in name.casefold()] if wanted else list(snapshot.rows)
    return sorted(names, key=lambda name: (place.get(name, len(place)), -(snapshot.rows[name].ood_share or 0.0), name))


def _spans(
    chart: drawing.Chart | None, alerts: Sequence[AlertView], high_ms: int
) -> list[tuple[AlertView, drawing.Span]]:
    if chart is None:
        return []
    placed = [(view, chart.span(view.alert.since_ms, view.alert.resolved_ms or high_ms + 1)) for view in alerts]
    return [(view, span) for view, span in placed if span is not None]


def _p_values(evidence: StreamEvidence, image: Exemplar) -> list[tuple[str, float]]:
    """(signal, p-value) of one image, the most unusual first."""
    signals = evidence.layout.signals if evidence.layout else ()
    return sorted(zip(signals, image.p_values, strict=False), key=lambda pair: pair[1])


# ------------------------------------------------------------------------------------------------ answering


def routes(site: Site) -> list[BaseRoute]:
    """All pages, and the forms on them."""
    return [
        *(Route(path, _showing(site, view)) for path, view in PAGES.items()),
        Route("/alerts/silences", _submitting(site, _add_silence), methods=["POST"]),
        Route("/alerts/silences/expire", _submitting(site, _expire_silence), methods=["POST"]),
    ]


def first_page(site: Site) -> None:
    """Render the overview once, so that the first visitor does not wait longer than the others."""
    _html(site, overview, Request({"type": "http", "query_string": b"", "headers": []}))


def error_page(site: Site, title: str, text: str, status: int) -> Response:
    """A page that says what went wrong; reads nothing."""
    return HTMLResponse(site.render("error.html", Snapshot(), {"title": title, "text": text}), status)


def _html(site: Site, view: View, request: Request) -> str | None:
    snapshot = site.overview.snapshot()
    facts = view(site, snapshot, request)
    return None if facts is None else site.render(f"{view.__name__}.html", snapshot, facts)


def _showing(site: Site, view: View) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            html = _html(site, view, request)
        except StoreError as error:
            return error_page(site, "Redis does not answer", str(error), 503)
        if html is None:
            return error_page(site, "Not found", "No stream of that name has sent anything.", 404)
        return HTMLResponse(html)

    return answer


Submit = Callable[[Site, Request, Mapping[str, str]], str]
"""Does what a form asks for; returns the key of DONE that says so. RequestError says what is wrong with the form."""


def _submitting(site: Site, submit: Submit) -> Callable[[Request], Any]:
    def run(request: Request, fields: Mapping[str, str]) -> Response:
        try:
            done = submit(site, request, fields)
            site.overview.changed()
            return RedirectResponse(f"{site.base}/alerts?{urlencode({'done': done})}", 303)
        except RequestError as error:
            snapshot = site.overview.snapshot()
            facts = _alerts(site, snapshot, request, fields, str(error))
            return HTMLResponse(site.render("alerts.html", snapshot, facts), 422)
        except StoreError as error:
            return error_page(site, "Redis does not answer", str(error), 503)

    async def answer(request: Request) -> Response:
        try:
            fields = silencing.parse_form(await read_body(request))
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", 400)
        if not (from_our_pages(request.headers) and site.credentials.is_form_token(fields.get("form", ""))):
            return error_page(site, "Refused", "This form is not one of ours; load the page again.", 403)
        return await run_in_threadpool(run, request, fields)

    return answer


def _add_silence(site: Site, request: Request, fields: Mapping[str, str]) -> str:
    user = user_of(request.headers.get("authorization", ""))
    silencing.keep(site.store, silencing.from_form(fields, user))
    return "silenced"


def _expire_silence(site: Site, _: Request, fields: Mapping[str, str]) -> str:
    silencing.expire(site.store, fields.get("id", ""))
    return "expired"
