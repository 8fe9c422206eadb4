"""Answers of people about alerts, under the monitor's own tag: a hash for each alert, and the list of those alerts."""

from __future__ import annotations

from monitor.store.connection import SCRIPTS
from monitor.store.keyspace import MonitorKeys

FEEDBACK_TTL_S = 730 * 86_400
"""An alert's answers are removed two years after the last one: long after the alert, and after its images."""


class FeedbackStore:
    """Adds answers and reads them; none is changed. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._keys = keys
        self._alerts = keys.texts("feedback")

    def add(self, alert_id: str, answer_id: str, text: str) -> None:
        """Keep one answer about an alert, or about an image of it."""
        self._run(alert_id, answer_id, text)

    def of(self, alert_id: str) -> list[str]:
        """All answers about an alert and its images."""
        return list(self._keys.texts("feedback", alert_id).all().values())

    def all(self) -> list[str]:
        """All answers about all alerts; alerts whose answers have expired leave the list."""
        found: list[str] = []
        for alert_id in sorted(self._alerts.names()):
            answers = self.of(alert_id)
            found += answers
            if not answers:
                self._run(alert_id)
        return found

    def _run(self, alert_id: str, *answer: str) -> None:
        """Answers and list change together: an answer that no list names would never be exported."""
        keys = [self._keys.key("feedback", alert_id), self._keys.key("feedback")]
        self._keys.connection.run(SCRIPTS["answer"], keys, FEEDBACK_TTL_S, alert_id, *answer)
