"""Alerts about the monitor itself: one per trouble and episode, told to the receivers like any other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import structlog

from monitor.core.alert_document import About, alert_document
from monitor.core.alert_state import Transition, alert_id
from monitor.core.types import Alert, AlertPhase, Verdict
from monitor.notify.delivery.delivery_alert import recovered_document
from monitor.store import Store, StoreError

log = structlog.get_logger(__name__)

GAP = "layerwatch-gap"
"""Retention removed records that nobody had read."""
UNREADABLE = "layerwatch-unreadable"
"""The log held bytes that no client can read."""
DEAD_LETTERS = "layerwatch-dead-letters"
"""Too many records are bad, or the dead-letter topic cannot be written."""
VERDICTS = "layerwatch-verdicts"
"""The sink of per-image verdicts cannot be written."""
TOPIC = "layerwatch-topic"
"""The topic was deleted, created again or cut off, or we may not read it any more."""

STREAMS = "layerwatch-streams"
"""More streams than `stream.max_streams`: those beyond are counted together."""


class SelfAlerts:
    """Tells of troubles, and of their end; a trouble that is known already is not told again.

    Args:
        has_receivers: whether there are receivers; without any nothing goes to the outbox.
    """

    def __init__(self, store: Store, monitor: str, has_receivers: bool) -> None:
        self._store, self._monitor, self._has_receivers = store, monitor, has_receivers

    def tell(self, rule: str, subject: str, now_ms: int, summary: str) -> None:
        """An episode of `rule` about `subject` (a partition, a topic) has begun, or goes on.

        Raises:
            StoreError: it is not told; call again.
        """
        log.error("own.alert", rule=rule, subject=subject, summary=summary)
        if self._has_receivers:
            self._store.outbox.raise_self_alert(
                _name(rule, subject), own_document(self._monitor, rule, subject, now_ms, summary)
            )

    def tell_if_possible(self, rule: str, subject: str, now_ms: int, summary: str) -> None:
        """As `tell`; while Redis is away the log alone has it."""
        try:
            self.tell(rule, subject, now_ms, summary)
        except StoreError as error:
            log.warning("own.not_told", rule=rule, subject=subject, error=str(error))

    def end(self, now_ms: int, subjects: Iterable[str], *rules: str) -> None:
        """What these rules told about the subjects is over.

        Raises:
            StoreError: call again.
        """
        if not self._has_receivers:
            return
        opened = self._store.outbox.self_alerts()
        for subject, rule in product(subjects, rules) if opened else ():
            if document := opened.get(_name(rule, subject)):
                ended = recovered_document(document, now_ms, f"{subject}: over")
                self._store.outbox.end_self_alert(_name(rule, subject), document, ended)


def own_document(monitor: str, rule: str, subject: str, now_ms: int, summary: str) -> str:
    """The firing document; `subject` stands where other alerts name their stream."""
    name = alert_id(monitor, rule, subject, now_ms)
    verdict = Verdict(True, 0.0, 0.0, 0.0, 0, summary, cause=summary)
    alert = Alert(rule, subject, AlertPhase.FIRING, name, since_ms=now_ms, fired_ms=now_ms, verdict=verdict)
    change = Transition(name, rule, subject, AlertPhase.INACTIVE, AlertPhase.FIRING, now_ms)
    return alert_document(About(monitor, rule, "monitor", {"severity": "error"}), change, alert)


def _name(rule: str, subject: str) -> str:
    return f"{rule} {subject}"
