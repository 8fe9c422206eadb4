"""Prometheus Alertmanager, API v2: posted to every instance, again and again while it fires."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from monitor.core.alert_document import rfc3339
from monitor.notify.receivers.http_client import GONE, Endpoint, wall_ms
from monitor.notify.receivers.notice import RESOLVED, Notice, parse_notice, time_ms
from monitor.notify.receivers.protocol import Delivered, Outcome, Retry
from monitor.notify.receivers.settings import AlertmanagerSettings

log = structlog.get_logger(__name__)

MISSED_RESENDS = 4
"""An alert ends when so many re-sends in a row are missing, as with Prometheus: a restart of ours does not resolve it,
and one that nobody speaks for any more does not stay for ever."""
ALERTS_PER_POST = 200
BAD_REQUEST = 400


class AlertmanagerSender:
    """Keeps alerts alive in Alertmanager and resolves them.

    Instances of a cluster share silences and notifications but not alerts, so each gets all. It is delivered when one
    has taken it; an instance that was away hears of it at the next re-send, and ends what it did not hear resolved.

    Raises:
        ReceiverConfigError: a URL or header cannot be used.
    """

    def __init__(self, settings: AlertmanagerSettings, now_ms: Callable[[], int] = wall_ms) -> None:
        self.name = settings.name
        self.send_resolved = settings.send_resolved
        self.resend_s = settings.resend_s
        self._now_ms = now_ms
        self._endpoints = [
            Endpoint(
                f"receivers.{settings.name}.urls",
                f"{url.rstrip('/')}/api/v2/alerts",
                settings.timeout_s,
                _authorization(settings),
                final=frozenset({BAD_REQUEST, GONE}),
                explain=True,
            )
            for url in settings.urls
        ]

    def send(self, document: str, attempt: int) -> Outcome:
        """Try once at every instance."""
        del attempt
        return self._post([document])

    def resend(self, documents: Sequence[str]) -> Outcome:
        """Say that these still fire."""
        parts = [documents[i : i + ALERTS_PER_POST] for i in range(0, len(documents), ALERTS_PER_POST)]
        outcomes = [self._post(part) for part in parts]
        return next((outcome for outcome in outcomes if not isinstance(outcome, Delivered)), Delivered())

    def close(self) -> None:
        """Free the connections."""
        for endpoint in self._endpoints:
            endpoint.close()

    def _post(self, documents: Sequence[str]) -> Outcome:
        now_ms = self._now_ms()
        body = json.dumps([self._alert(parse_notice(document), now_ms) for document in documents])
        outcomes = [endpoint.post(body) for endpoint in self._endpoints]
        failed = [outcome for outcome in outcomes if not isinstance(outcome, Delivered)]
        if len(failed) == len(outcomes):
            # one that may take it later is worth waiting for
            return next((outcome for outcome in failed if isinstance(outcome, Retry)), failed[0])
        for outcome in failed:
            log.warning("notify.alertmanager_instance_failed", receiver=self.name, reason=outcome.reason)
        return Delivered()

    def _alert(self, notice: Notice, now_ms: int) -> dict[str, Any]:
        fields = notice.fields
        # event time may run a little ahead of the clock, and Alertmanager refuses an end before the start
        ends_ms = now_ms + round(1000 * MISSED_RESENDS * self.resend_s)
        if notice.type == RESOLVED:
            ends_ms = min(time_ms(fields["resolved_at"]), now_ms)
        starts_ms = min(time_ms(fields["fired_at"] or fields["since"]), ends_ms, now_ms)
        annotations = {
            "summary": fields["summary"],
            "cause": fields["cause"],
            "severity": notice.share,
            "alert_id": notice.alert_id,
            "status": notice.link("status"),
            "dashboard": notice.link("dashboard"),
        }
        return {
            "labels": _labels(notice),
            "annotations": {name: text for name, text in annotations.items() if text},
            "startsAt": rfc3339(starts_ms),
            "endsAt": rfc3339(ends_ms),
            **({"generatorURL": notice.link("status")} if notice.link("status") else {}),
        }


def _labels(notice: Notice) -> dict[str, str]:
    """The rule's labels under names that Prometheus allows, then ours: what makes the alert one of its own."""
    configured = {re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", name): value for name, value in notice.labels.items() if value}
    ours = {"monitor": str(notice.fields["monitor"]), "rule": notice.rule, "stream": notice.stream}
    return {"alertname": notice.rule, **configured, **ours}


def _authorization(settings: AlertmanagerSettings) -> dict[str, str]:
    if settings.bearer_token:
        return {"authorization": f"Bearer {settings.bearer_token.get_secret_value()}"}
    if settings.username is not None:
        password = settings.password.get_secret_value() if settings.password else ""
        coded = base64.b64encode(f"{settings.username}:{password}".encode()).decode()
        return {"authorization": f"Basic {coded}"}
    return {}
