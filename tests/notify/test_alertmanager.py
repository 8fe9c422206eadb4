"""A real Alertmanager: an alert fires, is grouped, outlives the time-out while it fires, and resolves."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
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
from tests.notify.parts import Server, decide, eventually, firing

BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no Alertmanager (apt-get install -y --no-install-recommends prometheus-alertmanager)"
)
RESEND_S = 0.5
LIFE_S = 4 * RESEND_S
"""How long an alert lives without being sent again."""


class Alertmanager:
    """A running one, which notifies `hook`."""

    def __init__(self, url: str, hook: Server) -> None:
        self.url = url
        self.hook = hook

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v2/{path}", timeout=5).raise_for_status().json()

    def active(self) -> list[str]:
        """Streams of the alerts that fire, as it sees it."""
        return sorted(alert["labels"]["stream"] for alert in self.get("alerts"))

    def notified(self, status: str) -> list[str]:
        """Streams of the alerts that it has notified with that status, repeats left out."""
        alerts = [alert for request in self.hook.requests for alert in request.json["alerts"]]
        return sorted({alert["labels"]["stream"] for alert in alerts if alert["status"] == status})


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Server() as hook:
        route = {
            "receiver": "hook",
            "group_by": ["rule"],
            "group_wait": "300ms",
            "group_interval": "300ms",
            "repeat_interval": "1h",
        }
        webhook = {"name": "hook", "webhook_configs": [{"url": hook.url, "send_resolved": True}]}
        settings = tmp_path / "alertmanager.yml"
        # its own time-out is as long as an alert's life: one that is not sent again must end
        settings.write_text(
            yaml.safe_dump({"global": {"resolve_timeout": "2s"}, "route": route, "receivers": [webhook]})
        )
        process = subprocess.Popen(
            [
                str(BINARY),
                f"--config.file={settings}",
                f"--storage.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        running = Alertmanager(f"http://127.0.0.1:{port}", hook)
        try:
            eventually(lambda: _ready(running), 20)
            yield running
        finally:
            process.kill()
            process.wait()


def _ready(alertmanager: Alertmanager) -> bool:
    try:
        return httpx.get(f"{alertmanager.url}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


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
    alertmanager: Alertmanager, receiver: Resending, store: Store
) -> None:
    dispatcher = Dispatcher(DeliveryContext(store, "layerwatch", timing=Timing(poll_s=0.05)), [receiver])
    dispatcher.start()
    try:
        decide(store, "cam-1")
        decide(store, "cam-2")
        eventually(lambda: alertmanager.notified("firing") == ["cam-1", "cam-2"])
        (group,) = alertmanager.get("alerts/groups")
        assert group["labels"] == {"rule": "drift"}
        assert [alert["labels"]["monitor"] for alert in group["alerts"]] == ["layerwatch"] * 2
        deadline = time.monotonic() + 2 * LIFE_S
        while time.monotonic() < deadline:
            assert alertmanager.active() == ["cam-1", "cam-2"]
            time.sleep(0.1)
        assert alertmanager.notified("resolved") == []
        decide(store, "cam-1", AlertPhase.RESOLVED)
        eventually(lambda: alertmanager.notified("resolved") == ["cam-1"])
        assert alertmanager.active() == ["cam-2"]
    finally:
        dispatcher.stop()


@pytest.mark.slow
def test_an_alert_that_is_not_sent_again_ends(alertmanager: Alertmanager, receiver: Resending) -> None:
    """What the test above would see without re-sending."""
    assert receiver.send(Notice.parse(firing())) == Delivered()
    eventually(lambda: alertmanager.active() == ["cam-1"])
    eventually(lambda: alertmanager.notified("resolved") == ["cam-1"], LIFE_S + 5)


def test_labels_that_prometheus_would_not_allow_are_taken(alertmanager: Alertmanager, receiver: Resending) -> None:
    document = firing("kamera ß/1", labels={"team-name": "x", "0": "y", "none": ""})
    assert receiver.send(Notice.parse(document)) == Delivered()
    eventually(lambda: alertmanager.active() == ["kamera ß/1"])
