"""Exactly once through crashes: three streams, 5,000 images and some bad records, daemons killed in the middle.

The same topic is read three times: by three replicas while it fills, two of them killed; by one daemon, killed five
times; and by `replay`. Counts and alerts must come out the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core.buckets import CHANGES, DUPLICATES, IMAGES, LONGEST_RUN
from monitor.core.event_time import bucket_of
from monitor.core.types import Alert, Partition, Record, Totals, Vector
from monitor.sources import open_producer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import config_file, wait_for
from tests.faults.rig import Daemon, Zygote, read_log
from tests.kafka.broker import Cluster
from tests.pictures import draw, encoded, pictures

pytestmark = [pytest.mark.kafka, pytest.mark.story, pytest.mark.timeout(400)]

# each in a partition of its own, by the hash of its name
STREAMS = ("cam-a", "cam-e", "cam-h")
SENT = {"cam-a": 1700, "cam-e": 2300, "cam-h": 1000}
BAD = {"cam-a": 10, "cam-e": 0, "cam-h": 5}
FROZEN, RESIZED = range(200, 220), 300
PARTITIONS = 3
GROUPS = ("replicas", "kills")
START_MS = 1_750_000_000_000
STEP_MS = 40


class Topic:
    """A topic that holds the same records for all readers, once `fill` is called."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.servers = cluster, cluster.bootstrap_servers
        for_ever = {"retention.ms": "-1"}  # the images are old, and so are the alerts about them
        self.name = cluster.create_topic("exact", PARTITIONS, for_ever)
        self.dead_letters, self.alerts = (
            {group: cluster.create_topic(f"exact-{kind}-{group}", 1, for_ever) for group in GROUPS}
            for kind in ("dead-letters", "alerts")
        )
        self._filling = threading.Thread(target=_fill, args=(self.servers, self.name))

    def fill(self) -> None:
        """Begin to fill it, unless it is being filled or full."""
        if self._filling.ident is None:
            self._filling.start()

    def written(self, topic: str) -> list[Record]:
        """Every record of another topic."""
        return read_log(self._cluster, Partition(topic, 0))


@pytest.fixture(scope="module")
def topic(kafka_broker: Cluster) -> Topic:
    return Topic(kafka_broker)


def _fill(servers: str, topic: str) -> None:
    """Streams by turns, each in the partition of its key; a third of cam-e's images are strange in the middle.

    cam-h freezes for a while, and sends one image of another size.
    """
    normal = [encoded(image) for _, image in pictures(11, 150)]
    strange = [encoded(image) for _, image in pictures(12, 60, stripes=True)]
    producer = open_producer(Config(kafka=KafkaSettings(bootstrap_servers=(servers,))).source_settings())
    turns = [stream for stream in STREAMS for _ in range(SENT[stream] + BAD[stream])]
    turns = [turns[i] for i in np.random.default_rng(3).permutation(len(turns))]
    bad = {stream: set(range(7, 7 + 20 * BAD[stream], 20)) for stream in STREAMS}
    for i, (stream, nth) in enumerate(_numbered(turns)):
        drifting = stream == "cam-e" and 500 < nth < 1000 and nth % 3 == 0
        value = b"no picture" if nth in bad[stream] else (strange if drifting else normal)[i % 60]
        if stream == "cam-h" and nth in FROZEN:
            value = normal[-1]
        elif stream == "cam-h" and nth == RESIZED:
            value = encoded(draw(np.random.default_rng(0))[:, :40])
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
        "web": {"external_url": "http://status.example"},  # else documents link to each process by its own port
        "kafka": {
            "bootstrap_servers": [topic.servers],
            "topics": [topic.name],
            "group_id": group,
            "dead_letter_topic": topic.dead_letters[group],
            "session_timeout_s": 6,
            "max_poll_records": 100,
        },
        "redis": {"url": redis_url},
        "scoring": {"profile": str(profile)},
        # the clock of the machine has no say: every partition has a stream, and none counts as idle before it is filled
        "buckets": {"seconds": 10, "lateness_s": 10, "idle_timeout_s": 300},
        "rules": [
            {"name": "rate", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.15, "min_images": 50},
            {"name": "drift", "kind": "sequential", "expected_streams": 3},
            {"name": "bad", "kind": "rejected", "window_s": 60, "threshold": 0.01, "min_images": 20},
            {"name": "frozen", "kind": "frozen", "run": 10},
        ],
        "receivers": [{"name": "log", "type": "kafka", "topic": topic.alerts[group]}],
    }


def _store(redis_url: str) -> Store:
    return open_store(RedisSettings(url=SecretStr(redis_url)), "exact")


def _done(store: Store) -> int:
    totals = store.counts.totals(store.catalog.partitions()).values()
    return sum(t.applied + t.rejected for t in totals)


ALL = sum(SENT.values()) + sum(BAD.values())


@dataclass(frozen=True)
class Outcome:
    """Everything a run leaves that must not depend on how often it was killed, and by how many replicas it was made."""

    totals: dict[str, Totals]
    next_offsets: dict[Partition, int]
    buckets: dict[int, dict[str, bytes]]
    alerts: dict[tuple[str, str], Alert]
    documents: dict[str, dict[str, Any]]

    def vectors(self) -> Iterator[dict[str, Vector]]:
        """{stream: counts} of every bucket."""
        for streams in self.buckets.values():
            yield {stream: np.frombuffer(packed, "<u4").astype(np.uint32) for stream, packed in streams.items()}

    @classmethod
    def of(cls, store: Store, topic: Topic, group: str) -> Outcome:
        """Once all that can be closed is: the last buckets stay open, for nothing later comes."""
        last_ms = bucket_of(START_MS + (ALL - 1) * STEP_MS - 10_000, 10_000) - 10_000
        wait_for("the buckets to close", lambda: (store.evaluation.state().bucket_ms or 0) >= last_ms)
        wait_for("the alerts to be delivered", lambda: store.outbox.backlog("log").entries == 0)
        partitions, (fingerprint,) = store.catalog.partitions(), store.catalog.layouts()
        buckets = store.counts.buckets(partitions, fingerprint, 0, 2**52)
        return cls(
            totals=store.counts.totals(partitions),
            next_offsets={
                p: cursor.next_offset for p, cursor in store.partitions.cursors(partitions).items() if cursor
            },
            buckets={start: {s: v.tobytes() for s, v in streams.items()} for start, streams in buckets.items()},
            alerts=store.evaluation.alerts(),
            documents=by_id(record.value or b"" for record in topic.written(topic.alerts[group])),
        )


def by_id(documents: Iterable[bytes | str]) -> dict[str, dict[str, Any]]:
    """Alert documents, each once, without the images shown: the worst of an hour, as far as it was read by then."""
    found: dict[str, dict[str, Any]] = {}
    for text in documents:
        document = json.loads(text)
        document["data"].pop("exemplars")
        assert found.setdefault(document["id"], document) == document, "a document that is sent again must be the same"
    return found


@pytest.fixture(scope="module")
def three_replicas_two_killed(
    topic: Topic, zygote: Zygote, profile_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("replicas")
    with PrivateRedis() as server, contextlib.closing(_store(server.url)) as store:
        settings = _settings(topic, server.url, "replicas", profile_folder)
        replicas = [_started(zygote, config_file(folder, settings)) for _ in range(3)]

        def reached(done: float) -> bool:
            for replica in replicas:
                replica.check()
            return _done(store) >= done

        try:
            wait_for("partitions for all", lambda: all(r.metric("layerwatch_partitions_owned") for r in replicas))
            topic.fill()
            for share in (0.2, 0.5):
                wait_for(f"{share:.0%} of the records", lambda at=share * ALL: reached(at))  # type: ignore[misc]
                busiest = max(replicas, key=lambda replica: replica.metric("layerwatch_images_applied_total"))
                assert busiest.metric("layerwatch_images_applied_total") > 0
                busiest.kill()
                replicas.remove(busiest)
            wait_for("all records", lambda: reached(ALL))
            yield Outcome.of(store, topic, "replicas")
        finally:
            for replica in replicas:
                replica.kill()


@pytest.fixture(scope="module")
def killed_five_times(
    topic: Topic, zygote: Zygote, profile_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Outcome, Path]]:
    """What it left, and its configuration; the last daemon still runs."""
    topic.fill()
    with PrivateRedis() as server, contextlib.closing(_store(server.url)) as store:
        settings = _settings(topic, server.url, "kills", profile_folder)
        config = config_file(tmp_path_factory.mktemp("kills"), settings)
        for kill_at in (1, 500, 1000, 1500, 2000, ALL):
            daemon = _started(zygote, config)
            try:
                wait_for(f"{kill_at} records", lambda: daemon.check() or _done(store) >= kill_at)  # noqa: B023
                if kill_at == ALL:
                    yield Outcome.of(store, topic, "kills"), config
                    assert daemon.terminate() == 0
            finally:
                daemon.kill()


def _started(zygote: Zygote, config: Path) -> Daemon:
    return Daemon(zygote, config, config.with_suffix(".log"))


def test_three_replicas_two_killed_leave_the_same_buckets_and_alerts_as_one_killed_five_times(
    three_replicas_two_killed: Outcome, killed_five_times: tuple[Outcome, Path]
) -> None:
    assert three_replicas_two_killed == killed_five_times[0]


def test_five_crashes_count_every_image_exactly_once(killed_five_times: tuple[Outcome, Path], zygote: Zygote) -> None:
    outcome, config = killed_five_times
    shown = zygote.layerwatch("streams", "--json", "-c", str(config))
    assert shown.returncode == 0, shown.stderr
    streams = json.loads(shown.stdout)["streams"]
    assert {name: row["applied"] for name, row in streams.items()} == SENT
    assert {name: row["rejected"] for name, row in streams.items()} == BAD
    assert {name: (row["duplicates"], row["changes"]) for name, row in streams.items()} == {
        "cam-a": (0, 0), "cam-e": (0, 0), "cam-h": (len(FROZEN) - 1, 2)
    }  # fmt: skip
    assert {name: row["rejected_by_reason"] for name, row in streams.items()} == {
        name: {"format": bad} if bad else {} for name, bad in BAD.items()
    }
    assert sum(outcome.next_offsets.values()) == ALL
    counted = {stream: np.stack([v[stream] for v in outcome.vectors() if stream in v]) for stream in STREAMS}
    assert {stream: int(v[:, IMAGES].sum()) for stream, v in counted.items()} == SENT
    facts = {s: (v[:, DUPLICATES].sum(), v[:, CHANGES].sum(), v[:, LONGEST_RUN].max()) for s, v in counted.items()}
    assert facts == {"cam-a": (0, 0, 1), "cam-e": (0, 0, 1), "cam-h": (len(FROZEN) - 1, 2, len(FROZEN))}
    assert {stream for _, stream in outcome.alerts} >= {"cam-e"}
    assert {d["data"]["rule"] for d in outcome.documents.values() if d["data"]["severity"]} == {
        *("rate", "drift", "bad", "frozen")
    }


def test_bad_records_are_dead_letters_once_each_by_key(killed_five_times: tuple[Outcome, Path], topic: Topic) -> None:
    letters = topic.written(topic.dead_letters["kills"])
    assert len({letter.key for letter in letters}) == sum(BAD.values())
    headers = dict(letters[0].headers)
    assert headers["layerwatch-reason"] == b"format"
    assert headers["layerwatch-topic"] == topic.name.encode()
    assert letters[0].value == b"no picture"


def test_a_dry_replay_of_the_log_tells_the_same_alerts(killed_five_times: tuple[Outcome, Path], zygote: Zygote) -> None:
    outcome, config = killed_five_times
    replayed = zygote.layerwatch("replay", "--from", "0", "--dry-run", "--json", "-c", str(config))
    assert replayed.returncode == 0, replayed.stderr
    assert by_id(replayed.stdout.splitlines()) == outcome.documents


def test_a_stream_s_own_past_makes_a_profile(
    killed_five_times: tuple[Outcome, Path], zygote: Zygote, profile_folder: Path, tmp_path: Path
) -> None:
    _, config = killed_five_times
    since = ("--since", "3650d", "--max-images", "400", "-c", str(config))
    made = zygote.layerwatch(
        "calibrate", str(profile_folder), "--from-stream", "cam-h", *since, "-o", str(tmp_path / "own")
    )
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "own" / "profile.json").read_text())["images"]["calibration"] > 50
    missing = zygote.layerwatch(
        "calibrate", str(profile_folder), "--from-stream", "none", *since, "-o", str(tmp_path / "no")
    )
    assert missing.returncode == 1
    assert "no such image of stream 'none'" in " ".join(missing.stderr.split())
