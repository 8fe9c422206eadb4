"""The alert about a receiver that does not get its alerts, sent to the others. Pure."""

from __future__ import annotations

import json

from monitor.core.alert_document import About, alert_document, rfc3339
from monitor.core.alert_state import Transition, alert_id
from monitor.core.types import Alert, AlertPhase, Verdict
from monitor.notify.receivers.notice import RESOLVED

DELIVERY_RULE = "layerwatch-delivery"
"""No configured rule should have this name; `stream` of its alerts is the receiver's."""


def failing_document(monitor: str, receiver: str, entry_ms: int, now_ms: int, tries: int, reason: str) -> str:
    """Says that a document was given up. The same entry (`entry_ms`: when it was written) gives the same alert id."""
    name = alert_id(monitor, DELIVERY_RULE, receiver, entry_ms)
    summary = f"receiver {receiver} does not get its alerts: one was given up after {tries} tries"
    verdict = Verdict(True, float(tries), 0.0, 0.0, 0, summary, cause=reason)
    alert = Alert(DELIVERY_RULE, receiver, AlertPhase.FIRING, name, since_ms=entry_ms, fired_ms=now_ms, verdict=verdict)
    change = Transition(name, DELIVERY_RULE, receiver, AlertPhase.INACTIVE, AlertPhase.FIRING, now_ms)
    return alert_document(About(monitor, DELIVERY_RULE, "delivery", {"severity": "error"}), change, alert)


def recovered_document(firing: str, now_ms: int, summary: str = "") -> str:
    """The end of the alert that `failing_document` gave; or of another one, whose end `summary` tells."""
    document = json.loads(firing)
    fields = document["data"]
    at = rfc3339(now_ms)
    fields.update(
        phase=str(AlertPhase.RESOLVED),
        resolved_at=at,
        summary=summary or f"receiver {fields['stream']} gets its alerts again, or is no longer configured",
    )
    document.update(type=RESOLVED, id=f"{fields['alert_id']}-{AlertPhase.RESOLVED}", timestamp=at, data=fields)
    return json.dumps(document, ensure_ascii=False)
