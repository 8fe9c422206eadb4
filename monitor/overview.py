"""What stands in Redis, per stream, for people and scripts: the command line, the pages and the JSON API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor import alerts
from monitor.buckets import IMAGES, Layout, cut_index, exceedances
from monitor.document import rfc3339
from monitor.store import Store
from monitor.types import AlertPhase, Totals
from monitor.watermark import fleet_watermark, watermark_ms

WINDOW_MS = 60_000
"""What `ood_share` looks back on."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One stream: counts since the state began, and how it looks now."""

    totals: Totals
    ood_share: float | None
    """Share of the last minute's images (event time) with p <= .05; None where there were none."""
    last_event_ms: int
    watermark_ms: int
    alerts: tuple[str, ...]
    """Rules that are pending or firing."""
    reasons: Mapping[str, int]
    """Reason code -> records rejected for it."""

    def to_json(self) -> dict[str, Any]:
        """As the API and `layerwatch streams --json` give it."""
        return {
            "applied": self.totals.applied,
            "rejected": self.totals.rejected,
            "rejected_by_reason": dict(sorted(self.reasons.items())),
            "late": self.totals.late,
            "duplicates": self.totals.duplicates,
            "ood_share": None if self.ood_share is None else round(self.ood_share, 6),
            "last_event": rfc3339(self.last_event_ms) if self.last_event_ms else None,
            "watermark": rfc3339(self.watermark_ms) if self.last_event_ms else None,
            "alerts": list(self.alerts),
        }


def stream_rows(store: Store, lateness_ms: int) -> dict[str, StreamRow]:
    """Every stream that ever sent something, by name.

    Raises:
        StoreError: Redis does not answer.
    """
    partitions = store.known_partitions()
    totals = store.totals(partitions)
    last_event: dict[str, int] = {}
    for partition in partitions:
        for stream, facts in store.facts(partition).items():
            last_event[stream] = max(last_event.get(stream, 0), facts.event_time_ms)
    high_ms = max(last_event.values(), default=0)
    shares = _ood_shares(store, high_ms)
    reasons = store.rejected_reasons(partitions)
    under_way: dict[str, list[str]] = {}
    for (rule, stream), text in sorted(store.load_alerts().items()):
        if alerts.from_json(text).phase in {AlertPhase.PENDING, AlertPhase.FIRING}:
            under_way.setdefault(stream, []).append(rule)
    return {
        stream: StreamRow(
            totals=totals.get(stream, Totals()),
            ood_share=shares.get(stream),
            last_event_ms=last_event.get(stream, 0),
            watermark_ms=watermark_ms(last_event.get(stream, 0), lateness_ms),
            alerts=tuple(under_way.get(stream, ())),
            reasons=reasons.get(stream, {}),
        )
        for stream in sorted({*totals, *under_way})
    }


def fleet_watermark_ms(store: Store, lateness_ms: int) -> int | None:
    """Event time up to which every partition has been read; None while that is unknown."""
    cursors = store.cursors(store.known_partitions()).values()
    return fleet_watermark([(c.high_ms or None, c.idle) if c else (None, False) for c in cursors], lateness_ms)


def _ood_shares(store: Store, high_ms: int) -> Mapping[str, float]:
    passed: dict[str, int] = {}
    counted: dict[str, int] = {}
    partitions = store.known_partitions()
    for fingerprint, text in store.layouts().items():
        layout = Layout.from_json(text)
        for streams in store.read_buckets(partitions, fingerprint, high_ms - WINDOW_MS, high_ms + 1).values():
            for stream, vector in streams.items():
                beyond = exceedances(layout, vector, "ood")[cut_index(LEVEL)]
                passed[stream] = passed.get(stream, 0) + int(beyond)
                counted[stream] = counted.get(stream, 0) + int(vector[IMAGES])
    return {stream: passed[stream] / images for stream, images in counted.items() if images}
