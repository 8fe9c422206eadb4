"""`replay` reads the log as the daemon does: its alert documents are those that a receiver got."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.sources import open_producer
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import config_file, wait_for
from tests.faults.rig import Daemon, Hook, Zygote
from tests.pictures import encoded, pictures

pytestmark = pytest.mark.story

START_MS = 1_750_000_000_000
STEP_MS = 500
IMAGES, DRIFT = 400, range(120, 240)
BAD, LATE = (7, 133, 301), (60, 200)
FUTURE, FUTURE_MS = 150, 4_000_000_000_000


def write_story(redis_url: str, topic: str, future_ms: int = FUTURE_MS) -> None:
    """Three cameras in two partitions, of which one drifts; some records are bad, late, or stamped far ahead."""
    redis_stream = RedisStreamSettings(topics=(topic,), partitions=2)
    config = Config(source="redis-stream", redis=RedisSettings(url=SecretStr(redis_url)), redis_stream=redis_stream)
    producer = open_producer(config.source_settings())
    normal = [encoded(image) for _, image in pictures(5, 60)]
    strange = [encoded(image) for _, image in pictures(6, 60, stripes=True)]
    for i in range(IMAGES):
        drifting = i in DRIFT and i % 3 == 0
        value = b"no picture" if i in BAD else (strange if drifting else normal)[i % 60]
        at_ms = future_ms if i == FUTURE else START_MS + STEP_MS * i - 25_000 * (i in LATE)
        producer.send(topic, value, f"cam-{i % 3}".encode(), (), at_ms)
    producer.flush()
    producer.close()


def test_a_replay_gives_the_documents_of_the_live_run_with_their_exemplars(
    redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path: Path
) -> None:
    topic = "replayed"
    write_story(redis_server.url, topic)
    hook = Hook()
    settings: dict[str, Any] = {
        "monitor": topic,
        "source": "redis-stream",
        "redis": {"url": redis_server.url},
        "redis_stream": {"topics": [topic], "partitions": 2, "dead_letter_topic": f"{topic}.dead"},
        "scoring": {"profile": str(profile_folder), "device": "cpu"},
        "decoding": {"workers": 1},
        "buckets": {"seconds": 10, "lateness_s": 10, "idle_timeout_s": 1},
        # few: how far the log was read when a bucket closed must show in no document
        "evidence": {"exemplars": 3},
        "rules": [
            {"name": "rate", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 10},
            {"name": "bad", "kind": "rejected", "window_s": 30, "threshold": 0.01, "min_images": 5, "confidence": 0.5},
        ],
        "receivers": [{"name": "hook", "type": "webhook", "url": hook.url}],
    }
    config = config_file(tmp_path, settings)
    daemon = Daemon(zygote, config, config.with_suffix(".log"))
    try:
        wait_for("the end of the drift", lambda: daemon.check() or "alert.resolved" in _types(hook, "rate"))
        # the span is read whole, wherever a new group would begin
        other = config.with_stem("latest")
        latest = config.read_text().replace("redis_stream:\n", "redis_stream:\n  start: latest\n")
        other.write_text(latest)
        replayed = zygote.layerwatch("replay", "--dry-run", "--json", "-c", str(other))
        assert replayed.returncode == 0, replayed.stderr
        documents = {document["id"]: document for document in map(json.loads, replayed.stdout.splitlines())}
        wait_for("all deliveries", lambda: hook.ids() >= documents.keys())
        assert {document["id"]: _without_boxes(document) for document in hook.accepted} == documents
    finally:
        daemon.kill()
        hook.close()
    fired = [d for d in documents.values() if d["type"] == "alert.firing" and d["data"]["rule"] == "rate"]
    assert [(d["data"]["stream"], len(d["data"]["exemplars"])) for d in fired] == [("cam-0", 3)]
    assert {d["data"]["rule"] for d in documents.values()} == {"rate", "bad"}
    assert "1 timestamps were further ahead than buckets.max_future_s allows" in replayed.stderr


def test_a_replay_knows_a_timestamp_a_year_ahead_when_the_year_is_over(
    redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path: Path
) -> None:
    write_story(redis_server.url, "old", START_MS + 365 * 86_400_000)
    rate = {"name": "rate", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 10}
    settings: dict[str, Any] = {
        "monitor": "old",
        "source": "redis-stream",
        "redis": {"url": redis_server.url},
        "redis_stream": {"topics": ["old"], "partitions": 2, "dead_letter_topic": "old.dead"},
        "scoring": {"profile": str(profile_folder), "device": "cpu"},
        "decoding": {"workers": 1},
        "rules": [rate],
    }
    replayed = zygote.layerwatch("replay", "--dry-run", "-c", str(config_file(tmp_path, settings)))
    assert replayed.returncode == 0, replayed.stderr
    assert [line.split()[2:4] for line in replayed.stdout.splitlines()] == [["rate", "cam-0:"]] * 2
    assert f"{IMAGES} records read" in replayed.stderr
    assert "1 timestamps were further ahead" in replayed.stderr


def _without_boxes(document: dict[str, Any]) -> dict[str, Any]:
    """A replay makes no heat maps."""
    for exemplar in document["data"]["exemplars"]:
        exemplar.pop("boxes", None)
    return document


def _types(hook: Hook, rule: str) -> set[str]:
    return {document["type"] for document in hook.accepted if document["data"]["rule"] == rule}
