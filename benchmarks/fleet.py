"""What a decided bucket costs with N streams: p-values are drawn; store, rules and evaluator are the real ones.

    python -m benchmarks.fleet [--streams N] [--shards N] [--cluster] [--json]

Every stream sends `--rate` images a bucket through `Partitions.apply`; one in a hundred begins to drift, and at the end
these and no others must fire. For each size: processor time of the evaluator (python_s) and of Redis (redis_s), bytes
that go to the append-only file, the longest single command, all for one decided bucket; memory of Redis, and how long
another evaluator takes to take over.

With several shards each is judged by a process of its own, as far as its state goes: they take turns here, so that each
one's processor time is measured alone. python_s is their sum, busiest_s the most of one; recovery_s is of the slowest.
With --cluster the state lies in a Redis Cluster of three nodes; redis_s is their sum.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy reads them

import argparse
import copy
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import redis
import structlog
from numpy.typing import NDArray
from pydantic import SecretStr
from redis.cluster import RedisCluster

from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.core.settings import BucketSettings
from monitor.core.types import AlertPhase, Delta, Partition, StreamFacts
from monitor.evaluate import lease
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.presentation import Presentation
from monitor.evaluate.replica import Replica
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.rate import RateRule
from monitor.rules.rule import Rule
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

LEARNED, PROPERTIES = 5, 17
SIGNALS = ("ood", *(f"layer{i}" for i in range(1, LEARNED)), *(f"property{i}" for i in range(PROPERTIES)))
LAYOUT = Layout(
    SIGNALS,
    (2000,) * len(SIGNALS),
    tuple(i >= LEARNED for i in range(len(SIGNALS))),
    tuple(i < LEARNED for i in range(len(SIGNALS))),
    (1.0,) * len(SIGNALS),
)
BUCKET_MS, T0_MS = 10_000, 1_750_000_000_000
SIZES = (100, 1_000, 10_000, 50_000)
PARTITIONS = 12
DRIFTS = 100
"""One stream in so many drifts: half of its images lie beyond the 1 % cut of `ood`."""
PER_DELTA = 500
AOF = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
SLOW = ("--slowlog-log-slower-than", "1000", "--slowlog-max-len", "100000")


def rules_of(streams: int) -> tuple[Rule, ...]:
    """The rules about images of config.yaml."""
    return (
        SequentialRule(name="drift", kind="sequential", signals=("*",), expected_streams=streams),
        RateRule(name="many-unusual", kind="rate", threshold=0.2, keep_firing_for=60),
    )


class Fleet:
    """N streams that send all the time."""

    def __init__(self, store: Store, streams: int, rate: int) -> None:
        self.store, self.rate = store, rate
        self.names = [f"site-{s % 50}/cam-{s}" for s in range(streams)]
        self.drifting = {name for s, name in enumerate(self.names) if s % DRIFTS == 0}
        self._rng = np.random.default_rng(0)
        self._logs = [Partition("images", i) for i in range(PARTITIONS)]
        self._next = dict.fromkeys(self._logs, 0)
        store.catalog.register_partitions(self._logs)
        store.catalog.put_layouts({"fp": LAYOUT})
        for log in self._logs:
            store.partitions.start(log, 1, "t", 0)

    def send(self, bucket: int, drifts: bool) -> None:
        """The images of one bucket; they close the bucket before."""
        start_ms, table = T0_MS + bucket * BUCKET_MS, self._drawn(drifts)
        for log in self._logs:
            mine = list(range(log.index, len(self.names), PARTITIONS))
            for first in range(0, max(len(mine), 1), PER_DELTA):
                part = mine[first : first + PER_DELTA]
                vectors = {("fp", start_ms, self.names[s]): table[s] for s in part}
                facts = {self.names[s]: StreamFacts(b"d" * 16, 1, "640x480/RGB", start_ms, start_ms) for s in part}
                offset = self._next[log]
                self._next[log] = offset + 1
                self.store.partitions.apply([Delta(log, "t", offset, offset + 1, start_ms, vectors, facts)])

    def _drawn(self, drifts: bool) -> NDArray[np.uint32]:
        """(N, V) counts: those of p-values that are drawn evenly, but for `ood` of the streams that drift."""
        shares, streams = -np.diff([1.0, *LEVELS, 0.0]), len(self.names)
        table = np.zeros((streams, LAYOUT.size), dtype=np.uint32)
        drawn = self._rng.multinomial(self.rate, shares, (streams, len(SIGNALS)))
        table[:, : len(SIGNALS) * BINS] = drawn.reshape(streams, -1)
        if drifts:
            unusual = np.where(np.arange(BINS) >= LEVELS.index(0.01) + 1, shares, 0)
            moved = shares / 2 + unusual / unusual.sum() / 2
            table[::DRIFTS, :BINS] = self._rng.multinomial(self.rate, moved, len(table[::DRIFTS]))
        table[:, IMAGES] = self.rate
        return table

    def evaluator(self, held: HeldShard) -> Evaluator:
        """As another process would start it."""
        buckets = BucketSettings(seconds=BUCKET_MS // 1000, lateness_s=0)
        closing = Closing(self.store, buckets, SelfAlerts(self.store, "fleet", has_receivers=True))
        return Evaluator(self.store, rules_of(len(self.names)), {}, closing, Presentation("fleet"), held)

    def wrong(self) -> dict[str, int]:
        """Alerts of the drift rule that are missing, and that are too many."""
        alerts = self.store.shards.alerts().values()
        firing = {a.stream for a in alerts if a.rule == "drift" and a.phase is AlertPhase.FIRING}
        return {"missing": len(self.drifting - firing), "false": len(firing - self.drifting)}


class Costs:
    """Adds up what happens within `measured`."""

    def __init__(self, nodes: Sequence[redis.Redis]) -> None:
        self._nodes = nodes
        self.sums: dict[str, float] = defaultdict(float)
        self.of_shard: dict[int, float] = defaultdict(float)
        """Processor time of each shard's process."""
        self.longest_ms = 0.0

    @contextmanager
    def measured(self, shard: int) -> Iterator[None]:
        """One turn of a shard's process, in this thread."""
        for node in self._nodes:
            node.slowlog_reset()
        before, cpu_s, wall_s = self._servers(), time.thread_time(), time.perf_counter()
        yield
        took_s = time.thread_time() - cpu_s
        self.of_shard[shard] += took_s
        self.sums["python_s"] += took_s
        self.sums["wall_s"] += time.perf_counter() - wall_s
        for name, value in self._servers().items():
            self.sums[name] += value - before[name]
        slow = [entry["duration"] / 1000 for node in self._nodes for entry in node.slowlog_get(100_000)]
        self.longest_ms = max([self.longest_ms, *slow])

    def stage(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same call; its processor time is added to that stage."""

        def timed(*args: Any) -> Any:
            started = time.thread_time()
            try:
                return act(*args)
            finally:
                self.sums[f"{name}_s"] += time.thread_time() - started

        return timed

    def _servers(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for node in self._nodes:
            used, kept = node.info("cpu"), node.info("persistence")
            found["redis_s"] += used["used_cpu_user"] + used["used_cpu_sys"]
            found["written_bytes"] += kept["aof_current_size"]
        return found


def staged(evaluator: Evaluator, costs: Costs) -> None:
    """Time the steps of a bucket."""
    for name, owner, method in (
        ("seal", evaluator._closing, "seal"),
        ("read", evaluator.memory, "read_bucket"),
        ("judge", evaluator, "_judge"),
        ("decide", evaluator, "_decide"),
    ):
        setattr(owner, method, costs.stage(name, getattr(owner, method)))


@contextmanager
def servers(is_cluster: bool) -> Iterator[tuple[RedisSettings, list[redis.Redis]]]:
    """Redis of its own: how to reach it, and its nodes."""
    with ExitStack() as stack:
        options = [*AOF, *SLOW]
        if is_cluster:
            from tests.redis_cluster import redis_cluster  # noqa: PLC0415 - only a cluster needs it

            folder = Path(stack.enter_context(TemporaryDirectory()))
            started = list(stack.enter_context(redis_cluster(folder, options)).values())
        else:
            started = [stack.enter_context(PrivateRedis(options=options))]
        mode: Literal["cluster", "single"] = "cluster" if is_cluster else "single"
        nodes = [stack.enter_context(redis.Redis.from_url(server.url)) for server in started]
        yield RedisSettings(mode=mode, url=SecretStr(started[0].url), timeout_s=60), nodes


def places(settings: RedisSettings, store: Store) -> list[int]:
    """The port of the node on which each shard lies."""
    with RedisCluster.from_url(settings.url.get_secret_value()) as client:
        return [client.get_node_from_key(shard.keys.key("evaluator")).port for shard in store.shards.all()]


def measure(streams: int, options: argparse.Namespace) -> dict[str, Any]:
    """The costs of one size; the server is its own."""
    with ExitStack() as stack:
        settings, nodes = stack.enter_context(servers(options.cluster))
        store = open_store(settings, "fleet")
        stack.callback(store.close)
        fleet = Fleet(store, streams, options.rate)
        processes = processes_of(fleet, settings, options.shards, stack)
        costs = Costs(nodes)
        warm, buckets = options.warm, options.buckets
        fleet.send(0, drifts=False)
        for bucket in range(1, warm + buckets + 1):
            fleet.send(bucket, drifts=bucket >= warm // 2)
            if bucket == warm + 1:
                for process in processes:
                    for judged in process.judged.values():
                        staged(judged.evaluator, costs)
            for number, process in enumerate(processes):
                if bucket <= warm:
                    process.turn()
                    continue
                with costs.measured(number):
                    process.turn()
        decided = {state.bucket_ms for state in store.shards.states()}
        if decided != {T0_MS + (warm + buckets - 1) * BUCKET_MS}:
            raise SystemExit(f"buckets {decided} are the last decided: the evaluators do not keep up")
        found: dict[str, Any] = {"streams": streams, "signals": len(SIGNALS), "rate": options.rate, "buckets": buckets}
        found |= {"shards": options.shards, "nodes": len(nodes)}
        found |= {name: value / buckets for name, value in costs.sums.items()}
        found["busiest_s"] = max(costs.of_shard.values()) / buckets
        found |= {"longest_command_ms": costs.longest_ms, **recovery(fleet), **fleet.wrong()}
        found["redis_memory_bytes"] = sum(node.info("memory")["used_memory"] for node in nodes)
        if options.cluster:
            found["shards_on"] = places(settings, store)
        return found


def processes_of(fleet: Fleet, settings: RedisSettings, shards: int, stack: ExitStack) -> list[Replica]:
    """One process for each shard, each with a connection of its own; the first one holds the first shard."""
    lease.LEASE_S = 100_000.0  # sending takes longer than a lease lasts
    rules = rules_of(len(fleet.names))
    made = []
    for _ in range(shards):
        store = open_store(settings, "fleet")
        stack.callback(store.close)
        own = copy.copy(fleet)
        own.store = store
        made.append(Replica(store, own.evaluator, rules, shards))
    for _ in range(6):  # the number of shards is changed, then they are shared out
        for process in made:
            process.turn()
    held = [sorted(process.judged) for process in made]
    if sorted(map(len, held)) != [1] * shards or held[0] != [0]:
        raise SystemExit(f"the shards are not shared out: {held}")
    return made


def recovery(fleet: Fleet) -> dict[str, float]:
    """What it takes to take over a shard: of the slowest."""
    slowest = {"recovery_s": 0.0, "recovery_cpu_s": 0.0}
    for shard in fleet.store.shards.all():
        other, started, cpu_s = fleet.evaluator(HeldShard(shard)), time.perf_counter(), time.thread_time()
        other.load()
        found = {"recovery_s": time.perf_counter() - started, "recovery_cpu_s": time.thread_time() - cpu_s}
        slowest = max(slowest, found, key=lambda took: took["recovery_s"])
    return slowest


HEAD = (
    "streams shards  python_s (  seal   read  judge decide)  busiest_s  redis_s  written MB  longest ms  recovery s"
    "  Redis MB  missing  false"
)


def row(run: dict[str, Any]) -> str:
    """One line of the table."""
    # to judge includes to read
    own = {**run, "judge_s": run["judge_s"] - run["read_s"]}
    stages = " ".join(f"{own[f'{stage}_s']:6.3f}" for stage in ("seal", "read", "judge", "decide"))
    return (
        f"{run['streams']:7} {run['shards']:6}  {run['python_s']:8.3f} ({stages})  {run['busiest_s']:9.3f}"
        f"  {run['redis_s']:7.3f}  {run['written_bytes'] / 1e6:10.2f}  {run['longest_command_ms']:10.1f}"
        f"  {run['recovery_s']:10.1f}  {run['redis_memory_bytes'] / 1e6:8.0f}  {run['missing']:7}  {run['false']:5}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, help=f"one size; without it {', '.join(map(str, SIZES))}")
    parser.add_argument("--shards", type=int, default=1, help="each judged by a process of its own (1)")
    parser.add_argument("--cluster", action="store_true", help="in a Redis Cluster of three nodes")
    parser.add_argument("--rate", type=int, default=10, help="images a stream and bucket")
    parser.add_argument("--warm", type=int, default=32, help="buckets before the measured ones: windows fill in 30")
    parser.add_argument("--buckets", type=int, default=8, help="measured ones")
    parser.add_argument("--json", action="store_true", help='print {"runs": [...]} and nothing else')
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    runs = []
    if not options.json:
        print(HEAD)
    for streams in [options.streams] if options.streams else SIZES:
        runs.append(measure(streams, options))
        if not options.json:
            print(row(runs[-1]), flush=True)
            if options.cluster:
                print("shards lie on the nodes with ports", *runs[-1]["shards_on"])
    if options.json:
        json.dump({"runs": runs}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
