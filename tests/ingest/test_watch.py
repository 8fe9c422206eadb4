"""Another version of a profile is taken up while images are read, by one real process over a real Redis stream."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from detectors import ProfileError
from detectors.profile.fit import recalibrate
from detectors.profile.profile import Profile
from detectors.versions.store import ProfileStore
from monitor.config.checks import checked_profiles
from monitor.config.schema import Config
from monitor.core.buckets import IMAGES
from monitor.core.replicas import disagree
from monitor.core.types import Partition
from monitor.daemon import build_consumer, limits_of, serving_of
from monitor.ingest import watch as watching
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.settings import DecodingSettings, ProfileOverride, ScoringSettings, ShadowProfile, VerdictSettings
from monitor.ingest.watch import ProfileWatch
from monitor.notify.receivers.webhook import WebhookSettings
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.rate import RateRule
from monitor.sources import open_producer, open_source
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.telemetry import metrics
from tests.e2e.running import wait_for
from tests.pictures import encoded, pictures

VALUES = [encoded(image) for _, image in pictures(5, 40)]
BAD_EVERY = 25


@pytest.fixture(scope="module")
def versions(profile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three profiles; by the last, calibrated on a few images, no rule can judge."""
    folders = []
    for i, images in enumerate((0, 150, 60)):
        profile = Profile.load(profile_folder, "cpu")
        if images:
            recalibrate(profile, pictures(60 + i, images))
        folders.append(tmp_path_factory.mktemp("versions") / str(i))
        profile.save(folders[-1])
    return folders


class Running:
    """A consumer that scores with the active version of a store."""

    def __init__(
        self, name: str, redis_url: str, root: Path, path: Path, shadow: str = "", other: Path | None = None
    ) -> None:
        self.path, self.partitions = path, [Partition(name, i) for i in range(2)]
        self.settings = Config(
            monitor=name,
            source="redis-stream",
            redis=RedisSettings(url=SecretStr(redis_url)),
            redis_stream=RedisStreamSettings(topics=(name,), partitions=2, dead_letter_topic=f"{name}.dead"),
            scoring=ScoringSettings(
                profile=str(root),
                profiles=(ProfileOverride(streams="cam-2", path=str(other)),) if other else (),
                shadow=(ShadowProfile(streams="cam-1", version=f"{root}@{shadow}"),) if shadow else (),
                device="cpu",
                engine="torch",
                batch_images=8,
                batch_age_s=0.01,
            ),
            decoding=DecodingSettings(workers=1),
            rules=(RateRule(name="rate", kind="rate", level=0.05, min_images=20),),
            receivers=(WebhookSettings(name="hook", type="webhook", url=SecretStr("http://127.0.0.1:9/")),),
            verdicts=VerdictSettings(type="jsonl", target=str(path)),
        )
        self.store = open_store(self.settings.redis, name, limits_of(self.settings))
        self.serving = serving_of(self.settings, self.load(), self.store)
        self.consumer = build_consumer(
            self.settings, self.serving, (), self.store, lambda: open_source(self.settings.source_settings())
        )
        alerts = SelfAlerts(self.store, name, has_receivers=True)
        self.watch = ProfileWatch(self.store, self.serving, self.settings.scoring, self.load, alerts)
        self._thread = threading.Thread(target=self.consumer.run)
        self._thread.start()
        self.sent = 0

    def load(self) -> Profiles:
        return checked_profiles(self.settings, "config.yaml")

    def send(self, records: int, values: Sequence[bytes] = VALUES) -> None:
        producer = open_producer(self.settings.source_settings())
        for i in range(self.sent, self.sent + records):
            value = b"no picture" if i % BAD_EVERY == 7 else values[i % len(values)]
            producer.send(self.settings.monitor, value, f"cam-{i % 3}".encode(), (), 1_750_000_000_000 + 100 * i)
        producer.flush()
        producer.close()
        self.sent += records

    def counted(self) -> int:
        totals = self.store.counts.totals(self.partitions).values()
        return sum(t.applied + t.rejected for t in totals)

    def by_fingerprint(self) -> Counter[str]:
        """Images in all buckets."""
        found: Counter[str] = Counter()
        for fingerprint in self.store.catalog.layouts():
            for streams in self.store.counts.buckets(self.partitions, fingerprint, 0, 2**52).values():
                found[fingerprint] += sum(int(v[IMAGES]) for v in streams.values())
        return found

    def end(self) -> None:
        self.consumer.stop()
        self._thread.join()
        self.consumer.close()
        self.store.close()


@pytest.fixture
def running(
    request: pytest.FixtureRequest, redis_server: PrivateRedis, versions: list[Path], tmp_path: Path
) -> Iterator[Running]:
    store = ProfileStore(str(tmp_path / "store"))
    for folder in versions:
        store.add(folder)
    store.promote("1")
    made = Running(f"watch-{request.node.name[:40]}", redis_server.url, tmp_path / "store", tmp_path / "log.jsonl")
    yield made
    made.end()


def test_images_are_counted_once_under_the_version_that_was_active_when_they_were_begun(running: Running) -> None:
    store = ProfileStore(running.settings.scoring.profile)
    first, second = (version.fingerprint for version in store.journal().versions[:2])
    used, enough = [], threading.Event()

    def feed() -> None:  # ahead of the scores: at every switch there is work in flight, and more waits
        while not enough.wait(0.02):
            if running.sent - running.counted() < 60:
                running.send(20)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for change in (lambda: store.promote("2"), store.roll_back, lambda: store.promote("2")):
        counted = running.counted()
        wait_for("some records", lambda: running.counted() > counted)  # noqa: B023 - waits here
        change()
        running.watch.look()
        used += running.serving.profiles.fingerprints
        assert running.consumer.why_unready() == ""
    enough.set()
    feeder.join()
    running.send(50)
    assert used == [second, first, second]
    wait_for("all records", lambda: running.counted() == running.sent)
    rows = [json.loads(line) for line in running.path.read_text().splitlines()]
    bad = sum(i % BAD_EVERY == 7 for i in range(running.sent))
    assert len({row["id"] for row in rows}) == len(rows) == running.sent - bad
    found, logged = running.by_fingerprint(), Counter(row["profile"] for row in rows)
    assert found == logged
    assert logged.keys() == {first, second}
    # each partition's images changed hands three times, not to and fro
    for partition in {row["id"].rpartition("/")[0] for row in rows}:
        mine = [row["profile"] for row in rows if row["id"].startswith(f"{partition}/")]
        assert sum(a != b for a, b in itertools.pairwise(mine)) == 3
    wait_for("the report", lambda: running.store.catalog.replicas()[0].fingerprints == [second])
    (replica,) = running.store.catalog.replicas()
    assert replica.profiles == {running.settings.scoring.profile: f"{running.settings.scoring.profile}@2"}
    shown = {sample.labels["fingerprint"] for family in metrics.PROFILE.collect() for sample in family.samples}
    assert second in shown
    assert first not in shown


def test_what_cannot_be_taken_up_leaves_the_old_one_and_is_alerted_on_until_a_load_works(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watching, "RETRY_S", (0.0,))
    store, alerts = ProfileStore(running.settings.scoring.profile), running.store.outbox.self_alerts
    first, second, _ = (version.fingerprint for version in store.journal().versions)
    running.send(50)

    def refuse(times: int = 2) -> str:
        for _ in range(times):
            running.watch.look()
        assert running.serving.profiles.fingerprints == [first]
        (replica,) = running.store.catalog.replicas()
        return replica.failure

    store.promote("3")
    assert "60 calibration images" in refuse(1)
    assert not alerts()
    assert "60 calibration images" in refuse(1)
    (name,) = alerts()
    assert name == "layerwatch-profile profiles"
    store.roll_back()
    running.watch._end_every.soon()
    running.watch.look()
    assert not alerts()
    content = store.find("2").content
    damaged = tmp_path / "store" / "versions" / content / "profile.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    store.promote("2")
    assert "damaged" in refuse()
    assert alerts()
    damaged.unlink()
    assert "No such file" in refuse()
    damaged.write_bytes(whole)
    running.watch.look()
    assert running.serving.profiles.fingerprints == [second]
    assert not alerts()
    changes = tmp_path / "store" / "changes"
    changes.rename(tmp_path / "away")
    changes.write_text("no folder")
    for _ in range(2):
        running.watch.look()
    assert running.serving.profiles.fingerprints == [second]
    assert alerts()
    changes.unlink()
    (tmp_path / "away").rename(changes)
    running.watch.look()
    assert not alerts()
    running.send(50)
    wait_for("all records", lambda: running.counted() == 100)
    with pytest.raises(ProfileError, match="is active already"):
        store.promote("2")


def test_each_profile_of_the_configuration_has_a_version_of_its_own(
    redis_server: PrivateRedis, versions: list[Path], tmp_path: Path
) -> None:
    stores = [ProfileStore(str(tmp_path / name)) for name in ("all", "cam-2")]
    for store in stores:
        for folder in versions[:2]:
            store.add(folder)
        store.promote("1")
    first, second = (version.fingerprint for version in stores[0].journal().versions)
    path = tmp_path / "log.jsonl"
    running = Running("watch-two", redis_server.url, tmp_path / "all", path, other=tmp_path / "cam-2")
    try:
        running.send(30)
        wait_for("the first", lambda: running.counted() == 30)
        stores[1].promote("2")
        running.watch.look()
        assert running.serving.profiles.fingerprints == sorted([first, second])
        running.send(30)
        wait_for("all records", lambda: running.counted() == 60)
    finally:
        running.end()
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    judged = {(row["stream"], row["profile"]) for row in rows}
    assert judged == {("cam-0", first), ("cam-1", first), ("cam-2", first), ("cam-2", second)}


def test_replicas_disagree_while_one_scores_with_another_profile(running: Running) -> None:
    wait_for("the report", running.store.catalog.replicas)
    (mine,) = running.store.catalog.replicas()
    assert not disagree([mine])
    running.store.catalog.put_replica(type(mine)("other/1", mine.profiles, ["0123456789abcdef"]))
    assert disagree(running.store.catalog.replicas())
