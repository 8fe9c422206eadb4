"""Whether the demo showed what it promises: judges the alerts that arrived, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from monitor.demo.story import CALM_S, DRIFT_S, INJECTED, WINDOW_S


@dataclass(slots=True)
class Episode:
    """One alert from firing to resolved, in seconds of the story."""

    rule: str
    stream: str
    since_s: float
    fired_s: float | None = None
    resolved_s: float | None = None

    @property
    def rightful(self) -> bool:
        """It began on a stream that drifts, while the drift lasted or one window after it."""
        return self.stream in INJECTED and CALM_S <= self.since_s < CALM_S + DRIFT_S + WINDOW_S


@dataclass(slots=True)
class AlertLedger:
    """Records the alerts that arrived and says which are missing and which are false.

    Args:
        rules: names of the rules that must alert on each injected drift.
        start_ms: event time at which the story began.
    """

    rules: tuple[str, ...]
    start_ms: int
    episodes: dict[str, Episode] = field(default_factory=dict)

    def note(self, document: Mapping[str, Any]) -> None:
        """Enter one alert document (parsed); the same one twice changes nothing."""
        facts = document["data"]
        episode = self.episodes.setdefault(
            facts["alert_id"], Episode(facts["rule"], facts["stream"], self._story_s(facts["since"]))
        )
        if document["type"] == "alert.firing":
            episode.fired_s = self._story_s(document["timestamp"])
        elif document["type"] == "alert.resolved":
            episode.resolved_s = self._story_s(document["timestamp"])

    def complete(self) -> bool:
        """Every expected alert has fired, and all that fired have resolved."""
        seen = {(e.rule, e.stream) for e in self.rightful()}
        return seen >= set(self._expected()) and all(e.resolved_s is not None for e in self.episodes.values())

    def rightful(self) -> list[Episode]:
        """Episodes that fired on a stream that drifted, begun while it did."""
        return [e for e in self.episodes.values() if e.rightful and e.fired_s is not None]

    def problems(self) -> list[str]:
        """Alerts that are missing or false, one line each; empty when all went as it should."""
        lines: list[str] = []
        for rule, stream in self._expected():
            fired = [e for e in self.rightful() if (e.rule, e.stream) == (rule, stream)]
            if not fired:
                lines.append(f"missing: {rule} did not alert on {stream} ({INJECTED[stream]})")
            lines += [f"missing: {rule} on {stream} did not resolve" for e in fired if e.resolved_s is None]
        false = [e for e in self.episodes.values() if not e.rightful]
        return lines + [f"false alarm: {e.rule} on {e.stream} at {e.since_s:.0f} s" for e in false]

    def _expected(self) -> list[tuple[str, str]]:
        return [(rule, stream) for stream in INJECTED for rule in self.rules]

    def _story_s(self, rfc3339: str) -> float:
        return datetime.fromisoformat(rfc3339).timestamp() - self.start_ms / 1000
