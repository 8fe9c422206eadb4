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

    def documents(self, store: Store, memory: Memory, changes: Sequence[Change]) -> list[str]:
        """The documents of these changes, with their evidence; StoreError where Redis does not answer.

        Args:
            memory: its windows end with the bucket that is being decided.
        """
        if not changes or not self.has_receivers:
            return []
        partitions = store.catalog.partitions()
        return [
            alert_document(self._about(change), change.alert, self._evidence(store, memory, change, partitions))
            for change in changes
        ]

    def _about(self, change: Change) -> About:
        rule, stream = change.rule, change.alert.stream
        return About(
            monitor=self.monitor,
            rule=change.alert.rule,
            kind=rule.kind if rule else "removed",
            labels=rule.labels if rule else {},
            status_url=stream_url(self.external_url, stream),
            dashboard_url=dashboard_url(self.dashboard_url, stream),
        )

    def _evidence(self, store: Store, memory: Memory, change: Change, partitions: tuple[Partition, ...]) -> Evidence:
        """What moved since the alert began, as far back as the windows reach."""
        layout, rule, alert = memory.layouts.get(change.fingerprint), change.rule, change.alert
        if layout is None or rule is None:
            return Evidence()
        # a window rule's own window, which begins before the first breach; else from where the drift began
        begin_ms = change.bucket_ms - rule.window_ms if rule.window_ms else alert.since_ms - memory.bucket_ms
        after_ms = max(change.bucket_ms - rule.evidence_ms, begin_ms)
        since_ms, until_ms = after_ms + memory.bucket_ms, change.bucket_ms + memory.bucket_ms
        moved = moved_signals(layout, memory.windows.sum(layout, change.fingerprint, alert.stream, after_ms))
        worst = store.exemplars.unusual(
            partitions, change.fingerprint, alert.stream, since_ms, until_ms, self.exemplars
        )
        cause = alert.verdict.cause if alert.verdict else ""
        return Evidence(moved, triage(moved, cause_is_learned(layout, cause)), worst)
