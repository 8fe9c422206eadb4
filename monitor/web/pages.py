"""The pages for people, readable without JavaScript. A page is one function here and the template of the same name."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from monitor.core.alert_document import rfc3339, stream_path
from monitor.core.feedback import LABEL, in_force
from monitor.fleet.feedback import read_feedback
from monitor.fleet.overview import Snapshot, StreamJson
from monitor.fleet.stream_view import SPANS_MS, Asked, view_stream
from monitor.telemetry.clock import wall_ms
from monitor.web import drawing, feedback, labels, silencing
from monitor.web.answers import AlertJson
from monitor.web.guard import from_our_pages, user_of
from monitor.web.silencing import RequestError, read_body
from monitor.web.site import Site

ROWS = 100
"""Streams per page: few enough to read and to render quickly; search and further pages reach the others."""
CARDS = 8
"""Alerting streams that are described in full; the table below has all."""
POINTS = 60
RESOLVED = 100
FIELDS = ("stream", "rule", "duration_s", "author", "comment")
DONE = {"silenced": "Silenced.", "expired": "The silence is over."}
"""What the page of alerts says after a form."""

Facts = Mapping[str, Any]
"""What a template shows, by name."""
View = Callable[[Site, Snapshot, Request], Facts | None]
Submit = Callable[[Site, Request, Mapping[str, str]], str]
"""Does what a form asks for and returns the path of the page to show; raises RequestError where the form is wrong."""


@dataclass(frozen=True, slots=True)
class StreamLine:
    """One row of the overview's table."""

    name: str
    row: StreamJson
    alerts: Sequence[AlertJson]
    """Active ones, the most urgent first."""
    spark: drawing.Spark | None
    quiet: str
    """How long it has sent nothing, where that is longer than the last minute."""


# ------------------------------------------------------------------------------------------------ pages


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
        "cards": list(zip(cards, site.evidence(snapshot, [alerts[0] for alerts in cards]), strict=True)),
        "lines": _lines(site, snapshot, names[(page - 1) * ROWS : page * ROWS], alerting),
        "found": len(names),
        "search": search,
        "page": page,
        "pages": pages,
        "behind": site.overview.behind,
    }


def stream(site: Site, snapshot: Snapshot, request: Request) -> Facts | None:
    """One stream during one of its alerts, or now; None where no such stream was ever seen."""
    name = request.query_params.get("name", "") or request.path_params["name"]
    if name not in snapshot.streams:
        return None
    asked = request.query_params.get("span", "")
    span = asked if asked in SPANS_MS else ""
    view = view_stream(site.store, snapshot, name, Asked(request.query_params.get("alert", ""), span, rules=site.rules))
    alerts = site.alerts(snapshot, name)
    chart = drawing.Chart(view.points, view.step_ms) if view.points else None
    layout = view.evidence.layout
    answers = in_force(read_feedback(site.store, view.focus.id)) if view.focus else {}
    return {
        "answers": {image: answer for (_, image), answer in answers.items()},
        "form_token": _form_token(site),
        "user": user_of(request.headers.get("authorization", "")),
        "name": name,
        "line": _lines(site, snapshot, [name], site.alerting(snapshot))[0],
        "focus": next((alert for alert in alerts if view.focus and alert.alert_id == view.focus.id), None),
        "earlier": [alert for alert in alerts if alert.phase == "resolved"],
        "view": view,
        "chart": chart,
        "span": span,
        "lengths": {asked: labels.duration(length_ms) for asked, length_ms in SPANS_MS.items()},
        "spans": _spans(chart, alerts, snapshot.high_ms) if chart else [],
        "moved": [(moved, drawing.histogram(layout, moved)) for moved in view.evidence.signals] if layout else [],
    }


def alerts(site: Site, snapshot: Snapshot, request: Request) -> Facts:
    """Active and lately resolved alerts, silences, and the form for a new silence."""
    return _alerts(site, snapshot, request, request.query_params)


def profile(site: Site, snapshot: Snapshot, _: Request) -> Facts:
    """What each profile in use was learned from, and what it measures."""
    found = site.profiles(snapshot)
    return {name: getattr(found, name) for name in ("profiles", "replicas", "disagree", "shadows", "renewals")}


def health(site: Site, _: Snapshot, __: Request) -> Facts:
    """Health of the monitor itself."""
    return {"health": site.health()}


PAGES: Sequence[tuple[str, View, str]] = (
    ("/", overview, "Streams"),
    ("/streams/{name:path}", stream, ""),
    ("/alerts", alerts, "Alerts"),
    ("/profile", profile, "Profile"),
    ("/health", health, "Health"),
)
"""(path, function, text of the link in the head of all pages or "")."""


def _alerts(site: Site, snapshot: Snapshot, request: Request, asked: Mapping[str, str], error: str = "") -> Facts:
    """Facts of the alerts page.

    Args:
        asked: what to fill the form with (stream, rule, ...); `done` says what was done just now.
        error: what was wrong with the form.
    """
    return {
        "alerting": site.alerting(snapshot),
        "resolved": [alert for alert in site.alerts(snapshot) if alert.phase == "resolved"][:RESOLVED],
        "silences": site.silences(snapshot),
        "durations": silencing.DURATIONS_S,
        "user": user_of(request.headers.get("authorization", "")),
        "form_token": _form_token(site),
        "asked": {**dict.fromkeys(FIELDS, ""), **asked},
        "done": DONE.get(asked.get("done", ""), ""),
        "error": error,
    }


def _form_token(site: Site) -> str:
    """Empty where nothing can be written."""
    return site.credentials.form_token() if site.credentials.configured else ""


def _lines(
    site: Site, snapshot: Snapshot, names: Sequence[str], alerting: Sequence[Sequence[AlertJson]]
) -> list[StreamLine]:
    by_stream = {alerts[0].stream: alerts for alerts in alerting}
    lines = site.overview.lines(names, POINTS)
    since_ms = min((points[0][0] for points in lines.values() if points), default=0)
    found = []
    for name in names:
        row = snapshot.streams[name]
        silent = row.ood_share is None and row.last_event is not None
        quiet = labels.duration(snapshot.high_ms - (row.last_event or 0)) if silent else ""
        spark = drawing.spark(lines.get(name, ()), since_ms, snapshot.high_ms)
        found.append(StreamLine(name, row, by_stream.get(name, ()), spark, quiet))
    return found


def _most_urgent(snapshot: Snapshot, alerting: Sequence[Sequence[AlertJson]], search: str) -> list[str]:
    place = {alerts[0].stream: i for i, alerts in enumerate(alerting)}
    rows, wanted = snapshot.streams, search.casefold()
    names = [name for name in rows if wanted in name.casefold()]
    return sorted(names, key=lambda name: (place.get(name, len(place)), -(rows[name].ood_share or 0.0), name))


def _spans(
    chart: drawing.Chart, alerts: Sequence[AlertJson], high_ms: int
) -> list[tuple[AlertJson, tuple[float, float]]]:
    placed = [(alert, chart.span(alert.since or 0, alert.resolved_at or high_ms + 1)) for alert in alerts]
    return [(alert, span) for alert, span in placed if span is not None]


# ------------------------------------------------------------------------------------------------ answering


class Pages:
    """All pages of a site, and the forms on them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._templates = _environment(site.base)
        for name in self._templates.list_templates():
            self._templates.get_template(name)  # compiled now, not while the first visitor waits

    def routes(self) -> list[BaseRoute]:
        return [
            *(Route(path, partial(self._show, view)) for path, view, _ in PAGES),
            Route("/alerts/silences", partial(self._submitted, _add_silence), methods=["POST"]),
            Route("/alerts/silences/expire", partial(self._submitted, _expire_silence), methods=["POST"]),
            Route("/alerts/feedback", partial(self._submitted, _give_feedback), methods=["POST"]),
        ]

    def first(self) -> None:
        """Render the overview once, so that the first visitor does not wait longer than the others."""
        self._show(overview, Request({"type": "http", "query_string": b"", "headers": []}))

    def _show(self, view: View, request: Request) -> Response:
        snapshot = self._site.overview.snapshot()
        facts = view(self._site, snapshot, request)
        if facts is None:
            return self.error("Not found", "No stream of that name has sent anything.", 404)
        return self._page(view.__name__, snapshot, facts)

    def error(self, title: str, text: str, status: int) -> Response:
        """A page that says what went wrong; reads nothing."""
        return self._page("error", Snapshot(), {"title": title, "text": text}, status)

    def _page(self, name: str, snapshot: Snapshot, facts: Facts, status: int = 200) -> Response:
        """Jinja escapes every name in it."""
        shared = {"monitor": self._site.monitor, "snapshot": snapshot, "now_ms": wall_ms(), "page_name": name}
        return HTMLResponse(self._templates.get_template(f"{name}.html").render(**shared, **facts), status)

    async def _submitted(self, submit: Submit, request: Request) -> Response:
        try:
            fields = silencing.parse_form(await read_body(request))
        except RequestError as error:
            return PlainTextResponse(f"{error}\n", 400)
        if not (from_our_pages(request.headers) and self._site.credentials.is_form_token(fields.get("form", ""))):
            return self.error("Refused", "This form is not one of ours; load the page again.", 403)
        return await run_in_threadpool(self._submit, submit, request, fields)

    def _submit(self, submit: Submit, request: Request, fields: Mapping[str, str]) -> Response:
        site = self._site
        try:
            path = submit(site, request, fields)
        except RequestError as error:
            snapshot = site.overview.snapshot()
            return self._page("alerts", snapshot, _alerts(site, snapshot, request, fields, str(error)), 422)
        site.overview.changed()
        return RedirectResponse(f"{site.base}{path}", 303)


def _add_silence(site: Site, request: Request, fields: Mapping[str, str]) -> str:
    user = user_of(request.headers.get("authorization", ""))
    silencing.keep(site.store, silencing.from_form(fields, user))
    return "/alerts?done=silenced"


def _expire_silence(site: Site, _: Request, fields: Mapping[str, str]) -> str:
    silencing.expire(site.store, fields.get("id", ""))
    return "/alerts?done=expired"


def _give_feedback(site: Site, request: Request, fields: Mapping[str, str]) -> str:
    about = feedback.keep(site, request, feedback.from_form(fields)).about
    return f"{stream_path(about.stream, about.alert_id)}#{'pictures' if about.image else 'feedback'}"


def _environment(base: str) -> Environment:
    made = Environment(
        loader=PackageLoader("monitor.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        advice=labels.advice,
        clock=labels.clock,
        duration=labels.duration,
        glob=glob.escape,
        iso=rfc3339,
        moment=labels.moment,
        path=lambda name, alert="", span="": base + stream_path(name, alert, span),
        percent=labels.percent,
        query=urlencode,
        severity=labels.severity,
        short=labels.shortened,
        signal=labels.signal,
        state=labels.state,
        where=labels.where,
    )
    nav = [(view.__name__, path, text) for path, view, text in PAGES if text]
    made.globals.update(base=base, nav=nav, TRIAGE=labels.TRIAGE, KINDS=labels.KINDS, LABEL=LABEL)
    made.globals.update(version=_static_version())
    return made


def _static_version() -> str:
    """Changes with the files, so that browsers may keep them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in ("layerwatch.css", "layerwatch.js"):
        digest.update(files("monitor.web").joinpath("static", name).read_bytes())
    return digest.hexdigest()
