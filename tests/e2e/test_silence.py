"""Alerts of a real daemon about streams: one of two falls silent, then both; then there are too many."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.sources import open_producer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import wait_for
from tests.faults.rig import Daemon, Hook, Zygote
from tests.kafka.broker import Cluster
from tests.notify.test_schema import VALIDATOR
from tests.pictures import encoded, pictures
from tests.plain_http import get

pytestmark = [pytest.mark.kafka, pytest.mark.story]

AFTER_S = 6
STEP_S = 0.2


class Cameras:
    """Send one image every STEP_S each, while they are `on`; each has a partition of its own."""

    def __init__(self, servers: str, topic: str) -> None:
        self.on: tuple[str, ...] = ()
        self._producer = open_producer(Config(kafka=KafkaSettings(bootstrap_servers=(servers,))).source_settings())
        self._topic, self._ended = topic, threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        images = [encoded(image) for _, image in pictures(31, 50)]
        number = 0
        while not self._ended.wait(STEP_S):
            for stream in self.on:
                self._producer.send(self._topic, images[number % 50], stream.encode(), (), time.time_ns() // 1_000_000)
            self._producer.flush()
            number += 1
        self._producer.close()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def cameras(kafka_broker: Cluster) -> Iterator[Cameras]:
    made = Cameras(kafka_broker.bootstrap_servers, kafka_broker.create_topic("silence", 2))
    yield made
    made.close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    opened = Hook()
    yield opened
    opened.close()


def test_a_stop_of_one_stream_of_all_and_a_flood_of_streams_raise_one_alert_each_across_a_crash(
    kafka_broker: Cluster,
    redis_server: PrivateRedis,
    cameras: Cameras,
    hook: Hook,
    zygote: Zygote,
    profile_folder: Path,
    tmp_path: Path,
) -> None:
    settings = {
        "monitor": "silence",
        "kafka": {
            "bootstrap_servers": [kafka_broker.bootstrap_servers],
            "topics": ["silence"],
            "group_id": "silence",
            "dead_letter_topic": kafka_broker.create_topic("silence-dead-letters"),
            "session_timeout_s": 6,
        },
        "redis": {"url": redis_server.url},
        "scoring": {"profile": str(profile_folder)},
        "stream": {"max_streams": 1},  # a partition; each camera has one of its own
        "buckets": {"seconds": 1, "lateness_s": 1, "idle_timeout_s": 2},
        "web": {"port": 0},
        "rules": [{"name": "silent", "kind": "silence", "after_s": AFTER_S, "streams": "cam-*"}],
        "receivers": [
            {"name": "hook", "type": "webhook", "url": hook.url, "secret": "whsec_bGF5ZXJ3YXRjaC10ZXN0LXNlY3JldC0wMDAx"}
        ],
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))

    def sent(kind: str) -> dict[str, dict[str, Any]]:
        return {d["data"]["stream"]: d for d in hook.accepted if d["type"] == kind and d["data"]["rule"] == "silent"}

    daemon = Daemon(zygote, config, config.with_suffix(".log"))
    try:
        with contextlib.closing(open_store(RedisSettings(url=SecretStr(redis_server.url)), "silence")) as store:
            cameras.on = ("cam-a", "cam-b")
            wait_for("both streams", lambda: len(store.counts.totals(store.catalog.partitions())) == 2)
        cameras.on = ("cam-a",)
        wait_for("the stop of cam-b", lambda: daemon.check() or sent("alert.firing"))
        assert set(sent("alert.firing")) == {"cam-b"}

        cameras.on = ()
        daemon.kill()  # the clock of cam-a runs on in Redis
        daemon = Daemon(zygote, config, config.with_suffix(".log"))
        wait_for("the stop of all", lambda: daemon.check() or len(sent("alert.firing")) == 2)
        assert not sent("alert.resolved")
        page = sent("alert.firing")["cam-a"]["data"]["links"]["status"]
        assert get(page).is_success, "the address that the daemon has taken"

        cameras.on = ("cam-a", "cam-b")
        wait_for("both to send again", lambda: daemon.check() or len(sent("alert.resolved")) == 2)

        cameras.on = ("cam-a", "cam-b", *(f"flood-{i}" for i in range(20)))
        wait_for("too many streams", lambda: daemon.check() or hook.own("layerwatch-streams"))
        assert daemon.terminate() == 0
        with contextlib.closing(open_store(RedisSettings(url=SecretStr(redis_server.url)), "silence")) as store:
            assert set(store.counts.totals(store.catalog.partitions())) == {"cam-a", "cam-b", "(other)"}
    finally:
        daemon.kill()
    assert len(hook.ids()) == 4, "each alert fires once and resolves once"
    (flood,) = hook.own("layerwatch-streams")
    assert "(other)" in flood["data"]["summary"]
    for stream, fired in sent("alert.firing").items():
        resolved = sent("alert.resolved")[stream]
        assert fired["data"]["alert_id"] == resolved["data"]["alert_id"]
        assert fired["data"]["since"] < resolved["data"]["resolved_at"]
        assert fired["data"]["value"] > AFTER_S > resolved["data"]["value"]
        VALIDATOR.validate(fired)
        VALIDATOR.validate(resolved)
