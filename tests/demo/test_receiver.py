"""The demo's receiver over real HTTP, fed by the sender that the daemon uses."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from monitor.demo.receiver import MAX_BODY_BYTES, AlertReceiver
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.webhook import WebhookSender, WebhookSettings
from tests.demo.documents import episode


@pytest.fixture
def receiver() -> Iterator[AlertReceiver]:
    with AlertReceiver() as running:
        yield running


def deliver(receiver: AlertReceiver, secret: str, times: int = 1) -> None:
    settings = WebhookSettings(name="demo", type="webhook", url=SecretStr(receiver.url), secret=SecretStr(secret))
    sender = WebhookSender(settings)
    notice = Notice.parse(json.dumps(episode("line-2", 130)[0]))
    for _ in range(times):
        sender.send(notice)
    sender.close()


def test_a_signed_alert_arrives_as_it_was_sent(receiver: AlertReceiver) -> None:
    deliver(receiver, receiver.secret)
    assert receiver.alerts.popleft() == episode("line-2", 130)[0]
    assert receiver.refused == 0


def test_an_alert_delivered_twice_is_taken_once(receiver: AlertReceiver) -> None:
    deliver(receiver, receiver.secret, times=2)
    assert len(receiver.alerts) == 1
    assert receiver.refused == 0


def test_another_secret_is_refused_and_counted(receiver: AlertReceiver) -> None:
    with AlertReceiver() as other:
        deliver(receiver, other.secret)
    assert not receiver.alerts
    assert receiver.refused == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"webhook-id": "a", "webhook-timestamp": "0", "webhook-signature": "v1,AAAA"},
        {"webhook-id": "a", "webhook-timestamp": "x", "webhook-signature": "v1,AAAA"},
        {"webhook-id": "a", "webhook-timestamp": "0", "webhook-signature": "nonsense"},
    ],
)
def test_what_is_not_signed_well_is_answered_401(receiver: AlertReceiver, headers: dict[str, str]) -> None:
    answer = httpx.post(receiver.url, content=b"{}", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert not receiver.alerts


@pytest.mark.parametrize(("length", "status"), [(str(MAX_BODY_BYTES + 1), 413), ("many", 411), ("-1", 411)])
def test_a_body_too_long_or_of_no_length_is_not_read(receiver: AlertReceiver, length: str, status: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(receiver.url).netloc, timeout=10)
    connection.putrequest("POST", "/alerts")
    connection.putheader("content-length", length)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()
