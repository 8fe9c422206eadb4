"""Which streams need a person, in the order in which they do, and what to tell of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.core.alert_document import rfc3339
from monitor.core.alert_state import UNDER_WAY
from monitor.core.silences import Silence
from monitor.core.types import Alert, AlertPhase
from monitor.fleet.overview import Snapshot
from monitor.rules.settings import RuleSettings
from monitor.web import words


@dataclass(frozen=True, slots=True)
class Shown:
    """An alert with the words for it."""

    alert: Alert
    kind: str
    state: str
    how_bad: str
    duration: str
    """How long it has lasted in event time, or did last."""
    silence: Silence | None
    """In force, and about this alert."""

    @property
    def firing(self) -> bool:
        """Whether it fires now."""
        return self.alert.phase is AlertPhase.FIRING

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        alert, verdict = self.alert, self.alert.verdict
        times = {"since": alert.since_ms, "fired_at": alert.fired_ms, "resolved_at": alert.resolved_ms}
        severity = verdict.severity if verdict else None
        return {
            "alert_id": alert.id,
            "rule": alert.rule,
            "kind": self.kind,
            "stream": alert.stream,
            "phase": str(alert.phase),
            **{name: rfc3339(at_ms) if at_ms else None for name, at_ms in times.items()},
            "summary": verdict.summary if verdict else "",
            "cause": verdict.cause if verdict else "",
            "value": verdict.value if verdict else None,
            "bound": verdict.bound if verdict else None,
            "threshold": verdict.threshold if verdict else None,
            "images": verdict.images if verdict else None,
            "severity": dict(zip(("lower", "estimate", "upper"), severity, strict=True)) if severity else None,
            "silenced_by": self.silence.id if self.silence else None,
        }


@dataclass(frozen=True, slots=True)
class Trouble:
    """A stream with alerts under way, the most telling first."""

    stream: str
    shown: Sequence[Shown]

    @property
    def first(self) -> Shown:
        """What to tell of it in one line."""
        return self.shown[0]


@dataclass(frozen=True, slots=True)
class OwnTrouble:
    """A trouble of the monitor's own."""

    subject: str
    rule: str
    since: str
    summary: str


class Teller:
    """Knows the configured rules: their kinds and labels say what an alert is about."""

    def __init__(self, rules: Sequence[RuleSettings]) -> None:
        self._kinds: Mapping[str, str] = {rule.name: str(getattr(rule, "kind", "")) for rule in rules}
        self._labels = {rule.name: rule.labels for rule in rules}

    def show(self, alert: Alert, snapshot: Snapshot, silences: Sequence[Silence], now_ms: int) -> Shown:
        """Put an alert into words.

        Args:
            now_ms: of the wall clock, which is what silences go by.
        """
        kind = words.kind_of(alert, self._kinds)
        until_ms = alert.resolved_ms or max(snapshot.high_ms, alert.since_ms)
        facts = {"stream": alert.stream, "rule": alert.rule, "labels": self._labels.get(alert.rule, {})}
        silence = next((s for s in silences if s.active(now_ms) and s.matches(facts)), None)
        return Shown(
            alert,
            kind,
            words.state(alert, kind),
            words.how_bad(alert) if kind in words.DRIFT else "",
            words.duration(until_ms - alert.since_ms),
            silence,
        )

    def troubles(self, snapshot: Snapshot, silences: Sequence[Silence], now_ms: int) -> list[Trouble]:
        """Every stream with an alert under way: firing before pending, the worst first, silenced ones last."""
        held: dict[str, list[Shown]] = {}
        for alert in snapshot.alerts:
            if alert.phase in UNDER_WAY:
                held.setdefault(alert.stream, []).append(self.show(alert, snapshot, silences, now_ms))
        found = [Trouble(stream, sorted(shown, key=_rank)) for stream, shown in held.items()]
        return sorted(found, key=lambda trouble: (*_rank(trouble.first), trouble.stream))


def own_troubles(snapshot: Snapshot) -> list[OwnTrouble]:
    """What the monitor says of itself; a document that cannot be read is left out."""
    found = []
    for text in snapshot.own.values():
        try:
            facts = json.loads(text)["data"]
            found.append(OwnTrouble(facts["stream"], facts["rule"], facts["since"], facts["summary"]))
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda own: (own.since, own.rule, own.subject))


def _rank(shown: Shown) -> tuple[bool, bool, float, int]:
    severity = shown.alert.verdict.severity if shown.alert.verdict else None
    return shown.silence is not None, not shown.firing, -(severity[1] if severity else 0.0), shown.alert.since_ms
