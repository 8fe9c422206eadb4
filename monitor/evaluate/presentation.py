"""Alert documents: adds the evidence to an alert (signals that moved, worst images) and the links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from monitor.core.alert_document import About, Evidence, alert_document, dashboard_url, stream_url
from monitor.core.types import Alert
from monitor.evaluate.memory import Change, Decision, Memory
from monitor.fleet.evidence import evidence_span, stream_evidence
from monitor.store import Store

READ_BUCKETS = 100_000
"""Buckets read from Redis for the evidence of one decision, some two seconds. When thousands of streams resolve at
once, the counts of the others reach back only as far as the windows in memory, their images over the last bucket."""


@dataclass(frozen=True, slots=True)
class Span:
    """[since, until) of the counts and of the images in the evidence of one document, in ms."""

    since_ms: int
    images_since_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Presentation:
    """The monitor's name and addresses in alert documents, and how many images they list."""

    monitor: str
    external_url: str = ""
    dashboard_url: str = ""
    exemplars: int = 12
    has_receivers: bool = True
    """Without receivers nothing goes to the outbox."""

    def documents(self, store: Store, memory: Memory, decision: Decision) -> dict[str, str]:
        """{alert id: document} of what a decision publishes, with its evidence; StoreError where Redis does not answer.

        Args:
            memory: its windows end with the bucket that is being decided.
        """
        if not decision.published:
            return {}
        partitions = store.catalog.partitions()
        # in an order of their own: that of the streams in Redis differs between a live run and a replay
        changes = sorted(decision.published, key=lambda change: (change.alert.rule, change.alert.stream))
        alerts = _by_stream(memory, decision, changes)
        return {
            change.alert.id: alert_document(
                self._about(change),
                change.alert,
                self._evidence(store, memory, change, span, alerts[change.alert.stream]),
            )
            for change, span in zip(changes, _spans(memory, changes, alerts, len(partitions)), strict=True)
        }

    def _about(self, change: Change) -> About:
        rule, stream = change.rule, change.alert.stream
        return About(
            monitor=self.monitor,
            rule=change.alert.rule,
            kind=rule.kind if rule else "removed",
            labels=rule.labels if rule else {},
            status_url=stream_url(self.external_url, stream, change.alert.id),
            dashboard_url=dashboard_url(self.dashboard_url, stream),
        )

    def _evidence(self, store: Store, memory: Memory, change: Change, span: Span, alerts: Sequence[Alert]) -> Evidence:
        layout, stream = memory.layouts.get(change.fingerprint), change.alert.stream
        if layout is None:
            return Evidence()
        buckets = memory.buckets(change.fingerprint, stream, (span.since_ms, span.until_ms))
        found = stream_evidence(layout, (vector for _, vector in buckets), alerts, span.until_ms)
        images_ms = span.images_since_ms, span.until_ms
        partitions = store.catalog.partitions()
        worst = store.exemplars.worst(partitions, change.fingerprint, stream, images_ms, self.exemplars)
        heat = store.pictures.heat(partitions, worst)
        return Evidence(found.moved, found.triage, worst, {name: known.regions for name, known in heat.items()})


def _by_stream(memory: Memory, decision: Decision, changes: Sequence[Change]) -> dict[str, list[Alert]]:
    """The alerts of the streams concerned, as they are after the decision."""
    found: dict[str, list[Alert]] = {change.alert.stream: [] for change in changes}
    for alert in {**memory.alerts, **decision.alerts}.values():
        if alert.stream in found:
            found[alert.stream].append(alert)
    return found


def _spans(
    memory: Memory, changes: Sequence[Change], alerts: Mapping[str, Sequence[Alert]], partitions: int
) -> Iterator[Span]:
    """The span of the evidence of each change, within READ_BUCKETS."""
    left = READ_BUCKETS
    for change in changes:
        end_ms = change.bucket_ms + memory.bucket_ms
        layout = memory.layouts.get(change.fingerprint)
        signals = layout.signals if layout else ()
        since_ms, until_ms = evidence_span(signals, alerts[change.alert.stream], change.alert, end_ms)
        reads = ((until_ms - since_ms) // memory.bucket_ms + 1) * partitions
        if reads <= left:
            left -= reads
            yield Span(since_ms, since_ms, until_ms)
        else:
            last_ms = until_ms - memory.bucket_ms
            yield Span(max(since_ms, min(memory.held_since_ms(until_ms), last_ms)), last_ms, until_ms)
