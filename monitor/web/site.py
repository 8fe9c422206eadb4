"""What pages and API share: the state of one monitor, in the form in which both show it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

from monitor.core.replicas import disagree
from monitor.core.shadow import PREFIX
from monitor.core.types import Alert, Cursor, Partition
from monitor.fleet.comparison import ComparisonJson, compare, raised_alerts, sides_of
from monitor.fleet.overview import Overview, Snapshot
from monitor.fleet.renewal import read_renewals
from monitor.fleet.stream_view import Asked, StreamView, view_stream
from monitor.fleet.warming import warming_of_alert
from monitor.rules.rule import Rule
from monitor.store import Store
from monitor.store.shards import whole_state
from monitor.telemetry.clock import wall_ms
from monitor.web import labels
from monitor.web.answers import (
    AlertJson,
    HealthJson,
    LayoutJson,
    PartitionJson,
    ProfileJson,
    ProfilesJson,
    ReplicaJson,
    SeverityJson,
    ShardJson,
    SilenceJson,
    UndeliveredJson,
)
from monitor.web.guard import Credentials, Hosts
from monitor.web.settings import WebSettings

COMPARED_MS, FEW_MS, COMPARED_STREAMS = 3_600_000, 300_000, 200
"""How far back profiles in shadow are compared: an hour of more streams takes seconds to read."""
COMPARED_SHARE = 0.1
"""Of the time that goes into it, at most."""
EVIDENCE_FRESH_S = 10.0
"""Age up to which the evidence of an alert is reused: one default bucket."""


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
        rules: Sequence[Rule] = (),
    ) -> None:
        self.store, self.monitor, self.why_unready = store, monitor, why_unready
        self.overview = Overview(store, lateness_ms)
        self.credentials, self.hosts = Credentials(settings), Hosts(settings)
        self.base = urlsplit(settings.external_url).path.rstrip("/")
        """Path below which a proxy puts the pages, as /layerwatch; empty without one."""
        self.rules, self._rules = tuple(rules), {rule.name: rule for rule in rules}
        self._evidence: Mapping[str, tuple[float, StreamView]] = {}
        self._comparing = threading.Lock()
        self._compared: list[ComparisonJson] = []
        self._compare_again_s = -math.inf

    def alerts(self, snapshot: Snapshot, stream: str | None = None) -> list[AlertJson]:
        """All stored alerts, or those of one stream."""
        now = wall_ms()
        return [self._alert(a, snapshot, now) for a in snapshot.alerts if stream is None or a.stream == stream]

    def alerting(self, snapshot: Snapshot) -> list[list[AlertJson]]:
        """The active alerts of each stream that has some, by `AlertJson.urgency`; the most urgent stream first."""
        by_stream: dict[str, list[AlertJson]] = {}
        for alert in self.alerts(snapshot):
            if alert.phase != "resolved":
                by_stream.setdefault(alert.stream, []).append(alert)
        found = [sorted(mine, key=lambda alert: alert.urgency) for mine in by_stream.values()]
        return sorted(found, key=lambda mine: (*mine[0].urgency, mine[0].stream))

    def silences(self, snapshot: Snapshot) -> list[SilenceJson]:
        return [SilenceJson.of(silence, wall_ms()) for silence in snapshot.silences]

    def evidence(self, snapshot: Snapshot, alerts: Sequence[AlertJson]) -> list[StreamView]:
        """The evidence of some active alerts; it is read every ten seconds at most."""
        now_s = time.monotonic()
        fresh = {alert: read for alert, read in self._evidence.items() if now_s - read[0] < EVIDENCE_FRESH_S}
        found = {
            alert.alert_id: fresh.get(alert.alert_id)
            or (now_s, view_stream(self.store, snapshot, alert.stream, Asked(alert.alert_id, in_short=True)))
            for alert in alerts
        }
        self._evidence = found  # only of the alerts just shown, so it stays small
        return [view for _, view in found.values()]

    def profiles(self, snapshot: Snapshot) -> ProfilesJson:
        """The profiles that counted here lately, with the streams that they judge."""
        manifests, judged_by = self.store.catalog.profiles(), self.overview.judged_by()
        return ProfilesJson(
            profiles={
                fingerprint: ProfileJson(
                    layout=LayoutJson.model_validate(layout),
                    manifest=json.loads(manifests[fingerprint]) if fingerprint in manifests else None,
                    streams=judged_by.get(fingerprint, []),
                )
                for fingerprint, layout in sorted(snapshot.layouts.items())
            },
            replicas=[ReplicaJson.model_validate(replica) for replica in snapshot.replicas],
            disagree=disagree(snapshot.replicas),
            shadows=self._shadows(snapshot),
            renewals=read_renewals(self.store),
        )

    def _shadows(self, snapshot: Snapshot) -> list[ComparisonJson]:
        """Those that scored images lately; a tenth of the time at most goes into comparing them."""
        with self._comparing:
            now_s, worked_s, until_ms = time.monotonic(), time.thread_time(), snapshot.high_ms + 1
            if now_s >= self._compare_again_s:
                span_ms = until_ms - (COMPARED_MS if len(snapshot.streams) <= COMPARED_STREAMS else FEW_MS), until_ms
                self._compared = list(self._compare(snapshot, span_ms))
                took_s = time.thread_time() - worked_s
                self._compare_again_s = now_s + max(EVIDENCE_FRESH_S, took_s / COMPARED_SHARE)
            return self._compared

    def _compare(self, snapshot: Snapshot, span_ms: tuple[int, int]) -> Iterator[ComparisonJson]:
        store, shadows = self.store, self.store.catalog.shadows()
        known = {**snapshot.layouts, **{name.removeprefix(PREFIX): layout for name, layout in shadows.items()}}
        for name in sorted(shadows):
            sides = sides_of(store, snapshot.layouts, name, span_ms)
            if sides.shadow:
                alerts = raised_alerts(sides, known, self.rules, store.counts.length_ms)
                yield compare(store, snapshot.layouts, sides, alerts)

    def health(self) -> HealthJson:
        """Readiness, Redis, partitions and receivers of the monitor itself."""
        store, started_s = self.store, time.perf_counter()
        store.ping()
        redis_ms = 1000 * (time.perf_counter() - started_s)
        snapshot, unready = self.overview.snapshot(), self.why_unready()
        shards = store.shards.states()
        evaluator = whole_state(shards)
        return HealthJson(
            ready=not unready,
            reason=unready,
            version=version("layerwatch"),
            redis_ms=redis_ms,
            newest_event=snapshot.high_ms or None,
            watermark=snapshot.watermark_ms,
            decided_bucket=evaluator.bucket_ms,
            shards=[
                ShardJson(held=held, decided_bucket=state.bucket_ms)
                for held, state in zip(store.shards.held(), shards, strict=False)
            ],
            partitions=[_partition(partition, cursor) for partition, cursor in snapshot.cursors.items()],
            failing_receivers=sorted(store.outbox.failing()),
            undelivered=[
                UndeliveredJson(receiver=dead.receiver, alert=_id(dead.document), reason=dead.reason)
                for dead in store.shards.dead_alerts()
            ],
            outbox_dropped=evaluator.outbox_dropped,
            images_over_stream_limit=store.counts.streams_over_limit(snapshot.partitions),
            behind=self.overview.behind,
        )

    def _alert(self, alert: Alert, snapshot: Snapshot, now: int) -> AlertJson:
        verdict, rule = alert.verdict, self._rules.get(alert.rule)
        cause, severity = (verdict.cause, verdict.severity) if verdict else ("", None)
        facts = {"stream": alert.stream, "rule": alert.rule, "labels": rule.labels if rule else {}}
        silence = next((s for s in snapshot.silences if s.active(now) and s.matches(facts)), None)
        return AlertJson.model_validate(
            {
                "alert_id": alert.id,
                "rule": alert.rule,
                "kind": rule.kind if rule else labels.CAUSES.get(cause, "sequential"),
                "stream": alert.stream,
                "phase": str(alert.phase),
                "since": alert.since_ms or None,
                "fired_at": alert.fired_ms or None,
                "resolved_at": alert.resolved_ms or None,
                "summary": verdict.summary if verdict else "",
                "cause": cause,
                "condition": alert.condition,
                **{name: getattr(verdict, name, None) for name in ("value", "bound", "threshold", "images")},
                "severity": dict(zip(SeverityJson.model_fields, severity, strict=True)) if severity else None,
                "silenced_by": silence.id if silence else None,
                "warming": warming_of_alert(alert, rule),
                "silence": silence,
                "duration_ms": (alert.resolved_ms or max(snapshot.high_ms, alert.since_ms)) - alert.since_ms,
            }
        )


def _partition(partition: Partition, cursor: Cursor | None) -> PartitionJson:
    return PartitionJson(
        partition=str(partition),
        next_offset=cursor.next_offset if cursor else None,
        newest_event=cursor.high_ms or None if cursor else None,
        idle=cursor.idle if cursor else False,
        rebuilding=cursor.next_offset < cursor.rebuild_until if cursor else False,
    )


def _id(document: str) -> str:
    try:
        return str(json.loads(document)["id"])
    except (ValueError, KeyError, TypeError):
        return "?"
