"""Alert documents: adds the evidence to an alert (signals that moved, worst images) and the links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.core.alert_document import About, Evidence, alert_document, dashboard_url, stream_url
from monitor.core.types import Partition
from monitor.evaluate.memory import Change, Memory
from monitor.rules.evidence import cause_is_learned, moved_signals, triage
from monitor.store import Store


@dataclass(frozen=True, slots=True)
class Presentation:
    """The monitor's name and addresses in alert documents, and how many images they list."""

    monitor: str
    external_url: str = ""
    dashboard_url: str = ""
    exemplars: int = 12
    has_receivers: bool = True
    """Without receivers nothing goes to the outbox."""


class Presenter:
    """Writes the documents of alerts.

    Args:
        memory: the evaluator's, whose windows end with the bucket that is being decided.
        bucket_ms: length of a bucket.
    """

    def __init__(self, store: Store, memory: Memory, bucket_ms: int, presentation: Presentation) -> None:
        self._store, self._memory, self._bucket_ms = store, memory, bucket_ms
        self._presentation = presentation

    def documents(self, changes: Sequence[Change]) -> list[str]:
        """The documents of these changes, with their evidence; StoreError where Redis does not answer."""
        if not changes:
            return []
        partitions = self._store.catalog.partitions()
        return [alert_document(self._about(c), c.alert, self._evidence(c, partitions)) for c in changes]

    def _about(self, change: Change) -> About:
        rule, stream = change.rule, change.alert.stream
        return About(
            monitor=self._presentation.monitor,
            rule=change.alert.rule,
            kind=rule.kind if rule else "removed",
            labels=rule.labels if rule else {},
            status_url=stream_url(self._presentation.external_url, stream),
            dashboard_url=dashboard_url(self._presentation.dashboard_url, stream),
        )

    def _evidence(self, change: Change, partitions: tuple[Partition, ...]) -> Evidence:
        """What moved since the alert began, as far back as the windows reach."""
        layout = self._memory.layouts.get(change.fingerprint)
        if layout is None or change.rule is None:
            return Evidence()
        alert, bucket_ms, rule = change.alert, change.bucket_ms, change.rule
        # a window rule's own window, which begins before the first breach; else from where the drift began
        begin_ms = bucket_ms - rule.window_ms if rule.window_ms else alert.since_ms - self._bucket_ms
        after_ms = max(bucket_ms - rule.evidence_ms, begin_ms)
        window = self._memory.windows.sum(layout, change.fingerprint, alert.stream, after_ms)
        moved = moved_signals(layout, window)
        worst = self._store.exemplars.unusual(
            partitions,
            change.fingerprint,
            alert.stream,
            after_ms + self._bucket_ms,
            bucket_ms + self._bucket_ms,
            self._presentation.exemplars,
        )
        cause = alert.verdict.cause if alert.verdict else ""
        return Evidence(moved, triage(moved, cause_is_learned(layout, cause)), worst)
