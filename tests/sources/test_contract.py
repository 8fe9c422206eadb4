"""What every source promises, on a real Kafka and on a real Redis."""

from __future__ import annotations

import time

import pytest

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources.protocol import SourceError
from tests.sources.worlds import World, flat, follow_until, read


def test_an_assigned_partition_is_silent_until_it_is_started(world: World) -> None:
    world.write(0, [b"early"])
    source = world.owner()
    assert all(not polled.records and not polled.next_offsets for polled in (source.poll(0.05) for _ in range(4)))
    source.start(Partition(world.topic, 0), 0)
    assert [record.value for record in read(source, 1)] == [b"early"]


def test_records_come_in_order_and_whole(world: World) -> None:
    headers = [("content-type", b"image/jpeg"), ("twice", b"1"), ("twice", b"\xff\x00")]
    values = [f"{i}".encode() * 100 for i in range(40)]
    world.write(1, values, b"cam-\xff", headers, [1_000_000 + i for i in range(40)])
    world.write(0, [b""])
    source = world.owner()
    for partition in source.partitions():
        source.start(partition, 0)
    records = read(source, 41)
    ones = [record for record in records if record.partition.index == 1]
    assert [record.value for record in ones] == values
    assert [record.offset for record in ones] == list(range(40))
    assert [record.timestamp_ms for record in ones] == [1_000_000 + i for i in range(40)]
    assert {record.key for record in ones} == {b"cam-\xff"}
    assert all(record.headers == tuple(headers) for record in ones)
    assert [(r.key, r.value, r.headers) for r in records if r.partition.index == 0] == [(None, b"", ())]


def test_a_poll_says_where_each_partition_stands(world: World) -> None:
    world.write(0, [b"x"] * 30)
    source = world.owner()
    partition = Partition(world.topic, 0)
    source.start(partition, 10)
    position = 10
    while position < 30:
        polled = source.poll(0.5)
        records = flat(polled)
        assert [record.offset for record in records] == list(range(position, position + len(records)))
        position += len(records)
        assert polled.next_offsets == ({partition: position} if records else {})


def test_start_also_seeks_back(world: World) -> None:
    world.write(0, [b"a", b"b", b"c"])
    source = world.owner()
    partition = Partition(world.topic, 0)
    source.start(partition, 2)
    assert [record.value for record in read(source, 1)] == [b"c"]
    source.pause([partition])
    source.start(partition, 1)
    assert [record.value for record in read(source, 2)] == [b"b", b"c"]


def test_a_paused_partition_gives_nothing_and_loses_nothing(world: World) -> None:
    source = world.owner()
    paused, flowing = source.partitions()
    for partition in (paused, flowing):
        source.start(partition, 0)
    source.pause([paused])
    world.write(paused.index, [b"a", b"b"])
    world.write(flowing.index, [b"c"])
    assert [record.value for record in read(source, 1)] == [b"c"]
    assert not source.poll(0.2).records
    source.resume([paused])
    assert [record.value for record in read(source, 2)] == [b"a", b"b"]


def test_the_ends_of_a_log_and_a_time_within_it(world: World) -> None:
    source = world.owner()
    partition, empty = source.partitions()
    assert source.bounds(empty) == (0, 0)
    assert source.offset_at(empty, 0) == 0
    world.write(partition.index, [b"x"] * 500, timestamps_ms=[10_000 + 10 * i for i in range(500)])
    assert source.bounds(partition) == (0, 500)
    assert [source.offset_at(partition, at) for at in (0, 10_000, 10_001, 14_990, 14_991)] == [0, 0, 1, 499, 500]


def test_a_commit_is_seen_by_the_next_member(world: World) -> None:
    source = world.owner()
    partition, other = source.partitions()
    assert source.committed(partition) is None
    source.commit({partition: 17})
    source.close()
    successor = world.owner()
    assert (successor.committed(partition), successor.committed(other)) == (17, None)


def test_members_share_the_partitions_and_a_leaver_passes_its_own_on(world: World) -> None:
    first = world.owner()
    before = first.generation
    second = world.open()
    mine = set(first.partitions())
    theirs: set[Partition] = set()
    deadline = time.monotonic() + 20
    while not len(mine) == len(theirs) == 1:
        assert time.monotonic() < deadline, f"{mine} and {theirs}"
        for source, owned in ((first, mine), (second, theirs)):
            polled = source.poll(0.05)
            owned -= set(polled.revoked)
            owned |= set(polled.assigned)
    assert mine.isdisjoint(theirs)
    assert second.generation > before
    generation = second.generation
    second.close()
    assert follow_until(first, lambda owned: len(owned) == 2, owned=mine) == set(first.partitions())
    assert first.generation > generation


def test_a_member_that_moved_on_neither_starts_nor_commits_what_it_lost(world: World) -> None:
    world.write(0, [b"x"])
    world.write(1, [b"x"])
    first = world.owner()
    second = world.open()
    (lost,) = follow_until(second, lambda owned: len(owned) == 1, first)
    first.start(lost, 0)
    first.commit({lost: 5})
    first.pause([lost])
    first.resume([lost])
    assert not any(first.poll(0.05).records for _ in range(4))
    assert second.committed(lost) is None


def test_the_identity_of_a_log_lasts(world: World) -> None:
    source = world.owner()
    found = [source.log_id(partition) for partition in source.partitions()]
    assert all(found)
    source.close()
    again = world.open()
    assert [again.log_id(partition) for partition in again.partitions()] == found


def test_a_dead_letter_lands_with_its_story(world: World) -> None:
    source = world.owner()
    place = Partition(world.topic, 1)
    record = Record(place, 42, 1234, b"cam-1", b"\x00broken", (("content-type", b"image/png"),))
    source.dead_letter([DeadLetter(record, "cam-1", "corrupt", "not a picture")])
    (letter,) = world.letters()
    assert (letter.key, letter.value) == (f"{place}:42".encode(), b"\x00broken")
    told = dict(letter.headers)
    assert told["content-type"] == b"image/png"
    assert {
        name.removeprefix("layerwatch-"): text for name, text in told.items() if name.startswith("layerwatch-")
    } == {
        "topic": world.topic.encode(),
        "partition": b"1",
        "offset": b"42",
        "timestamp": b"1234",
        "stream": b"cam-1",
        "reason": b"corrupt",
        "error": b"not a picture",
        "key": b"cam-1",
    }


def test_an_idle_poll_returns_in_time_and_a_busy_one_at_once(world: World) -> None:
    source = world.owner()
    partition = Partition(world.topic, 0)
    source.start(partition, 0)
    source.poll(0.1)
    began = time.monotonic()
    assert not source.poll(0.3).records
    assert 0.25 < time.monotonic() - began < 1.5
    began = time.monotonic()
    source.poll(0)
    assert time.monotonic() - began < 0.5
    world.write(0, [b"now"])
    began = time.monotonic()
    assert [record.value for record in flat(source.poll(10.0))] == [b"now"]
    assert time.monotonic() - began < 2.0


def test_a_closed_source_closes_again_and_refuses_the_rest(world: World) -> None:
    source = world.owner()
    source.close()
    source.close()
    with pytest.raises(SourceError):
        source.poll(0)
