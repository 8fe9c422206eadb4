"""The stream, the faults and the renames of a soak, and the samples that are taken meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.soak_claims import Drift
from monitor.core.types import Partition
from monitor.store import StoreError
from monitor.store.private_server import PrivateRedis
from tests.faults.proxy import Proxy
from tests.faults.rig import Daemon, Rig, bounds, normal, strange, wait_for
from tests.kafka.broker import Broker

SAMPLE_S = 15.0
FAULT_EVERY_S = (8.0, 25.0)
LANES = 2


class Soak:
    """What runs, what breaks, what is seen.

    Args:
        drifts: when the images of which lanes are strange.
        bad: whether some records are no pictures.
    """

    def __init__(
        self, rig: Rig, broker: Broker, redis: tuple[PrivateRedis, Proxy], seed: int, drifts: Sequence[Drift], bad: bool
    ) -> None:
        self.rig, self.broker, (self.server, self.proxy), self.rng = rig, broker, redis, random.Random(seed)
        self.drifts, self.bad = drifts, bad
        self.steady = rig.start()
        self.victim = rig.start()
        self.renamed: list[Partition] = []
        """The partitions of the former topic."""
        self.former_receivers: list[str] = []
        self.strange: Counter[tuple[str, int]] = Counter()
        """(drift, lane) -> seconds of strange images that were written: none while the broker is away."""
        self.faults: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.over = threading.Event()
        self._writing = threading.Lock()
        self.begun_s, self.begun_ms = time.monotonic(), time.time_ns() // 1_000_000

    # ---------------------------------------------------------------- the stream

    def produce(self, rate: float) -> None:
        """Images in real time; some bad, some late, some strange."""
        n = 0
        while not self.over.wait(1.0):
            elapsed_s = time.monotonic() - self.begun_s
            now_ms = time.time_ns() // 1_000_000
            for lane in range(LANES):
                strange_now = any(d.begin_s <= elapsed_s < d.end_s and lane in d.lanes for d in self.drifts)
                values, stamps = [], []
                for _ in range(max(1, round(rate / LANES))):
                    n += 1
                    picture = strange()[n % 40] if strange_now else normal()[n % 80]
                    values.append(b"no picture" if self.bad and n % 50 == 0 else picture)
                    stamps.append(now_ms - (25_000 if self.bad and n % 70 == 0 else self.rng.randint(0, 3000)))
                self.write(lane, values, stamps)
                if strange_now:
                    self.strange.update({(d.name, lane): 1 for d in self.drifts if d.begin_s <= elapsed_s < d.end_s})

    def write(self, lane: int, values: list[bytes], stamps: list[int]) -> None:
        """Returns when they are acknowledged, all by the same topic."""
        with self._writing:
            while True:
                try:
                    return self.rig.write(lane, values, stamps)
                except (
                    Exception
                ) as error:  # the broker is away; what landed all the same is in the log that is recounted
                    print(f"  producer waits: {type(error).__name__}")
                    with contextlib.suppress(Exception):
                        self.rig.renew_producer()
                    time.sleep(1.0)

    # ---------------------------------------------------------------- renames

    def rename(self, topic: bool, receivers: bool) -> None:
        """Roll a new configuration out, one daemon after the other; each new one is ready before an old one ends."""
        if topic:
            self.move_producers()
        if receivers:
            for receiver in self.rig.settings["receivers"]:
                self.former_receivers.append(receiver["name"])
                receiver["name"] += "-renamed"
        self.victim = self.replace(self.victim)
        self.steady = self.replace(self.steady)

    def move_producers(self) -> None:
        """Produce to another topic, and wait until all of the former one is counted."""
        rig, former = self.rig, list(self.rig.partitions)
        topic = self.broker.create_topic(f"{rig.topic}-renamed", LANES)
        with self._writing:
            rig.topic, rig.settings["kafka"]["topics"] = topic, [topic]
            rig.partitions += [Partition(topic, lane) for lane in range(LANES)]
        ends = {partition: end for partition, (_, end) in bounds(self.broker, former).items()}
        wait_for(
            "the end of the former topic",
            lambda: {p: c and c.next_offset for p, c in rig.store.partitions.cursors(former).items()} == ends,
        )
        self.renamed = former

    def replace(self, old: Daemon) -> Daemon:
        """As a Deployment with one surplus replica does."""
        new = self.rig.start()
        wait_for("the new daemon", lambda: is_ready(new))
        self.end(old)
        return new

    def end(self, daemon: Daemon) -> None:
        """SIGTERM; it must end well."""
        if (status := daemon.terminate()) != 0:
            raise AssertionError(f"SIGTERM gave {status}:\n{daemon.log.read_text()[-4000:]}")

    # ---------------------------------------------------------------- faults

    def break_things(self, until_s: float, spare_receiver: bool = False) -> None:
        """One fault after the other, each over before the next; all kinds, or all but that of the receiver."""
        kinds: dict[str, Callable[[], None]] = {
            "daemon killed": self.kill,
            "daemon terminated": self.terminate,
            "daemon stopped 9 s": self.stop,
            "redis killed": self.kill_redis,
            "redis cut off": self.cut_redis,
            "redis half-open": self.freeze_redis,
            "replies lost": self.lose_replies,
            "redis out of memory": self.fill_redis,
            "broker killed": self.kill_broker,
            "receiver fails": self.fail_receiver,
        }
        if spare_receiver:
            del kinds["receiver fails"]
        while (now_s := time.monotonic()) < until_s:
            wait_s = self.rng.uniform(*FAULT_EVERY_S)
            if self.over.wait(min(wait_s, until_s - now_s)) or time.monotonic() >= until_s:
                return
            name = self.rng.choice(list(kinds))
            self.say(name)
            kinds[name]()
            self.faults[name] += 1

    def kill(self) -> None:
        self.victim.kill()
        self.victim = self.rig.start()

    def terminate(self) -> None:
        self.end(self.victim)
        self.victim = self.rig.start()

    def stop(self) -> None:
        self.steady.send(signal.SIGSTOP)
        time.sleep(9)
        self.steady.send(signal.SIGCONT)

    def kill_redis(self) -> None:
        self.server.kill()
        time.sleep(self.rng.uniform(0, 3))
        self.server.start()

    def cut_redis(self) -> None:
        self.proxy.refusing = True
        self.proxy.cut()
        time.sleep(self.rng.uniform(1, 6))
        self.proxy.refusing = False

    def freeze_redis(self) -> None:
        self.proxy.frozen = True
        time.sleep(self.rng.uniform(1, 6))
        self.proxy.frozen = False

    def lose_replies(self) -> None:
        self.proxy.swallow_answers = 10
        time.sleep(5)
        self.proxy.swallow_answers = 0

    def fill_redis(self) -> None:
        client = self.rig.store._connection.client
        client.config_set("maxmemory", "1")
        time.sleep(self.rng.uniform(1, 6))
        client.config_set("maxmemory", "0")

    def kill_broker(self) -> None:
        self.broker.kill()
        time.sleep(self.rng.uniform(0, 5))
        self.broker.start()

    def fail_receiver(self) -> None:
        answers = self.rig.hook.answers
        self.rig.hook.answers = lambda _: (500, {}, 0.0)
        time.sleep(20)
        self.rig.hook.answers = answers

    # ---------------------------------------------------------------- looking

    def watch(self) -> None:
        """A sample every SAMPLE_S of the daemon that is never killed."""
        while not self.over.wait(SAMPLE_S):
            with contextlib.suppress(StoreError, OSError):
                self.sample()

    def sample(self) -> None:
        steady, store = self.steady, self.rig.store
        bucket_ms = store.evaluation.state().bucket_ms
        names = [receiver["name"] for receiver in self.rig.settings["receivers"]]
        row = {
            "s": round(time.monotonic() - self.begun_s),
            "produced": sum(self.rig.produced),
            "counted": self.rig.counted(),
            "behind_s": round(time.time() - bucket_ms / 1000 - 10) if bucket_ms else 0,
            "pid": steady.pid,
            "rss_mb": round(rss_mb(steady.pid)),
            "files": len(os.listdir(f"/proc/{steady.pid}/fd")),
            "pending": sum(store.outbox.backlog(name).entries for name in names),
        }
        self.samples.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def say(self, text: str) -> None:
        """Print it with the time."""
        print(f"{time.monotonic() - self.begun_s:7.0f} s  {text}", flush=True)

    def lines(self) -> dict[str, int]:
        """How often each event was logged, by all daemons together, as level, logger and event."""
        found: Counter[str] = Counter()
        for daemon in self.rig.daemons:
            for line in daemon.log.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"level": "?", "event": line}
                where = entry.get("level"), entry.get("logger", "layerwatch"), str(entry.get("event"))[:80]
                found[" ".join(map(str, where))] += 1
        return dict(found.most_common())


def is_ready(daemon: Daemon) -> bool:
    """Whether its readiness page says so."""
    daemon.check()
    with contextlib.suppress(OSError, httpx.TransportError):
        return daemon.ready()[0] == 200
    return False


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
