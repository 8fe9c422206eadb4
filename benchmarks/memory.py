"""Memory of the daemon: of all its processes after the start, and while it works off a backlog.

    python benchmarks/memory.py [--images 20000] [--jpeg-px 160] [--json FILE]

A daemon with the embedded backbone reads a Redis stream. PSS (proportional set size: a page that several processes have
mapped counts once, in parts) is summed over the daemon and its decoder processes. It is split into anonymous memory,
the program's own, and pages of files (libraries, the profile), which the kernel can drop and others share: programs
that have loaded torch beside the daemon make the sum smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import camera_jpegs, watch
from detectors import FitOptions, fit_profile
from monitor.config.schema import Config
from monitor.demo.story import reference
from monitor.sources import open_producer
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

SETTLED_S = 5.0
LANES = 4
Sizes = dict[str, float]


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def sizes(pid: int) -> list[tuple[str, Sizes]]:
    """(name, MB by kind) of each process of the daemon."""
    found = []
    for process in tree(pid):
        words = (line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
        kb = {row[0].rstrip(":"): int(row[1]) for row in words}
        name = "decoder" if "decode.worker" in Path(f"/proc/{process}/cmdline").read_text() else "daemon"
        found.append((name, {kind: kb[kind] / 1000 for kind in ("Rss", "Pss", "Pss_Anon", "Pss_File")}))
    return found


def show(when: str, pid: int) -> dict[str, Any]:
    found = sizes(pid)
    whole = {kind: sum(of[kind] for _, of in found) for kind in found[0][1]}
    for name, of in (*found, ("all", whole)):
        print(f"{when:14} {name:8} " + "  ".join(f"{kind} {mb:6.0f}" for kind, mb in of.items()), flush=True)
    return {"all": whole, "processes": found}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--images", type=int, default=20_000)
    arguments.add_argument("--jpeg-px", type=int, default=160)
    arguments.add_argument("--json", type=Path, default=Path("results/memory.json"))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerwatch-memory-") as name, PrivateRedis() as redis:
        folder = Path(name)
        fit_profile(reference(np.random.default_rng(1), 300), FitOptions("mahalanobis")).save(folder / "profile")
        settings: dict[str, Any] = {
            "monitor": "memory",
            "source": "redis-stream",
            "redis": {"url": redis.url},
            "redis_stream": {"max_length": options.images},
            "scoring": {"profile": str(folder / "profile")},
            "rules": [{"name": "drift", "kind": "sequential", "expected_streams": LANES}],
            "web": {"port": 0},
            "log": {"level": "error"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "monitor", "run", "-c", str(folder / "config.yaml")]
        process = subprocess.Popen(command)
        store = open_store(RedisSettings(url=SecretStr(redis.url)), "memory")
        try:
            while not store.catalog.partitions():
                if process.poll() is not None:
                    raise SystemExit(f"the daemon ended with {process.returncode}")
                time.sleep(0.2)
            time.sleep(SETTLED_S)
            found = {"after the start": show("after start", process.pid)}
            producer, jpegs = open_producer(Config(**settings).source_settings()), camera_jpegs(options.jpeg_px, 100)
            now_ms = time.time_ns() // 1_000_000 - 10 * options.images
            for i in range(options.images):
                producer.send("images", jpegs[i % len(jpegs)], f"line-{i % LANES}".encode(), (), now_ms + 10 * i)
            producer.flush()
            producer.close()
            for share in (0.25, 0.5, 1.0):
                watch(store, process, int(share * options.images))
                found[f"{share:.0%} of the load"] = show(f"{share:.0%} of load", process.pid)
        finally:
            process.terminate()
            process.wait()
            store.close()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
