"""Whether the demo showed what it promises: pure judgement of the alerts that arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from monitor.demo.story import CALM_S, DRIFT_S, INJECTED

WINDOW_S = 60
"""The longest window of the demo's rules: for that long after the drift an alert may still begin by right."""


@dataclass(slots=True)
class Episode:
    """One alert from firing to resolved, in seconds of the story."""

    rule: str
    stream: str
    since_s: float
    fired_s: float | None = None
    resolved_s: float | None = None


@dataclass(slots=True)
class Ledger:
    """Keeps what arrived and says what is missing.

    Args:
        rules: names of the rules that must see each injected drift.
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

    def expected(self) -> list[tuple[str, str]]:
        """(rule, stream) of every alert that has to come."""
        return [(rule, stream) for stream in INJECTED for rule in self.rules]

    def complete(self) -> bool:
        """Every expected alert has fired, and all that fired have resolved."""
        seen = {(e.rule, e.stream) for e in self.rightful()}
        return seen >= set(self.expected()) and all(e.resolved_s is not None for e in self.episodes.values())

    def rightful(self) -> list[Episode]:
        """Episodes on a stream that drifted, begun while it did."""
        return [e for e in self.episodes.values() if self._is_rightful(e) and e.fired_s is not None]

    def problems(self) -> list[str]:
        """What was missing or should not have been, one line each; empty when all went as it should."""
        lines: list[str] = []
        for rule, stream in self.expected():
            mine = [e for e in self.rightful() if (e.rule, e.stream) == (rule, stream)]
            if not mine:
                lines.append(f"missing: {rule} did not alert on {stream} ({INJECTED[stream]})")
            lines += [f"missing: {rule} on {stream} did not resolve" for e in mine if e.resolved_s is None]
        for episode in self.episodes.values():
            if not self._is_rightful(episode):
                lines.append(f"false alarm: {episode.rule} on {episode.stream} at {episode.since_s:.0f} s")
        return lines

    def _is_rightful(self, episode: Episode) -> bool:
        return episode.stream in INJECTED and CALM_S <= episode.since_s < CALM_S + DRIFT_S + WINDOW_S

    def _story_s(self, rfc3339: str) -> float:
        return datetime.fromisoformat(rfc3339).timestamp() - self.start_ms / 1000
