"""Alerts as pages and API show them, and which streams need a person, in the order in which they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from monitor.core.silences import Silence
from monitor.core.types import Alert, AlertPhase
from monitor.fleet.overview import Snapshot
from monitor.web import labels


class RuleInfo(Protocol):
    """What is shown of a configured rule."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class AlertView:
    """An alert with the text that describes it."""

    alert: Alert
    kind: str
    state: str
    severity: str
    duration: str
    """How long it has lasted in event time, or did last."""
    silence: Silence | None
    """In force, and about this alert."""

    @property
    def firing(self) -> bool:
        """Whether it fires now."""
        return self.alert.phase is AlertPhase.FIRING

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """The first needs a person most: not silenced, firing, the most severe, the oldest."""
        severity = self.alert.verdict.severity if self.alert.verdict else None
        return self.silence is not None, not self.firing, -(severity[1] if severity else 0.0), self.alert.since_ms


@dataclass(frozen=True, slots=True)
class StreamAlerts:
    """A stream with its active alerts, by `AlertView.rank`."""

    stream: str
    views: Sequence[AlertView]

    @property
    def first(self) -> AlertView:
        """What describes the stream in one line."""
        return self.views[0]


class Presenter:
    """Describes alerts; the kinds and labels of the configured rules say what they are about."""

    def __init__(self, rules: Sequence[RuleInfo]) -> None:
        self._kinds = {rule.name: rule.kind for rule in rules}
        self._labels = {rule.name: rule.labels for rule in rules}

    def view(self, alert: Alert, snapshot: Snapshot, now_ms: int) -> AlertView:
        """Describe one alert.

        Args:
            now_ms: of the wall clock, which decides what silences are in force.
        """
        kind = labels.kind_of(alert, self._kinds)
        until_ms = alert.resolved_ms or max(snapshot.state.high_ms, alert.since_ms)
        facts = {"stream": alert.stream, "rule": alert.rule, "labels": self._labels.get(alert.rule, {})}
        return AlertView(
            alert=alert,
            kind=kind,
            state=labels.state(alert, kind),
            severity=labels.severity(alert) if kind in labels.DRIFT else "",
            duration=labels.duration(until_ms - alert.since_ms),
            silence=next((s for s in snapshot.silences if s.active(now_ms) and s.matches(facts)), None),
        )

    def alerting(self, snapshot: Snapshot, now_ms: int) -> list[StreamAlerts]:
        """Every stream with an active alert: firing before pending, the most severe first, silenced ones last."""
        views: dict[str, list[AlertView]] = {}
        for alert in snapshot.state.active:
            views.setdefault(alert.stream, []).append(self.view(alert, snapshot, now_ms))
        found = [StreamAlerts(stream, sorted(mine, key=lambda view: view.rank)) for stream, mine in views.items()]
        return sorted(found, key=lambda alerts: (*alerts.first.rank, alerts.stream))
