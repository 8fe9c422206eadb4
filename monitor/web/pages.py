"""The pages for people: made on the server, readable without JavaScript; every name in them is escaped by Jinja."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from monitor import alerts
from monitor.buckets import Layout, sum_vectors
from monitor.document import rfc3339
from monitor.evidence import MovedSignal, moved_signals, triage
from monitor.overview import StreamRow, stream_rows
from monitor.store import Store
from monitor.types import Alert, AlertPhase, Exemplar, Partition

SHOWN_MS = 300_000
"""What a stream's page looks back on, from its newest image."""
SIGNALS = 8
EXEMPLARS = 12
TROUBLE = {AlertPhase.FIRING: 0, AlertPhase.PENDING: 1}


@dataclass(frozen=True, slots=True)
class Looks:
    """What a stream's newest images show."""

    moved: tuple[MovedSignal, ...] = ()
    triage: str | None = None
    exemplars: tuple[Exemplar, ...] = ()
    images: int = 0


class Pages:
    """Renders pages from what stands in Redis; every method may raise StoreError."""

    def __init__(self, store: Store, monitor: str, lateness_ms: int) -> None:
        self._store, self._monitor, self._lateness_ms = store, monitor, lateness_ms
        self._templates = Environment(
            loader=PackageLoader("monitor.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters["time"] = lambda time_ms: rfc3339(time_ms) if time_ms else "-"
        self._templates.filters["percent"] = lambda share: "-" if share is None else f"{share:.1%}"
        self._templates.filters["path"] = lambda name: quote(name, safe="")
        self._templates.filters["picture"] = lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

    def overview(self) -> str:
        """All streams, those in trouble first, and the alerts that are not over."""
        rows = stream_rows(self._store, self._lateness_ms)
        known = self._alerts()
        open_alerts = [alert for alert in known if alert.phase in TROUBLE]
        by_trouble = sorted(rows.items(), key=lambda item: (not item[1].alerts, -(item[1].ood_share or 0.0), item[0]))
        recent = sorted((a for a in known if a.phase is AlertPhase.RESOLVED), key=lambda a: -a.resolved_ms)[:10]
        return self._render("overview.html", streams=by_trouble, open_alerts=open_alerts, resolved=recent)

    def stream(self, name: str) -> str | None:
        """One stream: counts, alerts, what moved, the most unusual images; None where it was never seen."""
        row = stream_rows(self._store, self._lateness_ms).get(name)
        if row is None:
            return None
        known = [alert for alert in self._alerts() if alert.stream == name]
        return self._render("stream.html", name=name, row=row, known=known, looks=self._looks(name, row))

    def _alerts(self) -> list[Alert]:
        found = [alerts.from_json(text) for text in self._store.load_alerts().values()]
        return sorted(found, key=lambda a: (TROUBLE.get(a.phase, 2), -a.since_ms, a.rule, a.stream))

    def _looks(self, name: str, row: StreamRow) -> Looks:
        partitions = self._store.known_partitions()
        since_ms, until_ms = row.last_event_ms - SHOWN_MS, row.last_event_ms + 1
        for fingerprint, text in self._store.layouts().items():
            looks = self._looks_of(partitions, fingerprint, Layout.from_json(text), (since_ms, until_ms), name)
            if looks.images:
                return looks
        return Looks()

    def _looks_of(
        self, partitions: tuple[Partition, ...], fingerprint: str, layout: Layout, span: tuple[int, int], name: str
    ) -> Looks:
        buckets = self._store.read_buckets(partitions, fingerprint, *span)
        vectors = [streams[name] for streams in buckets.values() if name in streams]
        if not vectors:
            return Looks()
        window = sum_vectors(vectors)
        moved = moved_signals(layout, window, limit=SIGNALS)
        worst = self._store.exemplars(partitions, fingerprint, name, *span, EXEMPLARS)
        return Looks(moved, triage(moved), tuple(worst), int(window[-6]))

    def _render(self, template: str, **facts: Any) -> str:
        shared: Mapping[str, Any] = {"monitor": self._monitor}
        return self._templates.get_template(template).render(**shared, **facts)
