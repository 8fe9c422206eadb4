"""Alerts about the monitor itself, in the same documents and for the same receivers as those of rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import product

import structlog

from monitor.core.alert_document import About, alert_document, rfc3339
from monitor.core.alert_state import alert_id
from monitor.core.types import Alert, AlertPhase, Verdict
from monitor.notify.receivers.notice import RESOLVED
from monitor.store import Store, StoreError
from monitor.telemetry.clock import wall_ms

log = structlog.get_logger(__name__)

GAP = "layerwatch-gap"
"""Retention removed records that were never read."""
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
UNREAD = "layerwatch-unread"
"""Nobody reads some partitions of a topic; buckets close without them."""
CLOSING = "layerwatch-closing"
"""Images are counted, but no bucket closes: nothing is judged."""
PROFILE = "layerwatch-profile"
"""The active version of a profile cannot be taken up; the one before goes on."""
RENEWAL = "layerwatch-renewal"
"""A renewal of a profile was refused or failed, or its candidate waits for a person."""
DELIVERY = "layerwatch-delivery"
"""A receiver does not get its alerts; goes to the other receivers."""
RECEIVER = "layerwatch-receiver"
"""Alerts wait for a receiver that the configuration does not name (any more)."""

LABELS = {"severity": "error"}


class SelfAlerts:
    """Opens and ends alerts about the monitor, one per rule and subject at a time.

    Args:
        has_receivers: without receivers nothing goes to the outbox.
    """

    def __init__(self, store: Store, monitor: str, has_receivers: bool, now_ms: Callable[[], int] = wall_ms) -> None:
        self._store, self._monitor, self._has_receivers, self._now_ms = store, monitor, has_receivers, now_ms

    def raise_alert(self, rule: str, subject: str, summary: str, status_url: str = "") -> None:
        """Open the alert of `rule` about `subject` (a partition, a topic); does nothing while it is open.

        `status_url` is of the page that says more, if any.

        Raises:
            StoreError: it was not opened; call again.
        """
        log.error("own.alert", rule=rule, subject=subject, summary=summary)
        if self._has_receivers:
            now_ms = self._now_ms()
            verdict = Verdict(True, 0.0, 0.0, 0.0, 0, summary, cause=summary)
            about = About(self._monitor, rule, "monitor", LABELS, status_url)
            document = _firing_document(about, subject, verdict, now_ms, now_ms)
            self._store.outbox.raise_self_alert(_name(rule, subject), document)

    def try_to_raise(self, rule: str, subject: str, summary: str) -> None:
        """As `raise_alert`; while Redis is away only the log has it."""
        try:
            self.raise_alert(rule, subject, summary)
        except StoreError as error:
            log.warning("own.not_told", rule=rule, subject=subject, error=str(error))

    def is_open(self, rule: str, subject: str) -> bool:
        """Whether Redis has the alert, once it was raised; always without receivers, where the log alone has it.

        Raises:
            StoreError: Redis does not answer.
        """
        return not self._has_receivers or _name(rule, subject) in self._store.outbox.self_alerts()

    def end(self, subjects: Iterable[str], *rules: str, why: str = "over") -> None:
        """Resolve the open alerts of these rules about these subjects; `why` is for people.

        Raises:
            StoreError: call again.
        """
        if not self._has_receivers:
            return
        opened = self._store.outbox.self_alerts()
        for subject, rule in product(subjects, rules) if opened else ():
            name = _name(rule, subject)
            if document := opened.get(name):
                resolved = _resolved_document(document, self._now_ms(), f"{subject}: {why}")
                self._store.outbox.end_self_alert(name, document, resolved)


def delivery_alert(monitor: str, receiver: str, entry_ms: int, now_ms: int, tries: int, reason: str) -> str:
    """The document that says that one for `receiver` was given up.

    Args:
        entry_ms: when the given-up document was written to the outbox; the same gives the same alert id.
    """
    summary = f"receiver {receiver} does not get its alerts: one was given up after {tries} tries"
    verdict = Verdict(True, float(tries), 0.0, 0.0, 0, summary, cause=reason)
    return _firing_document(About(monitor, DELIVERY, "delivery", LABELS), receiver, verdict, entry_ms, now_ms)


def delivery_alert_end(opened: str, receiver: str, now_ms: int) -> str:
    """The document that ends the alert which `delivery_alert` gave."""
    return _resolved_document(opened, now_ms, f"receiver {receiver} gets its alerts again, or is no longer configured")


def _firing_document(about: About, subject: str, verdict: Verdict, since_ms: int, now_ms: int) -> str:
    """`subject` stands where the alerts of rules name their stream."""
    name = alert_id(about.monitor, about.rule, subject, since_ms)
    alert = Alert(about.rule, subject, AlertPhase.FIRING, name, since_ms=since_ms, fired_ms=now_ms, verdict=verdict)
    return alert_document(about, alert)


def _resolved_document(firing: str, now_ms: int, summary: str) -> str:
    document = json.loads(firing)
    at = rfc3339(now_ms)
    document["data"].update(phase=str(AlertPhase.RESOLVED), resolved_at=at, summary=summary)
    document.update(type=RESOLVED, id=f"{document['data']['alert_id']}-{AlertPhase.RESOLVED}", timestamp=at)
    return json.dumps(document, ensure_ascii=False)


def _name(rule: str, subject: str) -> str:
    return f"{rule} {subject}"
