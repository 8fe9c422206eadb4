"""Prometheus Alertmanager, API v2: posted to every instance, again and again while it fires."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import structlog
from pydantic import BeforeValidator, Field, PositiveFloat

from monitor.core.alert_document import rfc3339
from monitor.core.settings import Secret, split_commas
from monitor.notify.receivers.http_client import GONE, Endpoint
from monitor.notify.receivers.notice import RESOLVED, Notice, time_ms
from monitor.notify.receivers.protocol import (
    Delivered,
    OpenProducer,
    Outcome,
    Receiver,
    ReceiverSettings,
    Resending,
    Retry,
)
from monitor.telemetry.clock import SteadyClock, wall_ms

log = structlog.get_logger(__name__)

FINAL = frozenset({400, GONE})
MISSED_RESENDS = 4
"""An alert ends when so many re-sends in a row are missing, as with Prometheus: a restart of ours does not resolve it,
and one that is never sent again does not stay for ever."""


class AlertmanagerSettings(ReceiverSettings):
    type: Literal["alertmanager"]
    urls: Annotated[tuple[Secret, ...], BeforeValidator(split_commas), Field(min_length=1)]
    """Every instance of the cluster: they deduplicate among themselves."""
    resend_s: PositiveFloat = 60.0
    username: str | None = None
    password: Secret | None = None
    bearer_token: Secret | None = None

    def build(self, _: OpenProducer, /) -> Receiver:
        return AlertmanagerSender(self)


class AlertmanagerSender(Resending):
    """Keeps alerts alive in Alertmanager and resolves them.

    Instances of a cluster share silences and notifications but not alerts, so each gets all. A document is delivered
    when one instance has taken it; an instance that was away gets the alert with the next re-send, and ends by itself
    what it did not see resolved.
    """

    def __init__(self, settings: AlertmanagerSettings, now_ms: Callable[[], int] = wall_ms) -> None:
        super().__init__(settings)
        self.resend_s = settings.resend_s
        self._now_ms, self._steady_ms = now_ms, SteadyClock(now_ms)
        self._endpoints = [
            Endpoint(
                settings,
                f"{url.get_secret_value().rstrip('/')}/api/v2/alerts",
                key="urls",
                headers=_authorization(settings),
                final=FINAL,
                explain=True,
            )
            for url in settings.urls
        ]

    def send(self, notice: Notice) -> Outcome:
        return self._post([notice])

    def resend(self, notices: Sequence[Notice]) -> Outcome:
        return self._post(notices)

    def close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()

    def _post(self, notices: Sequence[Notice]) -> Outcome:
        now_ms = self._now_ms()
        body = json.dumps([self._alert(notice, now_ms) for notice in notices])
        outcomes = [endpoint.post(body) for endpoint in self._endpoints]
        failed = [outcome for outcome in outcomes if not isinstance(outcome, Delivered)]
        if len(failed) == len(outcomes):
            # an instance that may take it later is worth another try
            return next((outcome for outcome in failed if isinstance(outcome, Retry)), failed[0])
        for outcome in failed:
            log.warning("notify.alertmanager_instance_failed", receiver=self.name, reason=outcome.reason)
        return Delivered()

    def _alert(self, notice: Notice, now_ms: int) -> dict[str, Any]:
        # event time may run a little ahead of the clock, and Alertmanager refuses an end before the start
        # the later clock: one that was set back must not end the alert, nor one that was wrong when the process began
        ends_ms = max(now_ms, self._steady_ms()) + round(1000 * MISSED_RESENDS * self.resend_s)
        if notice.type == RESOLVED:
            ends_ms = min(time_ms(notice.data["resolved_at"]), now_ms)
        starts_ms = min(time_ms(notice.data["fired_at"] or notice.since), ends_ms, now_ms)
        annotations = {
            "summary": notice.summary,
            "cause": notice.cause,
            "condition": notice.data.get("condition", ""),
            "share": notice.share,
            "alert_id": notice.alert_id,
            **notice.links,
        }
        return {
            "labels": _labels(notice),
            "annotations": {name: text for name, text in annotations.items() if text},
            "startsAt": rfc3339(starts_ms),
            "endsAt": rfc3339(ends_ms),
            **({"generatorURL": notice.links["status"]} if "status" in notice.links else {}),
        }


def _labels(notice: Notice) -> dict[str, str]:
    """The rule's labels under names that Prometheus allows, then those that identify the alert."""
    configured = {re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", name): value for name, value in notice.labels.items() if value}
    ours = {"monitor": notice.monitor, "rule": notice.rule, "stream": notice.stream}
    return {"alertname": notice.rule, **configured, **ours}


def _authorization(settings: AlertmanagerSettings) -> dict[str, str]:
    if settings.bearer_token:
        return {"authorization": f"Bearer {settings.bearer_token.get_secret_value()}"}
    if settings.username is not None:
        password = settings.password.get_secret_value() if settings.password else ""
        coded = base64.b64encode(f"{settings.username}:{password}".encode()).decode()
        return {"authorization": f"Basic {coded}"}
    return {}
