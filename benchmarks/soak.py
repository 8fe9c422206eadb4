"""Runs two daemons on a stream for N minutes while things break at random, then recounts every image.

    python benchmarks/soak.py --minutes 20 [--seed 1] [--rate 20] [-o results/soak.json]

A real broker, a real Redis with an append-only file (everysec) behind a proxy, a receiver that fails at times. One
daemon is never killed, so that its memory can be watched; the other one is. Prints a line per sample and the table of
what must hold; exits 1 where something does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the fault rig lives with the tests

import torch

import detectors
from monitor.store import StoreError
from monitor.store.private_server import PrivateRedis
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig, Zygote, bounds, normal, strange, wait_for
from tests.kafka.broker import Broker
from tests.pictures import pictures
from tests.shared import ZygoteProcess

SAMPLE_S = 15.0
FAULT_EVERY_S = (8.0, 25.0)
EPISODE_S, DRIFT_S = 300, 60
"""A minute of drift in every five."""


class Soak:
    """What runs, what breaks, what is seen."""

    def __init__(self, rig: Rig, broker: Broker, server: PrivateRedis, proxy: Proxy, rng: random.Random) -> None:
        self.rig, self.broker, self.server, self.proxy, self.rng = rig, broker, server, proxy, rng
        self.steady = rig.start()
        self.victim = rig.start()
        self.faults: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.begun_s = time.monotonic()
        self.over = threading.Event()

    # ---------------------------------------------------------------- the stream

    def produce(self, rate: float) -> None:
        """Images in real time; some bad, some late, some strange."""
        n = 0
        while not self.over.wait(1.0):
            elapsed_s = time.monotonic() - self.begun_s
            drifting = elapsed_s % EPISODE_S > EPISODE_S - DRIFT_S - 120
            drifting = drifting and elapsed_s % EPISODE_S < EPISODE_S - 120
            now_ms = time.time_ns() // 1_000_000
            for index in range(len(self.rig.partitions)):
                values, stamps = [], []
                for _ in range(max(1, round(rate / len(self.rig.partitions)))):
                    n += 1
                    picture = strange()[n % 40] if drifting and index == 0 else normal()[n % 80]
                    values.append(b"no picture" if n % 50 == 0 else picture)
                    stamps.append(now_ms - (25_000 if n % 70 == 0 else self.rng.randint(0, 3000)))
                self.write(index, values, stamps)

    def write(self, index: int, values: list[bytes], stamps: list[int]) -> None:
        while True:
            try:
                return self.rig.write(index, values, stamps)
            except Exception as error:  # the broker is away; what landed all the same is in the log that is recounted
                print(f"  producer waits: {type(error).__name__}")
                with contextlib.suppress(Exception):
                    self.rig.renew_producer()
                time.sleep(1.0)

    # ---------------------------------------------------------------- faults

    def break_things(self, until_s: float) -> None:
        """One fault after the other, each over before the next."""
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
        while (now_s := time.monotonic()) < until_s:
            wait_s = self.rng.uniform(*FAULT_EVERY_S)
            if self.over.wait(min(wait_s, until_s - now_s)) or time.monotonic() >= until_s:
                return
            name = self.rng.choice(list(kinds))
            print(f"{time.monotonic() - self.begun_s:7.0f} s  {name}", flush=True)
            kinds[name]()
            self.faults[name] += 1

    def kill(self) -> None:
        self.victim.kill()
        self.victim = self.rig.start()

    def terminate(self) -> None:
        status = self.victim.terminate()
        if status != 0:
            raise AssertionError(f"SIGTERM gave {status}:\n{self.victim.log.read_text()[-4000:]}")
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
        assert not self.steady.ended(), "the steady daemon ended"
        row = {
            "s": round(time.monotonic() - self.begun_s),
            "produced": sum(self.rig.produced),
            "counted": self.rig.counted(),
            "rss_mb": round(rss_mb(self.steady.pid)),
            "files": len(os.listdir(f"/proc/{self.steady.pid}/fd")),
            "pending": self.rig.store.outbox.backlog("hook").entries,
        }
        self.samples.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def invariants(soak: Soak) -> dict[str, str]:
    """Every one, with its figures, or what is wrong."""
    rig, told = soak.rig, {}

    def check(name: str, look: Callable[[], str]) -> None:
        try:
            told[name] = look()
        except AssertionError as error:
            told[name] = f"WRONG: {str(error)[:300]}"

    def counts() -> str:
        found = rig.check_counts()
        return f"{found.accepted} accepted + {len(found.rejected)} rejected = log; bins, cursors, dead letters equal"

    def alerts() -> str:
        ids = [d["id"] for d in rig.hook.accepted if not d["data"]["rule"].startswith("layerwatch-")]
        firing = {i.removesuffix("-firing") for i in ids if i.endswith("-firing")}
        resolved = {i.removesuffix("-resolved") for i in ids if i.endswith("-resolved")}
        assert resolved <= firing, "an end without a beginning"
        assert len(firing - resolved) <= 1, "more than the last one is open"
        return f"{len(firing)} fired, {len(resolved)} resolved, {len(ids) - len(set(ids))} sent twice with the same id"

    def flat() -> str:
        early = soak.samples[len(soak.samples) // 4 : len(soak.samples) // 2]
        late = soak.samples[-max(1, len(soak.samples) // 4) :]
        rows = []
        for name, slack in (("rss_mb", 60), ("files", 15), ("pending", 5)):
            a, b = max(r[name] for r in early), max(r[name] for r in late)
            rows.append(f"{name} {a} -> {b}")
            assert b <= a + slack, rows[-1]
        return ", ".join(rows)

    check("counts", counts)
    check("alerts", alerts)
    check("flat", flat)
    return told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=20.0)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rate", type=float, default=20.0, help="images per second")
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/soak.json"))
    args = arguments.parse_args()
    torch.set_num_threads(1)  # the recount takes one image at a time
    with tempfile.TemporaryDirectory(prefix="layerwatch-soak-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in ("broker", "redis", "rig"):
            (folder / part).mkdir()
        detectors.fit_profile(pictures(0, 300)).save(folder / "profile")
        broker = stack.enter_context(Broker(folder / "broker"))
        options = ["--appendonly", "yes", "--appendfsync", "everysec"]
        server = stack.enter_context(PrivateRedis(folder / "redis", options))
        proxy = Proxy("127.0.0.1", server.port)
        stack.callback(proxy.close)
        zygote = Zygote(stack.enter_context(ZygoteProcess(folder / "zygote")).socket)
        url = f"redis://127.0.0.1:{proxy.port}/0"
        rig = Rig(zygote, broker, server.url, folder / "rig", folder / "profile", daemon_redis_url=url)
        stack.callback(rig.close)
        soak = Soak(rig, broker, server, proxy, random.Random(args.seed))
        told = run(soak, args.minutes * 60, args.rate)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"minutes": args.minutes, "seed": args.seed, "faults": dict(soak.faults), "invariants": told}
    args.output.write_text(json.dumps({**result, "samples": soak.samples}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(any(text.startswith("WRONG") for text in told.values()))


def run(soak: Soak, seconds: float, rate: float) -> dict[str, str]:
    """All of it; returns what `invariants` found."""
    wait_for("the first image", lambda: soak.steady.events("partition.taken") or soak.victim.events("partition.taken"))
    producing = threading.Thread(target=soak.produce, args=(rate,))
    watching = threading.Thread(target=soak.watch, daemon=True)
    producing.start()
    watching.start()
    try:
        soak.break_things(time.monotonic() + seconds)
        print("calm", flush=True)
        time.sleep(10)
    finally:
        soak.over.set()
        producing.join()
    ends = sum(end for _, end in bounds(soak.rig.cluster, soak.rig.partitions).values())
    soak.rig.await_counted(ends, 180)
    wait_for("the outbox to be empty", lambda: soak.rig.store.outbox.backlog("hook").entries == 0, 180)
    return invariants(soak)


if __name__ == "__main__":
    main()
