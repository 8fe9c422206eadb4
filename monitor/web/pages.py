"""The pages for people: made on the server, readable without JavaScript; every name in them is escaped by Jinja."""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from monitor.core.alert_document import rfc3339, stream_path
from monitor.core.types import AlertPhase
from monitor.fleet.overview import Overview, Snapshot, StreamRow
from monitor.fleet.stream_view import Glance, glance, picture_address, view_stream
from monitor.rules.settings import RuleSettings
from monitor.store import Store
from monitor.web import drawing, silencing, words
from monitor.web.health import Health
from monitor.web.troubles import Shown, Teller, Trouble, own_troubles

ROWS = 100
"""Streams on one page: as many as a person reads, and quickly made; a search field and further pages lead on."""
CARDS = 8
"""Streams in trouble that are told of in full; the table below has all."""
GLANCE_S = 10.0
"""How long what an alert looks like is shown again: one default bucket."""
POINTS = 60
RESOLVED = 100
FIELDS = ("stream", "rule", "duration_s", "author", "comment")
DONE = {"silenced": "Silenced.", "expired": "The silence is over."}


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, as far as pages differ."""

    user: str = ""
    form_token: str = ""
    """Empty where nothing can be written."""


@dataclass(frozen=True, slots=True)
class StreamLine:
    """One row of the overview's table."""

    name: str
    row: StreamRow
    trouble: Trouble | None
    spark: drawing.Spark | None
    quiet: str
    """How long it has sent nothing, where that is longer than the last minute."""


class Pages:
    """Renders pages; every method may raise StoreError.

    Args:
        monitor: its name, for the head of the pages.
        rules: as configured.
        base: path below which a proxy puts the pages, as /layerwatch; empty without one.
    """

    def __init__(
        self, store: Store, overview: Overview, monitor: str, rules: Sequence[RuleSettings], base: str = ""
    ) -> None:
        self._store, self._overview, self._monitor = store, overview, monitor
        self._teller = Teller(rules)
        self._templates = _environment(base)
        for name in self._templates.list_templates():
            self._templates.get_template(name)  # compiled now, not while the first visitor waits
        self._glances: Mapping[str, tuple[float, Glance]] = {}

    def overview(self, search: str = "", page: int = 1) -> str:
        """All streams, those in trouble first."""
        snapshot, now_ms = self._overview.snapshot(), _now_ms()
        troubles = self._teller.troubles(snapshot, silencing.readable(snapshot.silences), now_ms)
        names = _by_trouble(snapshot, troubles, search)
        pages = max(1, -(-len(names) // ROWS))
        page = min(max(1, page), pages)
        shown = names[(page - 1) * ROWS : page * ROWS]
        return self._render(
            "overview.html",
            snapshot,
            troubles=troubles,
            cards=self._cards(snapshot, troubles[:CARDS]),
            own=own_troubles(snapshot),
            lines=self._lines(snapshot, shown, troubles),
            found=len(names),
            search=search,
            page=page,
            pages=pages,
            behind=self._overview.behind,
        )

    def stream(self, name: str, alert_id: str = "") -> str | None:
        """One stream around one of its alerts, or now; None where it was never seen."""
        snapshot, now_ms = self._overview.snapshot(), _now_ms()
        if name not in snapshot.rows:
            return None
        view = view_stream(self._store, snapshot, name, alert_id)
        silences = silencing.readable(snapshot.silences)
        known = [self._teller.show(alert, snapshot, silences, now_ms) for alert in snapshot.alerts]
        own = [shown for shown in known if shown.alert.stream == name]
        chart = drawing.chart(view.points, view.step_ms)
        (line,) = self._lines(snapshot, [name], self._teller.troubles(snapshot, silences, now_ms))
        return self._render(
            "stream.html",
            snapshot,
            name=name,
            line=line,
            known=own,
            focus=next((shown for shown in own if view.focus and shown.alert.id == view.focus.id), None),
            view=view,
            chart=chart,
            spans=_spans(chart, own, snapshot.high_ms),
            moved=[(moved, drawing.histogram(view.layout, moved)) for moved in view.moved] if view.layout else [],
            exemplars=[(exemplar, _p_values(view, exemplar)) for exemplar in view.exemplars],
            typical=[(exemplar, _p_values(view, exemplar)) for exemplar in view.typical],
        )

    def alerts(self, visitor: Visitor, asked: Mapping[str, str], error: str = "") -> str:
        """Alerts under way and lately resolved, silences, and the form for a new one.

        Args:
            asked: what to fill the form with (stream, rule, ...); `done` says what was done just now.
            error: what was wrong with the form.
        """
        snapshot, now_ms = self._overview.snapshot(), _now_ms()
        silences = silencing.readable(snapshot.silences)
        resolved = [alert for alert in snapshot.alerts if alert.phase is AlertPhase.RESOLVED][:RESOLVED]
        return self._render(
            "alerts.html",
            snapshot,
            troubles=self._teller.troubles(snapshot, silences, now_ms),
            own=own_troubles(snapshot),
            resolved=[self._teller.show(alert, snapshot, silences, now_ms) for alert in resolved],
            silences=[(silence, silence.active(now_ms)) for silence in silences],
            durations=silencing.DURATIONS_S,
            visitor=visitor,
            asked={**dict.fromkeys(FIELDS, ""), **asked},
            done=DONE.get(asked.get("done", ""), ""),
            error=error,
        )

    def profiles(self) -> str:
        """What each profile in use was learned from, and what it measures."""
        snapshot = self._overview.snapshot()
        return self._render("profile.html", snapshot, profiles=read_profiles(self._store, self._overview))

    def health(self, health: Health) -> str:
        """How the monitor itself fares."""
        snapshot = self._overview.snapshot()
        return self._render("health.html", snapshot, health=health, own=own_troubles(snapshot))

    def error(self, title: str, text: str) -> str:
        """A page that says what went wrong; reads nothing."""
        return self._render("error.html", Snapshot(), title=title, text=text)

    def _cards(self, snapshot: Snapshot, troubles: Sequence[Trouble]) -> list[tuple[Trouble, Glance]]:
        held, now_s = self._glances, time.monotonic()
        looked: dict[str, tuple[float, Glance]] = {}
        for trouble in troubles:
            alert = trouble.first.alert
            seen = held.get(alert.id)
            fresh = seen is not None and now_s - seen[0] < GLANCE_S
            looked[alert.id] = seen if seen and fresh else (now_s, glance(self._store, snapshot, alert))
        self._glances = looked  # of those shown, so it stays small
        return [(trouble, looked[trouble.first.alert.id][1]) for trouble in troubles]

    def _lines(self, snapshot: Snapshot, names: Sequence[str], troubles: Sequence[Trouble]) -> list[StreamLine]:
        in_trouble = {trouble.stream: trouble for trouble in troubles}
        lines = self._overview.lines(names, POINTS)
        since_ms = min((points[0][0] for points in lines.values() if points), default=0)
        found = []
        for name in names:
            row = snapshot.rows[name]
            silent = row.ood_share is None and row.last_event_ms > 0
            quiet = words.duration(snapshot.high_ms - row.last_event_ms) if silent else ""
            spark = drawing.spark(lines.get(name, ()), since_ms, snapshot.high_ms)
            found.append(StreamLine(name, row, in_trouble.get(name), spark, quiet))
        return found

    def _render(self, template: str, snapshot: Snapshot, **facts: Any) -> str:
        shared = {"monitor": self._monitor, "snapshot": snapshot, "now_ms": _now_ms(), "page_name": template[:-5]}
        return self._templates.get_template(template).render(**shared, **facts)


def read_profiles(store: Store, overview: Overview) -> dict[str, dict[str, Any]]:
    """{fingerprint: {"layout", "manifest" (or None), "streams"}} of the profiles that counted here lately."""
    manifests, judged_by = store.catalog.profiles(), overview.judged_by()
    return {
        fingerprint: {
            "layout": asdict(layout),
            "manifest": json.loads(manifests[fingerprint]) if fingerprint in manifests else None,
            "streams": judged_by.get(fingerprint, []),
        }
        for fingerprint, layout in sorted(store.catalog.layouts().items(), key=itemgetter(0))
    }


def _by_trouble(snapshot: Snapshot, troubles: Sequence[Trouble], search: str) -> list[str]:
    place = {trouble.stream: i for i, trouble in enumerate(troubles)}
    wanted = search.casefold()
    names = [name for name in snapshot.rows if wanted in name.casefold()] if wanted else list(snapshot.rows)
    return sorted(names, key=lambda name: (place.get(name, len(place)), -(snapshot.rows[name].ood_share or 0.0), name))


def _spans(chart: drawing.Chart | None, own: Sequence[Shown], high_ms: int) -> list[tuple[Shown, drawing.Span]]:
    if chart is None:
        return []
    placed = [(shown, chart.span(shown.alert.since_ms, shown.alert.resolved_ms or high_ms + 1)) for shown in own]
    return [(shown, span) for shown, span in placed if span is not None]


def _p_values(view: Any, exemplar: Any) -> list[tuple[str, float]]:
    """(signal, p-value) of one image, the most unusual first."""
    signals = view.layout.signals if view.layout else ()
    return sorted(zip(signals, exemplar.p_values, strict=False), key=lambda pair: pair[1])


def _environment(base: str) -> Environment:
    made = Environment(
        loader=PackageLoader("monitor.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        advice=lambda shown, triage=None: words.advice(shown.kind, triage),
        clock=words.clock,
        duration=words.duration,
        glob=glob.escape,
        iso=rfc3339,
        moment=words.moment,
        path=lambda name: base + stream_path(name),
        percent=words.percent,
        picture=picture_address,
        query=urlencode,
        short=words.shortened,
        signal=words.signal,
    )
    made.globals.update(base=base, TRIAGE=words.TRIAGE, version=_static_version())
    return made


def _static_version() -> str:
    """Changes with the files, so that browsers may keep them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in ("layerwatch.css", "layerwatch.js"):
        digest.update(files("monitor.web").joinpath("static", name).read_bytes())
    return digest.hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
