"""The state of the whole fleet in Redis, read at once: the base of pages, API, command line and exported metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from monitor.core import silences
from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import Layout
from monitor.core.event_time import fleet_watermark
from monitor.core.readers import Unread
from monitor.core.replicas import Replica
from monitor.core.silences import Silence
from monitor.core.types import Alert, Cursor, Partition, Totals
from monitor.store import GONE_STREAM, EvaluatorState, Store
from monitor.store.shards import whole_state

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SelfAlert:
    """An open alert about the monitor itself."""

    rule: str
    subject: str
    since: str
    summary: str


@dataclass(frozen=True)
class FleetState:
    """The state of all partitions and streams, read at about the same time."""

    cursors: Mapping[Partition, Cursor | None] = field(default_factory=dict)
    """Of every known partition; None where it has not started."""
    totals: Mapping[str, Totals] = field(default_factory=dict)
    alerts: Sequence[Alert] = ()
    """All stored ones: firing, then pending, then resolved ones; the latest first."""
    self_alerts: Sequence[SelfAlert] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """By fingerprint of the profile."""
    silences: Sequence[Silence] = ()
    evaluator: EvaluatorState = field(default_factory=EvaluatorState)
    """Of all shards together: decided is what the slowest has decided."""
    left_out: Mapping[Partition, Unread] = field(default_factory=dict)
    """Partitions that nobody reads."""
    replicas: Sequence[Replica] = ()
    """The processes that run, and the profiles that they score with."""
    watermark_ms: int | None = None
    """Event time up to which every other partition has been read; None while that is unknown."""

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Every known partition, in order."""
        return tuple(self.cursors)

    @property
    def active(self) -> list[Alert]:
        """The alerts that are firing or pending."""
        return [alert for alert in self.alerts if alert.phase in UNDER_WAY]

    @property
    def high_ms(self) -> int:
        """The newest event time of all partitions; 0 before the first image."""
        return newest_event_ms(self.cursors)


def read_state(store: Store, lateness_ms: int) -> FleetState:
    """Read the state of the fleet.

    Raises:
        StoreError: Redis does not answer.
    """
    cursors = store.partitions.cursors(store.catalog.partitions())
    totals = store.counts.totals(cursors)
    totals.pop(GONE_STREAM, None)  # no stream: it keeps the sums over all of them
    left_out = store.catalog.left_out()
    return FleetState(
        cursors=cursors,
        totals=totals,
        alerts=sorted(store.shards.alerts().values(), key=_urgency),
        self_alerts=sorted(
            map(_self_alert, store.outbox.self_alerts().items()), key=lambda a: (a.since, a.rule, a.subject)
        ),
        layouts=read_layouts(store),
        silences=read_silences(store),
        evaluator=whole_state(store.shards.states()),
        left_out=left_out,
        replicas=store.catalog.replicas(),
        watermark_ms=fleet_watermark((c for p, c in cursors.items() if p not in left_out), lateness_ms),
    )


def read_layouts(store: Store) -> dict[str, Layout]:
    """{fingerprint: layout} of the profiles that counted here lately and judge images by an OOD score."""
    return {name: layout for name, layout in store.catalog.layouts().items() if "ood" in layout.signals}


def read_silences(store: Store) -> list[Silence]:
    """The stored silences, the next to end first; an unreadable one hides no alert and is left out."""
    found, unreadable = silences.read_all(store.silences.all())
    for error in unreadable.values():
        log.debug("silence.unreadable", error=error)
    return found


def newest_event_ms(cursors: Mapping[Partition, Cursor | None]) -> int:
    """The highest event time of some partitions; 0 before the first image."""
    return max((cursor.high_ms for cursor in cursors.values() if cursor), default=0)


def _urgency(alert: Alert) -> tuple[int, int, str, str]:
    if alert.phase in UNDER_WAY:
        return UNDER_WAY.index(alert.phase), -alert.since_ms, alert.rule, alert.stream
    return len(UNDER_WAY), -alert.resolved_ms, alert.rule, alert.stream


def _self_alert(entry: tuple[str, str]) -> SelfAlert:
    name, document = entry
    rule, _, subject = name.partition(" ")
    try:
        facts = json.loads(document)["data"]
        return SelfAlert(rule, subject, str(facts["since"]), str(facts["summary"]))
    except (ValueError, KeyError, TypeError):
        return SelfAlert(rule, subject, "", "its document cannot be read")
