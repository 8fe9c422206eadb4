"""CPU time that a profile in shadow costs a daemon, an image: the same network, and another one of the same size.

    python benchmarks/shadow.py [--images 6000] [--rounds 3] [--jpeg-px 160] [--json FILE]

Daemons read the same JPEGs from a Redis stream: without a shadow, with one of the same network (features are computed
once), and with one of another network (the same backbone but for one layer less, so that it runs a second time). They
take turns; CPU time is that of the daemon and its decoders from the first image to the last, without the start. Ratios
are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.memory import tree
from benchmarks.throughput import camera_jpegs
from detectors import FitOptions, Profile, fit_profile, recalibrate
from monitor.config.schema import Config
from monitor.core.types import Partition
from monitor.demo.story import reference
from monitor.sources import open_producer
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

LANES, SETTLED_S = 4, 4.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Of a process and all below it that run."""
    found = 0.0
    for process in tree(pid):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) * TICK_S
    return found


def counted(store: Store, monitor: str) -> int:
    return sum(t.applied for t in store.counts.totals([Partition(monitor, i) for i in range(LANES)]).values())


def measured(folder: Path, shadow: Path | None, redis: str, jpegs: list[bytes], images: int) -> float:
    """Milliseconds of CPU time an image."""
    monitor = f"shadow-{time.monotonic_ns()}"
    settings: dict[str, Any] = {
        "monitor": monitor,
        "source": "redis-stream",
        "redis": {"url": redis},
        "redis_stream": {"topics": [monitor], "partitions": LANES, "max_length": images},
        "scoring": {"profile": str(folder), "shadow": [{"version": str(shadow)}] if shadow else []},
        "rules": [{"name": "drift", "kind": "sequential", "expected_streams": LANES}],
        "web": {"port": 0},
        "log": {"level": "error"},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(settings))
        file.flush()
        process = subprocess.Popen([sys.executable, "-m", "monitor", "run", "-c", file.name])
        store = open_store(RedisSettings(url=SecretStr(redis)), monitor)
        try:

            def wait_for(reached: Callable[[], bool]) -> None:
                while not reached():
                    if process.poll() is not None:
                        raise SystemExit(f"the daemon ended with {process.returncode}")
                    time.sleep(0.02)

            # decoders run ahead of what is applied: nothing may be read before the first look at the clock
            wait_for(lambda: len(store.catalog.partitions()) == LANES and bool(store.catalog.replicas()))
            time.sleep(SETTLED_S)
            before_s = cpu_s(process.pid)
            producer = open_producer(Config(**settings).source_settings())
            now_ms = time.time_ns() // 1_000_000 - 10 * images
            for i in range(images):
                producer.send(monitor, jpegs[i % len(jpegs)], f"line-{i % LANES}".encode(), (), now_ms + 10 * i)
            producer.flush()
            producer.close()
            wait_for(lambda: counted(store, monitor) == images)
            return 1000 * (cpu_s(process.pid) - before_s) / images
        finally:
            process.terminate()
            process.wait(60)
            store.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--images", type=int, default=6000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--jpeg-px", type=int, default=160)
    arguments.add_argument("--detector", default="auto")
    arguments.add_argument("--json", type=Path, default=Path("results/shadow.json"))
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerwatch-shadow-") as name, PrivateRedis() as server:
        folder = Path(name)
        profile = fit_profile(reference(np.random.default_rng(1), 400), FitOptions(options.detector))
        profile.save(folder / "judging")
        other = Profile.load(folder / "judging", "cpu")
        recalibrate(other, reference(np.random.default_rng(2), 200))
        other.save(folder / "head")
        spec = replace(profile.backbone.spec, layers=profile.backbone.spec.layers[1:])
        fit_profile(reference(np.random.default_rng(3), 400), FitOptions(profile.manifest["detector"], spec)).save(
            folder / "other"
        )
        kinds = {"alone": None, "same network": folder / "head", "another network": folder / "other"}
        jpegs = camera_jpegs(options.jpeg_px, 100)
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, shadow in kinds.items():
                found[kind].append(measured(folder / "judging", shadow, server.url, jpegs, options.images))
                print(f"{kind:14} {found[kind][-1]:.3f} ms of CPU time an image", flush=True)
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    ratios = {kind: median / medians["alone"] for kind, median in medians.items()}
    detector, model = profile.manifest["detector"], profile.backbone.spec.model
    print(f"{detector} on {model}, JPEGs of {options.jpeg_px} px:", {kind: round(r, 3) for kind, r in ratios.items()})
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"detector": detector, "ms": found, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
