"""Large pictures are kept for the worst images of an hour, within bounds of number, bytes and time; on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from pydantic import SecretStr

from detectors.images.regions import Region
from monitor.core.heat import Heat
from monitor.core.types import Delta, Exemplar, Partition
from monitor.store import Limits, Store, open_store
from monitor.store.pictures import MOST_BYTES
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

P = Partition("images", 0)
START_MS = 1_760_000_400_000
VECTOR = np.ones(15, dtype=np.uint32)


def image(i: int, p_value: float, stream: str = "cam-1") -> Exemplar:
    return Exemplar(f"images/0/{i}", stream, START_MS + i, START_MS, p_value, (p_value,), b"small", "fp")


@pytest.fixture
def store(redis_server: PrivateRedis, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Of a partition that knows cam-1 and cam-2; three images an hour, kept for 1000 s."""
    limits = Limits(exemplars_kept=3, exemplar_retention_s=1000, max_streams=2)
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), request.node.name, limits)
    opened.partitions.start(P, 1, "t", 0)
    vectors = {("fp", START_MS, stream): VECTOR for stream in ("cam-1", "cam-2", "one too many")}
    opened.partitions.apply([Delta(P, "t", 0, 10, START_MS, vectors)])
    yield opened
    opened.close()


def found(store: Store, images: list[Exemplar]) -> list[bytes]:
    return [store.pictures.of([P], e, e.name) for e in images]


def test_only_the_worst_of_an_hour_keep_theirs_in_whatever_order_they_come(store: Store) -> None:
    images = [image(i, p) for i, p in enumerate((0.04, 0.01, 0.03, 0.002, 0.05, 0.02))]
    assert [store.pictures.keep(P, e, b"jpeg %d" % i) for i, e in enumerate(images)] == [
        *(True, True, True, True),  # the fourth takes the place of the first
        *(False, True),
    ]
    assert found(store, images) == [b"", b"jpeg 1", b"", b"jpeg 3", b"", b"jpeg 5"]
    assert store.pictures.names([P], images) == {images[i].name for i in (1, 3, 5)}
    assert store.pictures.keep(P, images[1], b"jpeg 1")
    assert found(store, images) == [b"", b"jpeg 1", b"", b"jpeg 3", b"", b"jpeg 5"]


def test_a_heat_map_is_kept_beside_the_picture_and_goes_with_it(store: Store) -> None:
    rng = np.random.default_rng(0)
    heat = Heat.of(rng.uniform(0, 5, (28, 20)).astype(np.float32), (Region(0.1, 0.2, 0.3, 0.4, 2.5),))
    images = [image(i, 0.01 * (4 - i)) for i in range(4)]
    for e in images[:3]:
        assert store.pictures.keep(P, e, heat=heat)
        assert store.pictures.keep(P, e, b"jpeg")
    kept = store.pictures.heat([P], images)
    assert list(kept) == [e.name for e in images[:3]]
    np.testing.assert_array_equal(kept[images[0].name].levels, heat.levels)
    assert (int(heat.levels.max()), kept[images[0].name].regions) == (255, heat.regions)
    assert store.pictures.keep(P, images[3], heat=heat)
    assert list(store.pictures.heat([P], images)) == [e.name for e in images[1:]]
    assert found(store, images) == [b"", b"jpeg", b"jpeg", b""]


def test_the_line_of_an_image_among_the_worst_of_its_bucket_leads_to_what_is_kept_of_it(store: Store) -> None:
    key, e = ("fp", START_MS, "cam-1"), replace(image(7, 0.1 / 3), id="a\udce9b")
    delta = Delta(P, "t", 10, 20, START_MS, {key: VECTOR}, exemplars=[e], worst={key: [e]})
    store.partitions.apply([delta])
    store.partitions.seal([P], START_MS)
    store.pictures.keep(P, e, b"jpeg", Heat.of(np.ones((2, 2), np.float32), ()))
    (line,) = store.exemplars.worst([P], "fp", "cam-1", (START_MS, START_MS + 1), 3)
    (shown,) = store.exemplars.unusual([P], "fp", "cam-1", START_MS, START_MS + 1000, 3)
    assert line.name == shown.name == e.name
    assert store.pictures.heat([P], [line]).keys() == store.pictures.names([P], [shown]) == {e.name}


def test_hours_streams_and_profiles_have_room_of_their_own(store: Store) -> None:
    here = [image(i, 0.01) for i in range(3)]
    elsewhere = [
        replace(image(5, 0.05), event_time_ms=START_MS + 3_600_000),
        image(6, 0.05, "cam-2"),
        replace(image(7, 0.05), fingerprint="other"),
    ]
    assert all(store.pictures.keep(P, e, e.id.encode()) for e in [*here, *elsewhere])
    assert found(store, [*here, *elsewhere[:2]]) == [e.id.encode() for e in [*here, *elsewhere[:2]]]


def test_the_least_unusual_go_first_where_the_bytes_of_an_hour_are_too_many(store: Store) -> None:
    images = [image(i, 0.01 * (i + 1)) for i in range(3)]
    large, small = b"x" * (MOST_BYTES // 2), b"y" * 100
    for e, picture in zip(images, (large, large, small), strict=True):
        store.pictures.keep(P, e, picture)
    assert found(store, images) == [large, large, b""]
    worst = image(9, 0.001)
    store.pictures.keep(P, worst, small)
    assert found(store, [worst, *images]) == [small, large, b"", b""]


def test_they_end_with_the_thumbnails_and_streams_beyond_the_limit_have_none(store: Store) -> None:
    e = image(1, 0.01)
    store.pictures.keep(P, e, b"jpeg")
    keys = [key for key in store._connection.client.scan_iter("*test_they_end*") if b"cam-1" in key]
    assert len(keys) == 2
    assert all(990 < store._connection.client.ttl(key) <= 1000 for key in keys)
    beyond = image(2, 0.01, "one too many")
    assert not store.pictures.keep(P, beyond, b"jpeg")
    assert found(store, [beyond]) == [b""]
