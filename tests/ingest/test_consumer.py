"""The consumer with its sinks and with a Redis that fails: nothing is skipped, and nothing is counted or written twice.

A real source and store on Redis, a real pipeline, a real file.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core.types import Applied, ApplyStatus, Delta, Exemplar, Partition
from monitor.daemon import build_consumer, limits_of, serving_of
from monitor.ingest import assignment, maintenance, sinks
from monitor.ingest.consumer import Consumer
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.settings import DecodingSettings, ScoringSettings, VerdictSettings
from monitor.notify.receivers.webhook import WebhookSettings
from monitor.sources import open_producer, open_source
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store import Claim, Store, StoreError, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.telemetry import metrics
from tests.e2e.running import wait_for
from tests.logs import capture_log_of
from tests.pictures import draw, encoded, pictures

IMAGES = 60
BAD = (7, 30)
PICTURES = list(pictures(5, IMAGES))


@dataclass
class Running:
    """A consumer of a topic with two partitions that holds IMAGES records, two of which are no pictures."""

    consumer: Consumer
    store: Store
    partitions: list[Partition]
    path: Path
    settings: Config
    end: Callable[[], None]

    def counted(self) -> tuple[int, int]:
        """(applied, rejected) so far."""
        totals = self.store.counts.totals(self.partitions).values()
        return sum(t.applied for t in totals), sum(t.rejected for t in totals)

    def ids(self) -> list[str]:
        """Of the file's lines."""
        return [json.loads(line)["id"] for line in self.path.read_text().splitlines()]


Make = Callable[..., Running]


def npy(image: NDArray[np.uint8]) -> bytes:
    """As the profile's own images came: in another format the bytes per pixel are unusual."""
    buffer = io.BytesIO()
    np.save(buffer, image)
    return buffer.getvalue()


def send(settings: Config, values: Sequence[bytes]) -> None:
    """Write records of three streams by turns, each in the partition of its stream."""
    producer = open_producer(settings.source_settings())
    for i, value in enumerate(values):
        producer.send(settings.monitor, value, f"cam-{i % 3}".encode(), (), 1_750_000_000_000 + 100 * i)
    producer.flush()
    producer.close()


@pytest.fixture
def make(redis_server: PrivateRedis, profile_folder: Path, tmp_path: Path) -> Iterator[Make]:
    """Starts one; `store` may be changed before its consumer starts."""
    ends: list[Callable[[], None]] = []

    def made(name: str, change: Callable[[Store, Config], None] = lambda *_: None, **verdicts: object) -> Running:
        path = tmp_path / "folder" / "verdicts.jsonl"
        settings = Config(
            monitor=name,
            source="redis-stream",
            redis=RedisSettings(url=SecretStr(redis_server.url)),
            redis_stream=RedisStreamSettings(topics=(name,), partitions=2, dead_letter_topic=f"{name}.dead"),
            scoring=ScoringSettings(
                profile=str(profile_folder), device="cpu", engine="torch", batch_images=8, batch_age_s=0.01
            ),
            decoding=DecodingSettings(workers=1),
            receivers=(WebhookSettings(name="hook", type="webhook", url=SecretStr("http://127.0.0.1:9/")),),
            verdicts=VerdictSettings.model_validate({"type": "jsonl", "target": str(path), **verdicts}),
        )
        send(settings, [b"no picture" if i in BAD else npy(image) for i, (_, image) in enumerate(PICTURES)])
        store = open_store(settings.redis, name, limits_of(settings))
        change(store, settings)
        serving = serving_of(settings, load_profiles(settings.scoring, settings.decoding), store)
        consumer = build_consumer(settings, serving, (), store, lambda: open_source(settings.source_settings()))
        thread = threading.Thread(target=consumer.run)
        thread.start()

        def end() -> None:
            consumer.stop()
            thread.join()
            consumer.close()
            store.close()
            ends.remove(end)

        ends.append(end)
        return Running(consumer, store, [Partition(name, i) for i in range(2)], path, settings, end)

    yield made
    for end in [*ends]:
        end()


def check_complete(running: Running) -> None:
    """Every accepted image has its line once, each partition's in the order of its log."""
    ids = running.ids()
    assert len(set(ids)) == len(ids) == IMAGES - len(BAD)
    for partition in running.partitions:
        offsets = [int(i.rsplit("/", 1)[1]) for i in ids if i.startswith(f"{partition.topic}/{partition.index}/")]
        assert offsets == sorted(offsets)


def test_a_sink_that_fails_holds_the_cursor_and_loses_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "REGISTER_S", 1.0)  # the alert ends with the next registration
    (tmp_path / "folder").write_text("a file where a folder should be")
    failed = metrics.REGISTRY.get_sample_value("layerwatch_verdict_errors_total") or 0.0
    written = metrics.REGISTRY.get_sample_value("layerwatch_verdicts_written_total") or 0.0
    running = make("verdicts-wait")
    wait_for("the alert", lambda: "layerwatch-verdicts verdicts" in running.store.outbox.self_alerts())
    assert "verdicts" in running.consumer.why_unready()
    assert running.counted() == (0, 0)
    assert (metrics.REGISTRY.get_sample_value("layerwatch_verdict_errors_total") or 0.0) >= failed + 3
    (tmp_path / "folder").unlink()
    wait_for("all of them", lambda: running.counted() == (IMAGES - len(BAD), len(BAD)))
    check_complete(running)
    assert running.consumer.why_unready() == ""
    assert metrics.REGISTRY.get_sample_value("layerwatch_verdicts_written_total") == written + IMAGES - len(BAD)
    wait_for("the end of the alert", lambda: not running.store.outbox.self_alerts())
    (fingerprint,) = running.store.catalog.layouts()
    shown = [running.store.exemplars.typical(running.partitions, fingerprint, f"cam-{i}") for i in range(3)]
    assert [(len(kept), kept[0].p_value >= 0.3, kept[0].thumbnail[:2]) for kept in shown] == [
        (1, True, b"\xff\xd8")
    ] * 3


def test_the_worst_images_are_kept_large_from_their_own_record(make: Make) -> None:
    running = make("kept-large")
    wait_for("all of them", lambda: running.counted() == (IMAGES - len(BAD), len(BAD)))
    (fingerprint,) = running.store.catalog.layouts()
    large = [Image.fromarray(draw(np.random.default_rng(i), stripes=True)).resize((700, 500)) for i in range(6)]
    send(running.settings, [encoded(np.asarray(image), "JPEG") for image in large])
    wait_for("the large ones", lambda: running.counted()[0] == IMAGES - len(BAD) + len(large))

    def kept() -> list[tuple[Exemplar, bytes]]:
        since_ms, until_ms = 1_750_000_000_000, 1_750_000_100_000
        images = [
            image
            for stream in ("cam-0", "cam-1", "cam-2")
            for image in running.store.exemplars.unusual(
                running.partitions, fingerprint, stream, since_ms, until_ms, 12
            )
        ]
        of = running.store.pictures.of
        pictures = [of(running.partitions, e, e.name) for e in images]
        return [(image, picture) for image, picture in zip(images, pictures, strict=True) if picture]

    wait_for("their pictures", lambda: len(kept()) == len(large))
    for image, picture in kept():  # images of 48 px have none: the thumbnail shows as much
        with Image.open(io.BytesIO(picture)) as shown, Image.open(io.BytesIO(image.thumbnail)) as small:
            assert (shown.size, max(small.size)) == ((512, 366), 96)
            (heat,) = running.store.pictures.heat(running.partitions, [image]).values()
            assert heat.levels.max() > 64  # hotter than normal images are
            alike = np.asarray(shown.resize(small.size)).astype(float) - np.asarray(small)
            assert np.abs(alike).mean() < 16


def test_dead_letters_get_a_line_a_minute_not_one_each(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    log = capture_log_of(sinks, monkeypatch)
    running = make("letters-logged")
    for i in range(4):
        wait_for("the letters so far", lambda: running.counted()[1] == len(BAD) + i)  # noqa: B023 - waits here
        send(running.settings, [b"no picture either"])
    wait_for("all letters", lambda: running.counted()[1] == len(BAD) + 4)
    running.end()
    lines = [line for line in log.entries if line["event"] == "dead_letters.written"]
    assert len(lines) <= 2
    assert sum(line["letters"] for line in lines) == len(BAD) + 4
    assert {reason for line in lines for reason in line["reasons"]} == {"format"}


def test_no_image_counts_before_its_verdict_is_written_and_a_lost_reply_writes_none_again(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "verdicts.jsonl"
    partitions = [Partition("verdicts-dup", i) for i in range(2)]
    too_early: list[int] = []
    statuses: list[str] = []

    def lose_replies(store: Store, _: Config) -> None:
        apply, answered = store.partitions.apply, set[int]()

        def answer(deltas: Sequence[Delta]) -> Sequence[Applied]:
            lines = len(path.read_text().splitlines())
            applied = apply(deltas)
            statuses.extend(str(outcome.status) for outcome in applied)
            if (images := sum(t.applied for t in store.counts.totals(partitions).values())) > lines:
                too_early.append(images)
            asked = sum(delta.next_offset for delta in deltas)
            if asked not in answered:  # the script ran, and its first reply is lost
                answered.add(asked)
                raise StoreError("connection reset")
            return applied

        store.partitions.apply = answer  # type: ignore[method-assign,assignment]

    running = make("verdicts-dup", lose_replies)
    wait_for("all of them", lambda: running.counted() == (IMAGES - len(BAD), len(BAD)))
    wait_for("their last reply", lambda: statuses[-1] == "dup")
    assert not too_early
    check_complete(running)


def test_records_that_come_while_a_claim_is_tried_again_move_no_cursor_over_what_is_not_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis refuses an apply (it was set back) and then a claim; the source meanwhile reads on from the old place."""
    monkeypatch.setattr(assignment, "CLAIM_RETRY_S", 0.0)
    refused: list[Partition] = []

    def set_back(store: Store, settings: Config) -> None:
        apply, claim = store.partitions.apply, store.partitions.claim

        def answer(deltas: Sequence[Delta]) -> Sequence[Applied]:
            if refused:
                return apply(deltas)
            refused.extend(delta.partition for delta in deltas)
            return [Applied(ApplyStatus.REWIND, delta.expect) for delta in deltas]

        def claim_again(partition: Partition, *args: Any) -> Claim:
            if partition in refused:
                refused[refused.index(partition)] = Partition("none", 0)
                send(settings, [encoded(image) for _, image in PICTURES[:3]])
                raise StoreError("connection reset")
            return claim(partition, *args)

        store.partitions.apply, store.partitions.claim = answer, claim_again  # type: ignore[method-assign,assignment]

    running = make("rewind", set_back)
    wait_for("the apply to be refused", lambda: refused)
    more = 3 * len(refused)
    wait_for("all of them", lambda: running.counted() == (IMAGES - len(BAD) + more, len(BAD)))
