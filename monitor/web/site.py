"""What pages and API share: the store, the overview of the fleet, and how both are shown."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from monitor.core.alert_document import rfc3339, stream_path
from monitor.core.types import Alert
from monitor.fleet.overview import Overview, Snapshot
from monitor.fleet.stream_view import StreamEvidence, StreamView, evidence_in_short, view_stream
from monitor.store import Store
from monitor.web import labels
from monitor.web.answers import ProfilesJson
from monitor.web.guard import Credentials
from monitor.web.presenter import AlertView, Presenter, RuleInfo, StreamAlerts
from monitor.web.settings import WebSettings
from monitor.web.stream_answers import data_address

NAV: list[tuple[str, str, str]] = []
"""(template's name, path, text) of each page that the head of all pages links to; filled by `monitor.web.pages`."""
EVIDENCE_FRESH_S = 10.0
"""How long the evidence of an alert is shown again: one default bucket."""


class Site:
    """One monitor's pages and API; every method that reads may raise StoreError.

    Args:
        monitor: its name, for the head of the pages.
        why_unready: what keeps this process from doing its work; empty when it is ready.
        rules: as configured: their kinds and labels say what alerts are about.
    """

    def __init__(
        self,
        store: Store,
        monitor: str,
        settings: WebSettings,
        lateness_ms: int,
        why_unready: Callable[[], str],
        rules: Sequence[RuleInfo] = (),
    ) -> None:
        self.store, self.monitor, self.why_unready = store, monitor, why_unready
        self.overview, self.presenter = Overview(store, lateness_ms), Presenter(rules)
        self.credentials = Credentials(settings)
        self.base = urlsplit(settings.external_url).path.rstrip("/")
        """Path below which a proxy puts the pages, as /layerwatch; empty without one."""
        self._templates = _environment(self.base)
        for name in self._templates.list_templates():
            self._templates.get_template(name)  # compiled now, not while the first visitor waits
        self._evidence: Mapping[str, tuple[float, StreamEvidence]] = {}

    def alert_views(self, snapshot: Snapshot, stream: str | None = None) -> list[AlertView]:
        """All alerts that are kept, or those of one stream."""
        mine = (alert for alert in snapshot.state.alerts if stream is None or alert.stream == stream)
        return [self.presenter.view(alert, snapshot, now_ms()) for alert in mine]

    def alerting(self, snapshot: Snapshot) -> list[StreamAlerts]:
        """The streams with active alerts, those first that need a person most."""
        return self.presenter.alerting(snapshot, now_ms())

    def view_stream(self, snapshot: Snapshot, name: str, alert_id: str) -> StreamView:
        """A stream of the snapshot, at the time of that alert where there is one."""
        return view_stream(self.store, snapshot, name, alert_id)

    def evidence(self, snapshot: Snapshot, alerts: Sequence[Alert]) -> list[StreamEvidence]:
        """The evidence of some active alerts; it is read every ten seconds at most."""
        held, now_s = self._evidence, time.monotonic()
        found: dict[str, tuple[float, StreamEvidence]] = {}
        for alert in alerts:
            seen = held.get(alert.id)
            fresh = seen is not None and now_s - seen[0] < EVIDENCE_FRESH_S
            found[alert.id] = seen if seen and fresh else (now_s, evidence_in_short(self.store, snapshot, alert))
        self._evidence = found  # of those shown, so it stays small
        return [evidence for _, evidence in found.values()]

    def profiles(self, snapshot: Snapshot) -> ProfilesJson:
        """The profiles that counted here lately, with the streams that they judge."""
        return ProfilesJson.of(snapshot, self.store, self.overview.judged_by())

    def render(self, template: str, snapshot: Snapshot, facts: Mapping[str, Any]) -> str:
        """A page; every name in it is escaped by Jinja."""
        shared = {"monitor": self.monitor, "snapshot": snapshot, "now_ms": now_ms(), "page_name": template[:-5]}
        return self._templates.get_template(template).render(**shared, **facts)


def now_ms() -> int:
    """By the wall clock."""
    return time.time_ns() // 1_000_000


def _environment(base: str) -> Environment:
    made = Environment(
        loader=PackageLoader("monitor.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        advice=lambda view, triage=None: labels.advice(view.kind, triage),
        clock=labels.clock,
        duration=labels.duration,
        glob=glob.escape,
        iso=rfc3339,
        moment=labels.moment,
        path=lambda name: base + stream_path(name),
        percent=labels.percent,
        picture=data_address,
        query=urlencode,
        short=labels.shortened,
        signal=labels.signal,
    )
    made.globals.update(base=base, nav=NAV, TRIAGE=labels.TRIAGE, version=_static_version())
    return made


def _static_version() -> str:
    """Changes with the files, so that browsers may keep them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in ("layerwatch.css", "layerwatch.js"):
        digest.update(files("monitor.web").joinpath("static", name).read_bytes())
    return digest.hexdigest()
