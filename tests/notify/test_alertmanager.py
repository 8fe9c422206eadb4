"""A real Alertmanager: an alert fires, is grouped, outlives the time-out while it fires, and resolves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.core.types import AlertPhase
from monitor.notify.delivery.context import DeliveryContext, Timing
from monitor.notify.delivery.dispatcher import Dispatcher
from monitor.notify.receivers.alertmanager import AlertmanagerSettings
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.protocol import Delivered, Resending
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.alertmanager import BINARY, Alertmanager
from tests.notify.parts import Server, decide, eventually, firing

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no Alertmanager (apt-get install -y --no-install-recommends prometheus-alertmanager)"
)
RESEND_S = 0.5
LIFE_S = 4 * RESEND_S
"""How long an alert lives without being sent again."""


@pytest.fixture
def hook() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def alertmanager(tmp_path: Path, hook: Server) -> Iterator[Alertmanager]:
    route = {
        "receiver": "hook",
        "group_by": ["rule"],
        "group_wait": "300ms",
        "group_interval": "300ms",
        "repeat_interval": "1h",
    }
    webhook = {"name": "hook", "webhook_configs": [{"url": hook.url, "send_resolved": True}]}
    # its own time-out is as long as an alert's life: one that is not sent again must end
    settings = {"global": {"resolve_timeout": "2s"}, "route": route, "receivers": [webhook]}
    with Alertmanager(tmp_path, settings) as running:
        yield running


def notified(hook: Server, status: str) -> list[str]:
    """Streams of the alerts that Alertmanager has notified with that status, repeats left out."""
    alerts = [alert for request in hook.requests for alert in request.json["alerts"]]
    return sorted({alert["labels"]["stream"] for alert in alerts if alert["status"] == status})


@pytest.fixture
def receiver(alertmanager: Alertmanager) -> Iterator[Resending]:
    settings = AlertmanagerSettings(
        name="am", type="alertmanager", urls=(SecretStr(alertmanager.url),), resend_s=RESEND_S
    )
    built = settings.build(_no_producer)
    assert isinstance(built, Resending)
    yield built
    built.close()


def _no_producer() -> Any:
    raise AssertionError("Alertmanager needs no producer")


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), "real-alertmanager")
    yield opened
    opened.close()


@pytest.mark.slow
def test_an_alert_fires_is_grouped_stays_while_it_fires_and_resolves(
    alertmanager: Alertmanager, hook: Server, receiver: Resending, store: Store
) -> None:
    dispatcher = Dispatcher(DeliveryContext(store, "layerwatch", timing=Timing(poll_s=0.05)), [receiver])
    dispatcher.start()
    try:
        decide(store, "cam-1")
        decide(store, "cam-2")
        eventually(lambda: notified(hook, "firing") == ["cam-1", "cam-2"])
        (group,) = alertmanager.get("alerts/groups")
        assert group["labels"] == {"rule": "drift"}
        assert [alert["labels"]["monitor"] for alert in group["alerts"]] == ["layerwatch"] * 2
        deadline = time.monotonic() + 2 * LIFE_S
        while time.monotonic() < deadline:
            assert alertmanager.active() == ["cam-1", "cam-2"]
            time.sleep(0.1)
        assert notified(hook, "resolved") == []
        decide(store, "cam-1", AlertPhase.RESOLVED)
        eventually(lambda: notified(hook, "resolved") == ["cam-1"])
        assert alertmanager.active() == ["cam-2"]
    finally:
        dispatcher.stop()


@pytest.mark.slow
def test_an_alert_that_is_not_sent_again_ends(alertmanager: Alertmanager, hook: Server, receiver: Resending) -> None:
    """What the test above would see without re-sending."""
    assert receiver.send(Notice.parse(firing())) == Delivered()
    eventually(lambda: alertmanager.active() == ["cam-1"])
    eventually(lambda: notified(hook, "resolved") == ["cam-1"], LIFE_S + 5)


def test_labels_that_prometheus_would_not_allow_are_taken(alertmanager: Alertmanager, receiver: Resending) -> None:
    document = firing("kamera ß/1", labels={"team-name": "x", "0": "y", "none": ""})
    assert receiver.send(Notice.parse(document)) == Delivered()
    eventually(lambda: alertmanager.active() == ["kamera ß/1"])
