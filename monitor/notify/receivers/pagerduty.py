"""PagerDuty, Events API v2: one incident per alert, opened, acknowledged and closed by its id."""

from __future__ import annotations

import json
from typing import Any, Literal

from monitor.core.settings import Secret
from monitor.notify.receivers.http_client import GONE, Endpoint
from monitor.notify.receivers.notice import RESOLVED, TEST, Notice
from monitor.notify.receivers.protocol import Acknowledging, OpenProducer, Outcome, Receiver, ReceiverSettings

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
"""From the rule's label `severity` to PagerDuty's; any other is `error`, its default."""
DETAILS = ("cause", "value", "bound", "threshold", "images", "severity", "triage", "labels", "since", "exemplars")


class PagerDutySettings(ReceiverSettings):
    type: Literal["pagerduty"]
    routing_key: Secret
    url: str = "https://events.pagerduty.com/v2/enqueue"

    def build(self, _: OpenProducer, /) -> Receiver:
        return PagerDutySender(self)


class PagerDutySender(Acknowledging):
    """Triggers with `dedup_key` = alert id, acknowledges and resolves by it; a repeated event changes nothing."""

    def __init__(self, settings: PagerDutySettings) -> None:
        super().__init__(settings)
        self._routing_key = settings.routing_key.get_secret_value()
        self._endpoint = Endpoint(settings, settings.url, final=FINAL, explain=True)

    def send(self, notice: Notice) -> Outcome:
        return self._post(_event(notice))

    def acknowledge(self, notice: Notice) -> Outcome:
        return self._post({"event_action": "acknowledge", "dedup_key": notice.alert_id})

    def close(self) -> None:
        self._endpoint.close()

    def _post(self, event: dict[str, Any]) -> Outcome:
        return self._endpoint.post(json.dumps({"routing_key": self._routing_key, **event}))


def _event(notice: Notice) -> dict[str, Any]:
    if notice.type == RESOLVED:
        return {"event_action": "resolve", "dedup_key": notice.alert_id}
    severity = "info" if notice.type == TEST else SEVERITIES.get(notice.labels.get("severity", ""), "error")
    return {
        "event_action": "trigger",
        "dedup_key": notice.alert_id,
        "client": "layerwatch",
        **({"client_url": notice.links["status"]} if "status" in notice.links else {}),
        "links": [{"href": url, "text": name} for name, url in notice.links.items()],
        "payload": {
            "summary": f"{notice.title}: {notice.summary}"[:SUMMARY_CHARS],
            "source": notice.stream,
            "severity": severity,
            "timestamp": notice.timestamp,
            "component": notice.rule,
            "group": notice.monitor,
            "class": notice.data["kind"],
            "custom_details": {name: notice.data[name] for name in DETAILS},
        },
    }
