"""`layerwatch produce` on a real Kafka and on a real Redis."""

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from monitor.__main__ import main
from monitor.sources import open_producer
from monitor.sources.protocol import Source
from tests.pictures import draw, encoded
from tests.sources.worlds import World, read


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """A folder with a PNG and a JPEG, and a tar file with a WebP."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(draw(rng)))
    (folder / "b.JPG").write_bytes(encoded(draw(rng), "JPEG"))
    (tmp_path / "c.webp").write_bytes(encoded(draw(rng), "WEBP"))
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(tmp_path / "c.webp", "c.webp")
    return [folder, tmp_path / "c.tar"]


def run(tmp_path: Path, world: World | None, *arguments: object, **kafka: object) -> int:
    """The exit status of the command, with the world's configuration in a file."""
    path = tmp_path / "config.yaml"
    if world is None:
        tree: dict[str, object] = {"kafka": kafka}
    elif world.config.source == "kafka":
        tree = {"kafka": {"bootstrap_servers": list(world.config.kafka.bootstrap_servers), "topics": [world.topic]}}
    else:
        redis = {"url": world.config.redis.url.get_secret_value()}
        stream = {"topics": [world.topic], "partitions": 2, "lease_s": 0.5}
        tree = {"source": "redis-stream", "redis": redis, "redis_stream": stream}
    path.write_text(yaml.safe_dump(tree))
    return main(["produce", *map(str, arguments), "-c", str(path)])


def started(world: World) -> Source:
    source = world.owner()
    for partition in source.partitions():
        source.start(partition, 0)
    return source


def test_images_arrive_in_order_with_key_type_and_the_time_of_sending(
    world: World, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = time.time_ns() // 1_000_000
    assert run(tmp_path, world, *images, "--stream", "cam-1") == 0
    assert capsys.readouterr().out == f"3 images written to {world.topic} as cam-1\n"
    records = read(started(world), 3)
    assert len({record.partition for record in records}) == 1
    assert {record.key for record in records} == {b"cam-1"}
    assert [record.header("content-type") for record in records] == [b"image/png", b"image/jpeg", b"image/webp"]
    assert records[0].value == (images[0] / "a.png").read_bytes()
    assert all(before <= record.timestamp_ms <= time.time_ns() // 1_000_000 for record in records)


def test_a_start_time_stamps_the_images_without_waiting(world: World, images: list[Path], tmp_path: Path) -> None:
    began = time.monotonic()
    start = "2026-01-02T03:04:05Z"
    assert run(tmp_path, world, *images, "--stream", "s", "--rate", "0.1", "--start-time", start) == 0
    assert time.monotonic() - began < 10
    first = 1_767_323_045_000
    assert [r.timestamp_ms for r in read(started(world), 3)] == [first, first + 10_000, first + 20_000]


def test_a_rate_paces_the_sending(world: World, images: list[Path], tmp_path: Path) -> None:
    assert run(tmp_path, world, *images, "--stream", "s", "--rate", "10") == 0
    stamps = [record.timestamp_ms for record in read(started(world), 3)]
    assert stamps[2] - stamps[0] >= 190


def test_bad_inputs_and_an_absent_broker_have_their_exit_status_and_one_line(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monitor.telemetry.logs.configure_logs", lambda *_: None)  # the Kafka client's log is not ours
    away = {"bootstrap_servers": ["localhost:1"], "client": {"bootstrap_timeout_ms": 300}}
    assert run(tmp_path, None, *images, "--stream", "s", **away) == 69
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("layerwatch produce: kafka: connecting to localhost:1: ")


def test_an_image_folder_without_images_is_told(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, world, tmp_path / "empty", "--stream", "s") == 1
    assert "empty: no .jpeg" in capsys.readouterr().err


def test_keys_stay_together_and_spread_over_the_partitions(world: World) -> None:
    producer = open_producer(world.config.source_settings())
    for i in range(60):
        producer.send(world.topic, f"{i}".encode(), f"cam-{i % 12}".encode())
    producer.flush()
    producer.close()
    records = read(started(world), 60)
    places = {record.key: set[int]() for record in records}
    for record in records:
        places[record.key].add(record.partition.index)
    assert all(len(found) == 1 for found in places.values())
    assert set.union(*places.values()) == {0, 1}
    for key in places:
        numbers = [int(record.value or b"") for record in records if record.key == key]
        assert numbers == sorted(numbers)
