"""Days and nights, from the log to the receiver: real daemons, a real Redis, a restart in between, and a replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from detectors.profile.fit import recalibrate
from detectors.profile.profile import Profile
from monitor.config.schema import Config
from monitor.sources import open_producer
from monitor.sources.protocol import Producer
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import config_file, wait_for
from tests.faults.rig import Daemon, Hook, Zygote
from tests.pictures import at_night, encoded, pictures

pytestmark = pytest.mark.story

TOPIC = "days-and-nights"
STEP_MS = 500
HOURS = {"by": "hour", "timezone": "Europe/Berlin", "hours": {"day": "06:00-20:00", "night": "20:00-06:00"}}
LIGHT = {"by": "property", "name": "luma_p50", "ranges": {"night": [None, 40], "day": [40, None]}}

Sent = tuple[int, str, bytes]
"""(event time in ms, stream, image)"""


def noon(day: int) -> int:
    """12:00 in Berlin, on the days about the night in which its clocks are set back."""
    return round(datetime(2025, 10, 25 + day, 10 + (day > 0), tzinfo=UTC).timestamp() * 1000)


def night(day: int) -> int:
    """23:00 of that day."""
    return noon(day) + 11 * 3_600_000


def cameras() -> dict[str, list[bytes]]:
    dark = [encoded(image) for _, image in at_night(pictures(80, 60))]
    faulty = [encoded(image) for _, image in at_night(pictures(81, 60, stripes=True))]
    return {"day": [encoded(image) for _, image in pictures(82, 60)], "night": dark, "fault": faulty}


def shown(at_ms: int, stream: str, images: list[bytes], count: int) -> Iterator[Sent]:
    return ((at_ms + STEP_MS * i, stream, images[i % len(images)]) for i in range(count))


def send(producer: Producer, *parts: Iterator[Sent]) -> None:
    for at_ms, stream, image in sorted((one for part in parts for one in part), key=lambda one: one[:2]):
        producer.send(TOPIC, image, stream.encode(), (), at_ms)
    producer.flush()


def test_a_fault_by_night_alone_fires_over_the_day_and_ends_by_night_and_no_night_pages(
    redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path: Path
) -> None:
    profile = Profile.load(profile_folder, "cpu")
    recalibrate(profile, pictures(83, 150), condition="day")
    recalibrate(profile, at_night(pictures(84, 150)), condition="night")
    profile.save(tmp_path / "profile")
    kinds = cameras()
    redis_stream = RedisStreamSettings(topics=(TOPIC,), partitions=1)
    redis = RedisSettings(url=SecretStr(redis_server.url))
    config = Config(source="redis-stream", redis=redis, redis_stream=redis_stream)
    producer = open_producer(config.source_settings())
    hook = Hook()
    rate = {"kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 20}
    settings: dict[str, Any] = {
        "monitor": TOPIC,
        "source": "redis-stream",
        "redis": {"url": redis_server.url},
        "redis_stream": {"topics": [TOPIC], "partitions": 1, "dead_letter_topic": f"{TOPIC}.dead"},
        "scoring": {
            "profile": str(tmp_path / "profile"),
            "device": "cpu",
            "conditions": [{"streams": "yard*", **HOURS}, {"streams": "line", **LIGHT}],
        },
        "decoding": {"workers": 1},
        "buckets": {"idle_timeout_s": 1},
        "rules": [
            {"name": "light", "signal": "luma_p50", **rate},
            {"name": "drift", "kind": "sequential", "signals": ["ood"], "expected_streams": 3},
        ],
        "receivers": [{"name": "hook", "type": "webhook", "url": hook.url}],
    }
    config_path = config_file(tmp_path, settings)

    def published() -> list[tuple[str, str, str]]:
        return [(d["data"]["rule"], d["data"]["stream"], d["type"].partition(".")[2]) for d in hook.accepted]

    # the same days and nights; only `yard` has a fault, in the first night
    send(producer, *(shown(noon(0), stream, kinds["day"], 60) for stream in ("yard", "line", "plain")))
    daemon = Daemon(zygote, config_path, config_path.with_suffix(".log"))
    try:
        send(
            producer,
            *(shown(night(0), stream, kinds["night"], 60) for stream in ("yard", "line", "plain")),
            shown(night(0) + 60 * STEP_MS, "yard", kinds["fault"], 80),
            shown(noon(1), "yard", kinds["day"], 60),
        )
        wait_for("the fault by night", lambda: daemon.check() or ("drift", "yard", "firing") in published())
        daemon.kill()
        send(producer, shown(night(1), "yard", kinds["night"], 260), shown(noon(2), "yard", kinds["day"], 60))
        daemon = Daemon(zygote, config_path, config_path.with_suffix(".again.log"))
        wait_for("its end", lambda: daemon.check() or ("drift", "yard", "resolved") in published())
        replayed = zygote.layerwatch("replay", "--dry-run", "--json", "-c", str(config_path))
        assert replayed.returncode == 0, replayed.stderr
        documents = {document["id"]: document for document in map(json.loads, replayed.stdout.splitlines())}
        wait_for("all deliveries", lambda: hook.ids() >= documents.keys())
        live = {document["id"]: document for document in hook.accepted}
        stream = ("--from-stream", "yard", "--since", "500w", "-c", str(config_path))
        own = zygote.layerwatch("calibrate", str(tmp_path / "profile"), *stream, "--condition", "night")
        dusk = zygote.layerwatch("calibrate", str(tmp_path / "profile"), *stream, "--condition", "dusk")
    finally:
        daemon.kill()
        hook.close()
        producer.close()
    # the images of the stream that are of the night by the configured rule: 60 normal ones, and 60 of the fault
    assert (own.returncode, "calibrated on 120 images" in own.stderr) == (0, True), own.stderr
    assert (dusk.returncode, "has no condition 'dusk' (it has day, night)" in dusk.stderr) == (1, True), dusk.stderr
    for document in live.values():
        for exemplar in document["data"]["exemplars"]:
            exemplar.pop("boxes", None)  # a replay makes no heat maps
    assert live == documents

    check(list(live.values()))


def check(documents: list[dict[str, Any]]) -> None:
    """One calibration for day and night pages with every night; conditions by the hour and by a property do not."""
    assert {d["data"]["stream"] for d in documents} == {"plain", "yard"}
    plain = [d for d in documents if d["data"]["stream"] == "plain"]
    assert {"light", "drift"} >= {d["data"]["rule"] for d in plain} >= {"light"}
    assert all("condition" not in d["data"] for d in plain)
    began_ms = {
        datetime.fromisoformat(d["data"]["since"]).timestamp() * 1000
        for d in documents
        if d["data"]["stream"] == "yard"
    }
    assert min(began_ms) >= night(0) + 50 * STEP_MS  # the fault's, to a bucket
    fired, resolved = (d for d in documents if (d["data"]["rule"], d["data"]["stream"]) == ("drift", "yard"))
    assert (fired["type"], resolved["type"]) == ("alert.firing", "alert.resolved")
    assert fired["data"]["condition"] == resolved["data"]["condition"] == "night"
    assert fired["data"]["alert_id"] == resolved["data"]["alert_id"]
    assert datetime.fromisoformat(fired["timestamp"]).timestamp() * 1000 < noon(1)
    assert night(1) < datetime.fromisoformat(resolved["timestamp"]).timestamp() * 1000 < noon(2)
