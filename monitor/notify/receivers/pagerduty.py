"""PagerDuty, Events API v2: one incident per alert, opened, acknowledged and closed by its id."""

from __future__ import annotations

import json
from typing import Any

from monitor.notify.receivers.http_client import GONE, Endpoint
from monitor.notify.receivers.notice import RESOLVED, TEST, Notice, parse_notice
from monitor.notify.receivers.protocol import Outcome
from monitor.notify.receivers.settings import PagerDutySettings

FINAL = frozenset({400, GONE})
"""400: the event or the key is wrong, and the service says that it must not be sent again."""
SUMMARY_CHARS = 1024
SEVERITIES = {
    "page": "critical",
    "critical": "critical",
    "error": "error",
    "ticket": "warning",
    "warning": "warning",
    "info": "info",
}
"""The rule's label `severity` in PagerDuty's words; any other is an error, its default."""
DETAILS = ("cause", "value", "bound", "threshold", "images", "severity", "triage", "labels", "since", "exemplars")


class PagerDutySender:
    """Triggers with `dedup_key` = alert id, acknowledges and resolves by it; a repeated event changes nothing.

    Raises:
        ReceiverConfigError: the URL cannot be used.
    """

    def __init__(self, settings: PagerDutySettings) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        self._routing_key = settings.routing_key.get_secret_value()
        key = f"receivers.{settings.name}.url"
        self._endpoint = Endpoint(key, settings.url, settings.timeout_s, final=FINAL, explain=True)

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once."""
        del attempt
        return self._post(_event(parse_notice(document)))

    def acknowledge(self, document: str) -> Outcome:
        """Say that somebody knows of it: nobody is called any more."""
        return self._post({"event_action": "acknowledge", "dedup_key": parse_notice(document).alert_id})

    def close(self) -> None:
        """Free the connections."""
        self._endpoint.close()

    def _post(self, event: dict[str, Any]) -> Outcome:
        return self._endpoint.post(json.dumps({"routing_key": self._routing_key, **event}))


def _event(notice: Notice) -> dict[str, Any]:
    if notice.type == RESOLVED:
        return {"event_action": "resolve", "dedup_key": notice.alert_id}
    fields = notice.fields
    severity = "info" if notice.type == TEST else SEVERITIES.get(notice.labels.get("severity", ""), "error")
    links = [{"href": notice.link(name), "text": name} for name in ("status", "dashboard") if notice.link(name)]
    return {
        "event_action": "trigger",
        "dedup_key": notice.alert_id,
        "client": "layerwatch",
        **({"client_url": notice.link("status")} if notice.link("status") else {}),
        "links": links,
        "payload": {
            "summary": f"{notice.title}: {fields['summary']}"[:SUMMARY_CHARS],
            "source": notice.stream,
            "severity": severity,
            "timestamp": notice.timestamp,
            "component": notice.rule,
            "group": fields["monitor"],
            "class": fields["kind"],
            "custom_details": {name: fields[name] for name in DETAILS},
        },
    }
