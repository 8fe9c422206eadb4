"""Redis that dies, forgets, refuses, stalls, or answers into the void."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from monitor.store.child_process import ChildError
from monitor.store.private_server import PrivateRedis
from tests.faults.proxy import Proxy
from tests.faults.rig import STORY, Daemon, Rig, wait_for

pytestmark = pytest.mark.kafka
MakeRig = Callable[..., Rig]
HALF = STORY // 2


@pytest.fixture
def proxy(own_redis: PrivateRedis) -> Iterator[Proxy]:
    """Between the daemon and its Redis."""
    made = Proxy("127.0.0.1", own_redis.port)
    yield made
    made.close()


@pytest.fixture
def admin(own_redis: PrivateRedis) -> Iterator[redis.Redis]:
    """A client of the server itself."""
    client = redis.Redis.from_url(own_redis.url)
    yield client
    client.close()


def behind(make_rig: MakeRig, proxy: Proxy) -> Rig:
    return make_rig(daemon_redis_url=f"redis://127.0.0.1:{proxy.port}/0")


def begun(rig: Rig) -> Daemon:
    """Half of the story is told and counted, and committed to the group."""
    rig.tell(0, HALF)
    daemon = rig.start()
    rig.await_counted()
    return daemon


def finish(rig: Rig, daemon: Daemon) -> None:
    """The rest is told; the whole is right, and it is still the same process."""
    rig.tell(HALF, STORY)
    rig.check_story()
    assert not daemon.ended()


def away(daemon: Daemon) -> Callable[[], object]:
    return lambda: daemon.events("redis.away")


def test_a_redis_that_is_killed_and_comes_back_with_its_append_only_file(make_rig: MakeRig, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with PrivateRedis(folder, ["--appendonly", "yes", "--appendfsync", "everysec"]) as server:
        rig = make_rig(redis_url=server.url)
        rig.tell(0, HALF)
        daemon = rig.start()
        rig.await_counted(40)
        server.kill()
        wait_for("it to be missed", away(daemon))
        server.start()
        rig.await_counted()
        finish(rig, daemon)
        rig.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[PrivateRedis]:
    """A server that can say what is on its disk, and whose disk takes nothing before it is told to."""
    folder = tmp_path / "on-disk"
    folder.mkdir()
    try:
        with PrivateRedis(folder, ["--appendonly", "yes", "--appendfsync", "no"], at_least=(7, 2)) as server:
            yield server
    except ChildError as error:
        pytest.skip(f"WAITAOF: {error}")


@pytest.mark.faults
def test_nothing_is_committed_before_it_is_on_the_disk_of_redis(make_rig: MakeRig, on_disk: PrivateRedis) -> None:
    rig = make_rig(redis_url=on_disk.url)
    admin = redis.Redis.from_url(on_disk.url)
    daemon = begun(rig)
    wait_for("a commit to be due", lambda: daemon.events("commit.waits_for_disk"))
    assert rig.committed() == 0
    admin.config_set("appendfsync", "everysec")
    wait_for("the commit", lambda: rig.committed() == 2 * HALF)
    on_disk.kill()
    on_disk.start()
    assert [rig.stands(0), rig.stands(1)] == [HALF, HALF]  # what was committed is there, without a replay
    admin.config_set("appendonly", "no")  # as after a failover to a server that keeps none
    finish(rig, daemon)
    wait_for("the commit", lambda: rig.committed() == 2 * STORY)
    admin.close()
    rig.close()


@pytest.mark.faults
def test_a_failover_to_a_replica_that_lags_counts_again_what_was_lost(
    make_rig: MakeRig, own_redis: PrivateRedis, proxy: Proxy, tmp_path: Path
) -> None:
    folder = tmp_path / "replica"
    folder.mkdir()
    with PrivateRedis(folder, ["--replicaof", "127.0.0.1", str(own_redis.port)]) as lag:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        rig = make_rig(daemon_redis_url=url, redis_url=url)
        replica = redis.Redis.from_url(lag.url)
        wait_for("the first sync", lambda: replica.info("replication")["master_link_status"] == "up")
        daemon = begun(rig)
        replica.replicaof("NO", "ONE")  # from here on acknowledged writes do not arrive
        rig.tell(HALF, HALF + 40)
        rig.await_counted()
        proxy.target = ("127.0.0.1", lag.port)
        own_redis.kill()
        proxy.cut()
        rig.await_counted()
        assert [e for e in daemon.events("apply.refused") if e["status"] == "rewind"] or daemon.events(
            "partition.cursor_lost"
        )
        finish_from(rig, daemon, HALF + 40)
        replica.close()
        rig.close()


def test_a_flushall_rebuilds_the_same_counts_and_tells_nothing_twice(
    make_rig: MakeRig, admin: redis.Redis, proxy: Proxy
) -> None:
    rig = behind(make_rig, proxy)
    rig.tell(0, 150)
    daemon = rig.start()
    rig.await_counted()
    wait_for("the alert", rig.hook.ids)
    wait_for("a commit", lambda: rig.committed() == sum(rig.produced))
    before = list(rig.hook.accepted)
    admin.flushall()
    rig.await_counted()
    assert daemon.events("partition.state_lost")
    rig.tell(150, STORY)
    rig.check_story()
    firing = [d["id"] for d in rig.hook.accepted if d["type"] == "alert.firing"]
    assert before[0]["id"] in firing
    assert len(set(firing)) == 1


@pytest.mark.faults
def test_a_flushall_of_a_quiet_stream_is_noticed(rig: Rig, admin: redis.Redis) -> None:
    rig.tell()
    daemon = rig.start()
    rig.check_story()
    wait_for("a commit", lambda: rig.committed() == sum(rig.produced))
    published = rig.store.catalog.layouts(), rig.store.catalog.profiles()
    admin.flushall()
    rig.check_story()
    assert (rig.store.catalog.layouts(), rig.store.catalog.profiles()) == published
    assert all(published)
    assert not daemon.ended()


def refused(rig: Rig, spoil: Callable[[], object], mend: Callable[[], object]) -> None:
    daemon = begun(rig)
    spoil()
    rig.tell(HALF, HALF + 40)
    wait_for("it to be noticed", away(daemon))
    assert rig.counted() == 2 * HALF
    assert daemon.ready()[0] == 503
    mend()
    rig.await_counted()
    rig.tell(HALF + 40, STORY)
    rig.check_story()
    assert not daemon.ended()
    assert not daemon.events("source.failed")  # it kept polling, and its place in the group


@pytest.mark.faults
def test_a_redis_without_memory_is_waited_for(rig: Rig, admin: redis.Redis) -> None:
    refused(rig, lambda: admin.config_set("maxmemory", "1"), lambda: admin.config_set("maxmemory", "0"))


@pytest.mark.faults
def test_a_redis_that_is_read_only_is_waited_for(rig: Rig, admin: redis.Redis) -> None:
    refused(rig, lambda: admin.replicaof("127.0.0.1", "1"), lambda: admin.replicaof("NO", "ONE"))


@pytest.mark.faults
def test_a_redis_that_cannot_save_is_waited_for(rig: Rig, admin: redis.Redis, own_redis: PrivateRedis) -> None:
    def spoil() -> None:
        shutil.rmtree(own_redis.directory)
        admin.config_set("save", "100000 1")
        admin.bgsave()
        wait_for("the save to fail", lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")

    refused(rig, spoil, lambda: admin.config_set("save", ""))


@pytest.mark.faults
def test_a_slow_redis_slows_counting_and_nothing_else(make_rig: MakeRig, proxy: Proxy) -> None:
    rig = behind(make_rig, proxy)
    daemon = begun(rig)
    proxy.delay_s, proxy.bytes_per_s = 0.2, 200_000
    rig.tell(HALF, HALF + 40)
    rig.await_counted()
    proxy.delay_s = proxy.bytes_per_s = 0.0
    rig.tell(HALF + 40, STORY)
    rig.check_story()
    assert not daemon.ended()


def test_answers_that_are_lost_after_the_script_ran_count_nothing_twice(make_rig: MakeRig, proxy: Proxy) -> None:
    rig = behind(make_rig, proxy)
    daemon = begun(rig)
    for step in range(5):
        proxy.swallow_answers = 2
        rig.tell(HALF + 20 * step, HALF + 20 * (step + 1))
        rig.await_counted()
    assert proxy.swallowed >= 5
    rig.check_story()
    assert not daemon.ended()


@pytest.mark.faults
def test_a_connection_that_is_half_open_is_given_up_and_replaced(make_rig: MakeRig, proxy: Proxy) -> None:
    rig = behind(make_rig, proxy)
    daemon = begun(rig)
    proxy.frozen = True
    rig.tell(HALF, HALF + 40)
    wait_for("the time-out", away(daemon))
    proxy.frozen = False
    finish_from(rig, daemon, HALF + 40)


def finish_from(rig: Rig, daemon: Daemon, begin: int) -> None:
    rig.await_counted()
    rig.tell(begin, STORY)
    rig.check_story()
    assert not daemon.ended()


@pytest.mark.faults
def test_a_redis_out_of_reach_holds_memory_within_its_limit(make_rig: MakeRig, proxy: Proxy) -> None:
    limit = 4 * 2**20
    rig = make_rig(
        daemon_redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        settings={"pipeline": {"queue_bytes": limit}, "kafka": {"max_poll_records": 10}},
    )
    daemon = begun(rig)
    proxy.refusing = True
    proxy.cut()
    rig.tell(HALF, STORY)
    wait_for("it to be noticed", away(daemon))
    largest = 0.0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        largest = max(largest, daemon.metric("layerwatch_queue_bytes"))
    assert daemon.metric("layerwatch_paused") == 1
    assert 0 < largest < limit + 10 * 200_000  # the limit, and the one poll that went beyond it
    assert time.time() - daemon.metric("layerwatch_last_poll_timestamp_seconds") < 2
    proxy.refusing = False
    rig.check_story()


@pytest.mark.faults
def test_a_termination_while_redis_is_away_ends_within_the_grace_period(make_rig: MakeRig, proxy: Proxy) -> None:
    rig = make_rig(
        daemon_redis_url=f"redis://127.0.0.1:{proxy.port}/0", settings={"pipeline": {"grace_s": 8, "stall_s": 60}}
    )
    daemon = begun(rig)
    proxy.refusing = True
    proxy.cut()
    rig.tell(HALF, STORY)
    wait_for("it to be noticed", away(daemon))
    began = time.monotonic()
    assert daemon.terminate() == 0
    assert time.monotonic() - began < 8
    proxy.refusing = False
    rig.start()
    rig.check_story()


@pytest.mark.faults
def test_an_archive_whose_counts_are_lost_goes_on_from_the_commit_and_skips_nothing(
    rig: Rig, admin: redis.Redis
) -> None:
    rig.start_ms -= 365 * 86_400_000  # older than every window: nothing is rebuilt, but what is unread is read
    daemon = begun(rig)
    assert daemon.terminate() == 0
    assert rig.committed() == 2 * HALF
    rig.tell(HALF, HALF + 40)
    admin.flushall()
    rig.start()
    rig.await_counted(80)
    assert [rig.stands(0), rig.stands(1)] == [HALF + 40, HALF + 40]
    assert rig.counted() == 80
