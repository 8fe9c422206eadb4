"""Servers of which one dies and another takes over: three brokers, a Redis Cluster, Redis Sentinel."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.cluster import RedisCluster

from monitor.store.child_process import ChildProcess, free_port
from monitor.store.private_server import PrivateRedis, find_redis_server
from tests.faults.rig import STORY, Rig, commits, wait_for
from tests.kafka.broker import Brokers, BrokerUnavailableError
from tests.redis_cluster import redis_cluster

pytestmark = [pytest.mark.kafka, pytest.mark.faults]
MakeRig = Callable[..., Rig]
HALF = STORY // 2


@pytest.fixture
def brokers(tmp_path: Path, kafka_broker: object) -> Iterator[Brokers]:
    try:
        with Brokers(tmp_path) as made:
            yield made
    except BrokerUnavailableError as error:  # kafka_broker was somebody's cluster
        pytest.skip(str(error))


def test_a_leader_of_three_brokers_that_is_killed_costs_no_record_and_counts_none_twice(
    make_rig: MakeRig, brokers: Brokers
) -> None:
    rig = make_rig(cluster=brokers)
    rig.tell(0, HALF)
    daemon = rig.start()
    rig.await_counted(40)
    leader = brokers.leader(rig.topic, 0)
    leader.kill()
    rig.renew_producer()
    rig.tell(HALF, STORY)
    rig.check_story()
    assert brokers.leader(rig.topic, 0) is not leader
    wait_for("commits to the brokers that are left", lambda: rig.committed() == sum(rig.produced))
    assert not daemon.ended()
    leader.start()
    assert commits(brokers, rig.name, rig.partitions)


def test_a_redis_cluster_of_which_a_node_is_killed_keeps_the_counts(make_rig: MakeRig, tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as nodes:
        url = next(iter(nodes.values())).url
        settings = {"redis": {"mode": "cluster"}, "evaluation": {"shards": 4}}
        rig = make_rig(redis_url=url, partitions=4, settings=settings)
        rig.tell(0, HALF)
        daemon = rig.start()
        rig.await_counted(60)
        with RedisCluster.from_url(url) as client:
            owners = [client.get_node_from_key(rig.store.partitions._keys.of(p, "cursor")) for p in rig.partitions]
            shards = [client.get_node_from_key(shard.keys.key("evaluator")).port for shard in rig.store.shards.all()]
        assert len({owner.port for owner in owners}) > 1  # the state is spread, or the test shows nothing
        assert (len(shards), set(shards)) == (4, set(nodes)), "each node has some shard"
        victim = nodes[owners[0].port]
        victim.kill()
        wait_for("it to be missed", lambda: daemon.events("redis.away"))
        victim.start()
        rig.await_counted()
        rig.tell(HALF, STORY)
        rig.check_story()
        assert not daemon.ended()
        rig.close()


def test_a_node_of_a_redis_cluster_that_falls_back_shows_the_rules_no_image_twice(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    with redis_cluster(tmp_path) as nodes:
        url = next(iter(nodes.values())).url
        rig = make_rig(redis_url=url, partitions=4, settings={"redis": {"mode": "cluster"}})
        rig.tell(0, HALF)
        daemon = rig.start()
        rig.await_counted()
        with RedisCluster.from_url(url) as client:
            ports = [client.get_node_from_key(rig.store.partitions._keys.of(p, "cursor")).port for p in rig.partitions]
            evaluator = client.get_node_from_key(rig.store._monitor_keys.key("evaluator")).port
        victim = nodes[next(port for port in ports if port != evaluator)]
        fallen = [p for p, port in zip(rig.partitions, ports, strict=True) if port == victim.port]
        file = victim.directory / "appendonlydir"
        old = shutil.copytree(file, tmp_path / "old")
        sealed = rig.store.partitions.sealed(fallen)
        rig.tell(HALF, HALF + 60)
        rig.await_counted()
        wait_for(
            "more buckets to be decided",
            lambda: decided(rig) > max(until.bucket_ms for until in sealed.values()) + 30_000,
        )
        victim.kill()
        shutil.rmtree(file)
        shutil.copytree(old, file)
        victim.start()
        rig.await_counted()
        rig.tell(HALF + 60, STORY)
        rig.check_story()  # bin by bin: nothing was folded into a later bucket
        assert daemon.events("partition.fell_back")
        assert not daemon.ended()
        rig.close()


def decided(rig: Rig) -> int:
    """The last bucket decided."""
    return rig.store.evaluation.state().bucket_ms or 0


class Sentinel(ChildProcess):
    """Watches the primary, alone."""

    def __init__(self, folder: Path, primary: PrivateRedis) -> None:
        super().__init__("the sentinel", folder / "sentinel.log", stop_timeout_s=1.0)
        self.port = free_port()
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 10000\n"
        )

    def start(self) -> None:
        self._launch([str(find_redis_server()), str(self._config), "--sentinel"])


def test_sentinel_fails_over_to_a_replica_that_lags_and_what_was_lost_is_counted_again(
    make_rig: MakeRig, own_redis: PrivateRedis, tmp_path: Path
) -> None:
    admin = redis.Redis.from_url(own_redis.url)
    admin.execute_command("ACL", "SETUSER", "copy", "on", ">secret", "+psync", "+replconf", "+ping")
    link = ["--replicaof", "127.0.0.1", str(own_redis.port), "--masteruser", "copy", "--masterauth", "secret"]
    with PrivateRedis(options=link) as spare, redis.Redis.from_url(spare.url) as replica:
        wait_for("the first sync", lambda: replica.info("replication")["master_link_status"] == "up")
        with Sentinel(tmp_path, own_redis) as sentinel, redis.Redis(port=sentinel.port) as watcher:

            def state(of: str) -> list[dict[str, str]]:
                return watcher.execute_command("SENTINEL", of, "mymaster")

            wait_for("sentinel to know the replica", lambda: state("SLAVES"))
            settings = {"redis": {"mode": "sentinel", "sentinels": [f"127.0.0.1:{sentinel.port}"]}}
            rig = make_rig(settings=settings)
            rig.tell(0, HALF)
            daemon = rig.start()
            rig.await_counted()
            # from here on acknowledged writes do not arrive at the replica
            admin.execute_command("ACL", "SETUSER", "copy", "off")
            admin.execute_command("CLIENT", "KILL", "TYPE", "replica")
            rig.tell(HALF, HALF + 40)
            rig.await_counted()
            admin.close()
            own_redis.kill()
            wait_for("the failover", lambda: replica.info("replication")["role"] == "master")
            rig.await_counted()
            refused = [event["status"] for event in daemon.events("apply.refused")]
            assert "rewind" in refused or daemon.events("partition.cursor_lost")
            rig.tell(HALF + 40, STORY)
            rig.check_story()
            assert not daemon.ended()
            rig.close()
