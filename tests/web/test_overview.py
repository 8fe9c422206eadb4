"""What is kept in memory of sealed buckets is what a fresh look at Redis gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.fleet.history import REACH_MS, History
from monitor.fleet.overview import Overview, StreamJson
from monitor.fleet.stream_view import Asked, view_stream
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.e2e.running import wait_for
from tests.web.fleet import BUCKETS, HOSTILE, IMAGES, LOGS, NOW_MS, STREAMS, Fleet, bucket_ms, build

LATENESS_MS = 10_000


@pytest.fixture(scope="module")
def own_redis() -> Iterator[PrivateRedis]:
    """Not the one that all tests share: here everything gets lost."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture(scope="module")
def own_store(own_redis: PrivateRedis) -> Iterator[Store]:
    store = open_store(RedisSettings(url=SecretStr(own_redis.url)), "own")
    yield store
    store.close()


@pytest.fixture(scope="module")
def built(own_store: Store) -> tuple[Fleet, dict[bytes, bytes]]:
    """A fleet, and its keys as Redis dumps them."""
    fleet = build(own_store)
    client = own_store._connection.client
    return fleet, {key: client.dump(key) for key in client.scan_iter()}


@pytest.fixture
def own(own_store: Store, built: tuple[Fleet, dict[bytes, bytes]]) -> Fleet:
    """A fleet of the test's own."""
    fleet, keys = built
    with own_store._connection.client.pipeline() as pipe:
        pipe.flushall()
        for key, value in keys.items():
            pipe.restore(key, 0, value)
        pipe.execute()
    return Fleet(own_store, copy.deepcopy(fleet.rng), dict(fleet.offsets))


def followed(store: Store, for_s: float = 60.0) -> History:
    history = History(store)
    while history.follow(LOGS, NOW_MS, for_s):
        pass
    history.read_open(LOGS, NOW_MS)
    return history


def fresh(store: Store) -> Mapping[str, StreamJson]:
    return Overview(store, LATENESS_MS).snapshot().streams


def test_a_history_read_in_pieces_is_the_same_as_one_read_at_once(own: Fleet) -> None:
    at_once, in_pieces = followed(own.store), followed(own.store, 0.0)
    assert in_pieces.shares(NOW_MS) == at_once.shares(NOW_MS)
    assert in_pieces.lines(STREAMS, NOW_MS, 30) == at_once.lines(STREAMS, NOW_MS, 30)
    assert len(in_pieces.lines(STREAMS, NOW_MS, 30)) == len(STREAMS)


def test_each_sealed_bucket_is_read_once(own: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[object, str, int]] = []
    table = own.store.counts.table
    monkeypatch.setattr(own.store.counts, "table", lambda member: read.append(member) or table(member))
    history = followed(own.store)
    sealed = [member for member in read if member[2] < bucket_ms(BUCKETS - 1)]
    assert len(sealed) == len(set(sealed)) == (BUCKETS - 1) * len(LOGS)
    read.clear()
    assert history.follow(LOGS, NOW_MS, 60.0) == 0
    assert read == []
    own.store.partitions.seal(LOGS, bucket_ms(BUCKETS - 1))
    history.follow(LOGS, NOW_MS, 60.0)
    history.read_open(LOGS, NOW_MS)
    assert [member[2] for member in read] == [bucket_ms(BUCKETS - 1)] * len(LOGS)


def test_a_line_holds_every_image_once_and_in_its_step(own: Fleet) -> None:
    lines = followed(own.store).lines(STREAMS, NOW_MS, 30)
    for stream in STREAMS:
        assert sum(images for _, images, _ in lines[stream]) == own.store.counts.totals(LOGS)[stream].applied
    drifted = {start for start, images, passed in lines[HOSTILE] if passed > images / 3}
    assert drifted == {start for start, _, _ in lines[HOSTILE] if start >= bucket_ms(40)}


def test_what_redis_has_lost_is_forgotten_and_read_again(own: Fleet) -> None:
    history = followed(own.store)
    before = history.lines(STREAMS, NOW_MS, 30)
    own.store._connection.client.flushall()
    assert history.follow(LOGS, NOW_MS, 60.0) == 0
    history.read_open(LOGS, NOW_MS)
    assert history.lines(STREAMS, NOW_MS, 30) == {}
    build(own.store)
    history.follow(LOGS, NOW_MS, 60.0)
    history.read_open(LOGS, NOW_MS)
    after = history.lines(STREAMS, NOW_MS, 30)
    assert {s: [images for _, images, _ in line] for s, line in after.items()} == {
        s: [images for _, images, _ in line] for s, line in before.items()
    }


def test_time_moving_on_leaves_only_the_reach(own: Fleet) -> None:
    history = followed(own.store)
    later_ms = NOW_MS + REACH_MS
    history.follow(LOGS, later_ms, 60.0)
    history.read_open(LOGS, later_ms)
    assert history.lines(STREAMS, later_ms, 30) == {}
    assert len(history._sealed) <= 2


def test_a_followed_overview_says_what_a_fresh_one_says(own: Fleet) -> None:
    overview = Overview(own.store, LATENESS_MS)
    overview.start()
    try:
        overview.watch(1)
        wait_for("the past to be read", lambda: not overview.behind)
        overview.changed()
        assert overview.snapshot().streams == fresh(own.store)
        number = overview.newest.number
        own.send(BUCKETS - 1, (HOSTILE,))
        overview.changed()
        assert overview.snapshot().streams == fresh(own.store)
        assert overview.newest.number > number
    finally:
        overview.stop()


def test_a_change_is_seen_at_once_even_if_it_comes_while_the_thread_looks_for_changes(
    own: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    overview = Overview(own.store, LATENESS_MS)
    overview.snapshot()
    overview.watch(1)
    read_stamp = overview._read_stamp

    def read_before_the_change() -> Any:
        stamp = read_stamp()
        monkeypatch.undo()
        own.send(BUCKETS - 1, (HOSTILE,))
        overview.changed()
        return stamp

    monkeypatch.setattr(overview, "_read_stamp", read_before_the_change)
    overview._look()
    assert overview.snapshot().streams == fresh(own.store)


def test_the_first_visitor_reads_nothing_while_the_past_is_read(own: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    overview = Overview(own.store, LATENESS_MS)
    overview.start()
    overview.stop()
    overview.behind = 1
    with monkeypatch.context() as patch:
        patch.setattr(own.store.counts, "totals", lambda _: pytest.fail("Redis was read"))
        assert set(overview.snapshot().streams) == set(STREAMS)
        overview.changed()
        with pytest.raises(pytest.fail.Exception):
            overview.snapshot()


def test_a_time_line_of_days_is_made_of_what_was_rolled_up(own: Fleet) -> None:
    own.send(3 * 8640)
    decided_ms = bucket_ms(3 * 8640)
    for log in LOGS:
        own.store.partitions.seal([log], decided_ms)
        assert own.store.rollup.run(log, decided_ms, decided_ms, 60.0)
    snapshot = Overview(own.store, LATENESS_MS).snapshot()
    last = 2 * IMAGES  # the newest bucket of before was open, and is counted with this one
    assert [point.images for point in view_stream(own.store, snapshot, "calm").points] == [last]
    assert [point.images for point in view_stream(own.store, snapshot, "calm", Asked(span="1d")).points] == [last]
    view = view_stream(own.store, snapshot, "calm", Asked(span="7d"))
    assert sum(point.images for point in view.points) == (BUCKETS + 1) * IMAGES
    assert view.step_ms == 3_600_000
    assert len(view.points) < 4
    assert view.evidence.images == last
