"""What `--from-stream` and `replay` read back, on a real Kafka and on a real Redis."""

from __future__ import annotations

import base64
import json
from itertools import islice

import numpy as np
import pytest

from detectors.images.reading import InputError
from monitor.cli.learning import collect
from monitor.ingest.settings import ValueSettings
from monitor.sources.read_back import read_back
from tests.pictures import draw, encoded
from tests.sources.worlds import RedisWorld, World

T0_MS = 1_790_000_000_000


@pytest.fixture
def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encoded(draw(rng)) for _ in range(30)]


def fill(world: World, images: list[bytes]) -> None:
    """cam-7 one image a second in each partition, cam-8 between them in one; one record of cam-7 is empty."""
    stamps = [T0_MS + 1000 * i for i in range(10)]
    world.write(0, images[:10], b"cam-7", timestamps_ms=stamps)
    world.write(1, [*images[10:14], b"", *images[15:20]], b"cam-7", timestamps_ms=stamps)
    world.write(1, images[20:], b"cam-8", timestamps_ms=stamps)


def test_a_stream_s_own_images_are_collected_from_all_partitions_and_no_others(
    world: World, images: list[bytes]
) -> None:
    fill(world, images)
    found = [image for _, image in collect(world.config, "cam-7", T0_MS)]
    assert sorted(found) == sorted(images[:14] + images[15:20])
    assert [i for i in found if i in images[:10]] == images[:10], "in the order of their log"
    assert len({name for name, _ in collect(world.config, "cam-7", T0_MS)}) == 19


def test_what_is_older_or_beyond_the_limit_is_left_out(world: World, images: list[bytes]) -> None:
    fill(world, images)
    since = [image for _, image in collect(world.config, "cam-7", T0_MS + 7000)]
    assert sorted(since) == sorted(images[7:10] + images[17:20])
    assert len(list(islice(collect(world.config, "cam-7", T0_MS), 5))) == 5
    for stream, since_ms in (("cam-9", T0_MS), ("cam-7", T0_MS + 10_000)):
        with pytest.raises(InputError, match=f"no such image of stream '{stream}'"):
            list(collect(world.config, stream, since_ms))


def test_a_span_is_half_open_and_is_read_without_a_trace(world: World, images: list[bytes]) -> None:
    fill(world, images)
    for _ in range(2):
        times = [
            record.timestamp_ms for record in read_back(world.config.source_settings(), T0_MS + 2000, T0_MS + 4000)
        ]
        assert sorted(times) == [T0_MS + 2000] * 3 + [T0_MS + 3000] * 3
    owner = world.owner()
    assert all(owner.committed(partition) is None for partition in owner.partitions())


def test_a_span_without_a_beginning_has_records_without_a_timestamp_too(world: World, images: list[bytes]) -> None:
    """The broker finds no record by a time that it does not have; in a span they stand where the log has them."""
    absent = -5 if isinstance(world, RedisWorld) else 0
    world.write(0, images[:4], b"cam-7", timestamps_ms=[absent, T0_MS, absent, T0_MS + 9000])
    settings = world.config.source_settings()
    assert [record.timestamp_ms for record in read_back(settings)] == [absent, T0_MS, absent, T0_MS + 9000]
    since = [record.timestamp_ms for record in read_back(settings, T0_MS, T0_MS + 5000)]
    assert since == [T0_MS, absent]


def test_records_know_about_when_they_came_whatever_one_timestamp_says(world: World) -> None:
    stamps = [T0_MS + 1000 * i for i in range(60)]
    stamps[20] = T0_MS + 30 * 86_400_000
    world.write(0, [b"x"] * 60, b"cam-7", timestamps_ms=stamps)
    found = list(read_back(world.config.source_settings()))
    assert len(found) == 60
    assert found[-1].read_ms is None
    for i, record in enumerate(found[:-1]):
        assert record.read_ms is not None
        assert 0 < record.read_ms - (T0_MS + 1000 * i) <= 20_000


def test_images_inside_json_are_collected(world: World, images: list[bytes]) -> None:
    values = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images[:3]]
    world.write(0, [*values, images[3]], b"cam-7", timestamps_ms=[T0_MS] * 4)
    config = world.config.model_copy(update={"value": ValueSettings(type="json")})
    assert [image for _, image in collect(config, "cam-7", T0_MS)] == images[:3]
