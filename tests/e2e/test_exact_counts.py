"""Exactly once through crashes: three streams, 5,000 images and some bad records, daemons killed in the middle."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer
from pydantic import SecretStr

from monitor.alerts import from_json
from monitor.config import Config, Kafka, Redis
from monitor.document import rfc3339
from monitor.private_redis import PrivateRedis
from monitor.sources import open_producer
from monitor.store import Store, open_store
from monitor.types import Partition, Totals
from tests.e2e.running import RunningDaemon, layerwatch, wait_for
from tests.kafka.broker import Cluster
from tests.pictures import encoded, pictures

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

STREAMS = ("cam-a", "cam-b", "cam-c")
SENT = {"cam-a": 2500, "cam-b": 1500, "cam-c": 1000}
BAD = {"cam-a": 10, "cam-b": 0, "cam-c": 5}
PARTITIONS = 4
START_MS = 1_750_000_000_000
STEP_MS = 40


@dataclass(frozen=True)
class Topic:
    """A topic that is being filled with the same records whoever reads it."""

    name: str
    dead_letters: str
    servers: str
    filled: threading.Thread


@pytest.fixture(scope="module")
def topic(kafka_broker: Cluster) -> Iterator[Topic]:
    name = kafka_broker.create_topic("exact", PARTITIONS, {"retention.ms": "-1"})  # its images are old
    dead_letters = kafka_broker.create_topic("exact-dead-letters")
    servers = kafka_broker.bootstrap_servers
    filling = threading.Thread(target=_fill, args=(servers, name))
    filling.start()
    yield Topic(name, dead_letters, servers, filling)
    filling.join()


def _fill(servers: str, topic: str) -> None:
    """Streams by turns, each in the partition of its key; a third of cam-b's images are strange in the middle."""
    normal = [encoded(image) for _, image in pictures(11, 150)]
    strange = [encoded(image) for _, image in pictures(12, 60, stripes=True)]
    producer = open_producer(Config(kafka=Kafka(bootstrap_servers=(servers,))))
    turns = [stream for stream in STREAMS for _ in range(SENT[stream] + BAD[stream])]
    turns = [turns[i] for i in np.random.default_rng(3).permutation(len(turns))]
    bad = {stream: set(range(7, 7 + 20 * BAD[stream], 20)) for stream in STREAMS}
    for i, (stream, nth) in enumerate(_numbered(turns)):
        drifting = stream == "cam-b" and 500 < nth < 1000 and nth % 3 == 0
        value = b"no picture" if nth in bad[stream] else (strange if drifting else normal)[i % 60]
        producer.send(topic, value, stream.encode(), (), START_MS + i * STEP_MS)
    producer.flush()
    producer.close()


def _numbered(turns: list[str]) -> Iterator[tuple[str, int]]:
    counters = {stream: itertools.count() for stream in STREAMS}
    for stream in turns:
        yield stream, next(counters[stream])


def _settings(topic: Topic, redis_url: str, group: str, profile: Path) -> dict[str, Any]:
    return {
        "monitor": "exact",
        "kafka": {
            "bootstrap_servers": [topic.servers],
            "topics": [topic.name],
            "group_id": group,
            "dead_letter_topic": topic.dead_letters,
            "session_timeout_s": 6,
            "max_poll_records": 100,
        },
        "redis": {"url": redis_url},
        "scoring": {"profile": str(profile)},
        # three keys leave a partition empty: it has to count as idle for any bucket to close
        "buckets": {"seconds": 10, "lateness_s": 10, "idle_timeout_s": 5},
        "rules": [
            {"name": "rate", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.15, "min_images": 50},
            {"name": "drift", "kind": "sequential", "expected_streams": 3},
            {"name": "bad", "kind": "rejected", "window_s": 60, "threshold": 0.01, "min_images": 20},
        ],
    }


def _store(redis_url: str) -> Store:
    return open_store(Redis(url=SecretStr(redis_url)), "exact")


def _done(store: Store) -> int:
    totals = store.totals(store.known_partitions()).values()
    return sum(t.applied + t.rejected for t in totals)


ALL = sum(SENT.values()) + sum(BAD.values())


@dataclass(frozen=True)
class Outcome:
    """Everything a run leaves in Redis that must not depend on how often it was killed."""

    totals: dict[str, Totals]
    next_offsets: dict[Partition, int]
    buckets: dict[int, dict[str, bytes]]
    alerts: dict[tuple[str, str], tuple[str, int, int]]

    @classmethod
    def of(cls, store: Store, fingerprint: str) -> Outcome:
        partitions = store.known_partitions()
        buckets = store.read_buckets(partitions, fingerprint, 0, 2**52)
        alerts = {key: from_json(text) for key, text in store.load_alerts().items()}
        return cls(
            totals=store.totals(partitions),
            next_offsets={p: cursor.next_offset for p, cursor in store.cursors(partitions).items() if cursor},
            buckets={start: {s: v.tobytes() for s, v in streams.items()} for start, streams in buckets.items()},
            alerts={key: (alert.id, alert.since_ms, alert.fired_ms) for key, alert in alerts.items()},
        )


def _wait_for_the_last_bucket(store: Store) -> None:
    """The last buckets stay open (nothing later comes); all that can be closed is."""
    last_ms = START_MS + (ALL - 1) * STEP_MS
    # each partition's newest image is within a second or two of the last one
    expected = (last_ms - 10_000 - 2_000) // 10_000 * 10_000 - 10_000
    wait_for("the buckets to close", lambda: (store.evaluator().bucket_ms or 0) >= expected)


@pytest.fixture(scope="module")
def killed_five_times(
    topic: Topic, profile_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Outcome, RunningDaemon]]:
    folder = tmp_path_factory.mktemp("kills")
    with PrivateRedis() as server:
        daemon = RunningDaemon(folder, _settings(topic, server.url, "kills", profile_folder))
        store = _store(server.url)
        try:
            for kill_at in (1, 900, 1800, 2700, 3600):
                daemon.start()
                wait_for(f"{kill_at} records", lambda at=kill_at: daemon.check() or _done(store) >= at)  # type: ignore[misc]
                daemon.kill()
            daemon.start()
            topic.filled.join()
            wait_for("all records", lambda: daemon.check() or _done(store) >= ALL)
            _wait_for_the_last_bucket(store)
            (fingerprint,) = store.layouts()
            yield Outcome.of(store, fingerprint), daemon
            assert daemon.terminate() == 0
        finally:
            daemon.end()
            store.close()


def test_five_crashes_count_every_image_exactly_once(killed_five_times: tuple[Outcome, RunningDaemon]) -> None:
    outcome, daemon = killed_five_times
    shown = layerwatch("streams", "--json", "-c", str(daemon.config))
    assert shown.returncode == 0, shown.stderr
    streams = json.loads(shown.stdout)["streams"]
    assert {name: row["applied"] for name, row in streams.items()} == SENT
    assert {name: row["rejected"] for name, row in streams.items()} == BAD
    assert {name: row["rejected_by_reason"] for name, row in streams.items()} == {
        name: {"format": bad} if bad else {} for name, bad in BAD.items()
    }
    assert sum(outcome.next_offsets.values()) == ALL
    bucket_images = sum(
        int(np.frombuffer(packed, "<u4")[-6]) for streams in outcome.buckets.values() for packed in streams.values()
    )
    assert bucket_images == sum(SENT.values())
    assert {stream for _, stream in outcome.alerts} >= {"cam-b"}


def test_bad_records_are_dead_letters_once_each_by_key(
    killed_five_times: tuple[Outcome, RunningDaemon], topic: Topic
) -> None:
    consumer = KafkaConsumer(
        topic.dead_letters,
        bootstrap_servers=topic.servers,
        auto_offset_reset="earliest",
        consumer_timeout_ms=3000,
        group_id=None,
    )
    letters = list(consumer)
    consumer.close()
    assert len({letter.key for letter in letters}) == sum(BAD.values())
    headers = dict(letters[0].headers)
    assert headers["layerwatch-reason"] == b"format"
    assert headers["layerwatch-topic"] == topic.name.encode()
    assert letters[0].value == b"no picture"


def test_two_replicas_one_killed_leave_the_same_buckets_and_alerts_in_an_empty_redis(
    killed_five_times: tuple[Outcome, RunningDaemon],
    topic: Topic,
    profile_folder: Path,
    tmp_path: Path,
) -> None:
    expected, _ = killed_five_times
    with PrivateRedis() as server:
        settings = _settings(topic, server.url, "replicas", profile_folder)
        replicas = [RunningDaemon(tmp_path, settings).start() for _ in range(2)]
        store = _store(server.url)
        try:
            wait_for("half of the records", lambda: [r.check() for r in replicas] and _done(store) >= ALL / 2)
            replicas[0].kill()
            wait_for("all records", lambda: replicas[1].check() or _done(store) >= ALL)
            _wait_for_the_last_bucket(store)
            (fingerprint,) = store.layouts()
            assert Outcome.of(store, fingerprint) == expected
        finally:
            for replica in replicas:
                replica.end()
            store.close()


def test_a_dry_replay_of_the_log_tells_the_same_alerts(killed_five_times: tuple[Outcome, RunningDaemon]) -> None:
    outcome, daemon = killed_five_times
    replayed = layerwatch("replay", "--from", "0", "--dry-run", "--json", "-c", str(daemon.config))
    assert replayed.returncode == 0, replayed.stderr
    documents = [json.loads(line) for line in replayed.stdout.splitlines()]
    last = {(d["data"]["rule"], d["data"]["stream"]): d["data"] for d in documents if d["type"] == "alert.firing"}
    assert {key: (data["alert_id"], data["since"], data["fired_at"]) for key, data in last.items()} == {
        key: (alert_id, rfc3339(since_ms), rfc3339(fired_ms))
        for key, (alert_id, since_ms, fired_ms) in outcome.alerts.items()
        if fired_ms
    }


def test_a_stream_s_own_past_makes_a_profile(
    killed_five_times: tuple[Outcome, RunningDaemon], profile_folder: Path, tmp_path: Path
) -> None:
    _, daemon = killed_five_times
    since = ("--since", "3650d", "--max-images", "400", "-c", str(daemon.config))
    made = layerwatch("calibrate", str(profile_folder), "--from-stream", "cam-c", *since, "-o", str(tmp_path / "own"))
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "own" / "profile.json").read_text())["images"]["calibration"] > 50
    missing = layerwatch("calibrate", str(profile_folder), "--from-stream", "none", *since, "-o", str(tmp_path / "no"))
    assert missing.returncode == 1
    assert "no image of stream 'none'" in " ".join(missing.stderr.split())
