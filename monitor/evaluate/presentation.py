"""What an alert says beyond the verdict: what moved, the worst images, where to look; made into its document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monitor.core.alert_document import About, Evidence, alert_document, dashboard_url, stream_url
from monitor.core.alert_state import Transition
from monitor.core.buckets import Layout
from monitor.core.types import Alert, Partition
from monitor.core.windows import Windows
from monitor.rules.evidence import cause_is_learned, moved_signals, triage
from monitor.rules.ruleset import BoundRule
from monitor.store import Store


@dataclass(frozen=True, slots=True)
class Presentation:
    """Whose alerts they are, where to look, and how many images they name."""

    monitor: str
    external_url: str = ""
    dashboard_url: str = ""
    exemplars: int = 12
    heard: bool = True
    """Whether there is anybody to tell; without receivers nothing goes to the outbox."""


class Presenter:
    """Writes the documents of alerts.

    Args:
        layouts: fingerprint -> layout; the evaluator's own, which learns of others.
        bucket_ms: length of a bucket.
    """

    def __init__(self, store: Store, layouts: Mapping[str, Layout], bucket_ms: int, presentation: Presentation) -> None:
        self._store, self._layouts, self._bucket_ms = store, layouts, bucket_ms
        self._presentation = presentation

    def of_change(
        self,
        rule: BoundRule,
        fingerprint: str,
        change: Transition,
        alert: Alert,
        bucket_ms: int,
        windows: Windows,
        partitions: tuple[Partition, ...],
    ) -> str:
        """The document of an alert that the bucket at `bucket_ms` made fire or resolve, with its evidence."""
        evidence = self._evidence(rule, fingerprint, alert, bucket_ms, windows, partitions)
        return alert_document(self._about(rule.name, rule, alert.stream), change, alert, evidence)

    def of_withdrawal(self, rule: BoundRule | None, change: Transition, alert: Alert) -> str:
        """The document of an alert that the configuration left behind; `rule` is the one of its name, if any."""
        return alert_document(self._about(alert.rule, rule, alert.stream), change, alert)

    def _about(self, name: str, rule: BoundRule | None, stream: str) -> About:
        return About(
            monitor=self._presentation.monitor,
            rule=name,
            kind=rule.settings.kind if rule else "removed",
            labels=rule.settings.labels if rule else {},
            status_url=stream_url(self._presentation.external_url, stream),
            dashboard_url=dashboard_url(self._presentation.dashboard_url, stream),
        )

    def _evidence(
        self,
        rule: BoundRule,
        fingerprint: str,
        alert: Alert,
        bucket_ms: int,
        windows: Windows,
        partitions: tuple[Partition, ...],
    ) -> Evidence:
        """What moved since the alert began, as far as the windows reach."""
        layout = self._layouts.get(fingerprint)
        if layout is None:
            return Evidence()
        # a window rule's own window, which begins before the first breach; else from where the drift began
        begin_ms = bucket_ms - rule.window_ms if rule.window_ms else alert.since_ms - self._bucket_ms
        after_ms = max(bucket_ms - rule.evidence_ms, begin_ms)
        moved = moved_signals(layout, windows.sum(layout, fingerprint, alert.stream, after_ms))
        until_ms = bucket_ms + self._bucket_ms
        worst = self._store.exemplars.unusual(
            partitions, fingerprint, alert.stream, after_ms + self._bucket_ms, until_ms, self._presentation.exemplars
        )
        cause = alert.verdict.cause if alert.verdict else ""
        return Evidence(moved, triage(moved, cause_is_learned(layout, cause)), worst)
