"""What only Redis can do to us, on a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from monitor.core.types import Partition
from monitor.sources import open_producer, open_source
from monitor.sources.protocol import FatalSourceError, Polled, SourceError
from monitor.sources.redis_streams.log import log_key
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.sources.worlds import RedisWorld, follow_until, read


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as started:
        yield started


def test_a_bounded_log_forgets_its_oldest_records(redis_server: PrivateRedis) -> None:
    world = RedisWorld(redis_server, max_length=100)
    world.write(0, [b"v" * 5000] * 1000)
    source, partition = world.owner(), Partition(world.topic, 0)
    first, end = source.bounds(partition)
    assert end == 1000
    assert 800 <= first <= 900  # about 100 are left: Redis forgets whole nodes
    source.start(partition, first)
    assert [record.offset for record in read(source, 1000 - first)] == list(range(first, 1000))
    assert source.offset_at(partition, 0) == first
    world.leave()


def test_a_log_that_is_begun_while_its_bounds_are_asked_for_is_read_from_its_first_record(
    redis_server: PrivateRedis,
) -> None:
    world = RedisWorld(redis_server)
    source, firsts = world.open(), set()
    for i in range(200):  # each is begun at another moment of the question
        writer = threading.Thread(target=world.write, args=(i, [b"v"]))
        writer.start()
        while writer.is_alive():
            firsts.add(source.bounds(Partition(world.topic, i))[0])
        writer.join()
    source.close()
    world.leave()
    assert firsts == {0}


def test_records_trimmed_before_they_were_read_are_noticed(redis_server: PrivateRedis) -> None:
    world = RedisWorld(redis_server, max_length=10)
    world.write(0, [b"v" * 5000] * 5)
    source, partition = world.owner(), Partition(world.topic, 0)
    source.start(partition, 0)
    read(source, 5)
    world.write(0, [b"v" * 5000] * 100)
    with pytest.raises(SourceError, match=f"{partition}: trimmed from 5 to .* unread"):
        source.poll(0)
    world.leave()


def test_large_records_are_read_in_small_batches(redis_server: PrivateRedis) -> None:
    world = RedisWorld(redis_server, lease_s=60)  # a busy machine may need longer than a short lease for 16 MiB
    world.write(0, [b"v" * 2**20] * 40)
    source = world.owner()
    source.start(Partition(world.topic, 0), 0)
    sizes = [len(batch) for _ in range(4) for batch in source.poll(0).records.values()]
    assert sizes[0] == 16  # before anything is known of their size
    assert set(sizes[1:]) == {4}  # 4 MiB
    world.leave()


def test_a_trimmed_unread_partition_can_be_read_on_from_its_first_record(redis_server: PrivateRedis) -> None:
    world = RedisWorld(redis_server, max_length=10)
    world.write(0, [b"v" * 5000] * 100)
    source, partition = world.owner(), Partition(world.topic, 0)
    source.start(partition, 0)
    with pytest.raises(SourceError):
        source.poll(0)
    source.close()
    successor = world.owner()
    first, end = successor.bounds(partition)
    successor.start(partition, first)
    assert len(read(successor, end - first)) == end - first
    world.leave()


def test_a_member_that_falls_silent_loses_its_partitions(redis_server: PrivateRedis) -> None:
    world = RedisWorld(redis_server)
    silent = world.owner()
    heir = world.open()
    follow_until(heir, lambda owned: len(owned) == 2)  # without a poll of the other
    lost = Polled()
    deadline = time.monotonic() + 10
    while not lost.revoked:
        assert time.monotonic() < deadline
        lost = silent.poll(0.05)
    assert len(lost.revoked) == 2
    world.leave()


def test_an_absent_redis_is_told_and_a_returned_one_can_be_used(server: PrivateRedis) -> None:
    world = RedisWorld(server)
    source, producer = world.owner(), open_producer(world.config.source_settings())
    producer.send(world.topic, b"x")
    producer.flush()
    server.kill()
    with pytest.raises(SourceError, match="redis stream: "):
        source.poll(0.1)
    producer.send(world.topic, b"x")
    with pytest.raises(SourceError, match="redis stream: "):
        producer.flush()
    source.close()
    server.start()
    producer.send(world.topic, b"y")
    producer.flush()
    producer.close()
    successor = world.owner()  # this Redis kept nothing: the log is a new one
    for partition in successor.partitions():
        successor.start(partition, 0)
    assert [record.value for record in read(successor, 1)] == [b"y"]
    world.leave()


def test_refused_credentials_are_fatal_and_a_user_with_its_password_works(server: PrivateRedis) -> None:
    world = RedisWorld(server)
    world.connection.client.execute_command("ACL", "SETUSER", "lw", "on", ">right", "~*", "&*", "+@all")
    for password in ("wrong", "right"):
        redis = RedisSettings(url=SecretStr(server.url.replace("redis://", f"redis://lw:{password}@")))
        config = world.config.model_copy(update={"redis": redis})
        if password == "wrong":
            with pytest.raises(FatalSourceError, match="refuses our credentials"):
                open_source(config.source_settings())
        else:
            source = open_source(config.source_settings())
            source.poll(0)
            source.close()
    world.leave()


def test_a_log_that_redis_lost_has_another_identity(server: PrivateRedis) -> None:
    world = RedisWorld(server)
    source, partition = world.owner(), Partition(world.topic, 0)
    before = source.log_id(partition)
    world.connection.client.flushall()
    assert source.log_id(partition) not in {"", before}
    world.leave()


def test_a_topic_with_braces_keeps_its_keys_in_one_slot() -> None:
    assert log_key(Partition("a}b{c", 3)) == "{lwq:a%7Db%7Bc:3}"
