"""Images per second of the bare backbone, of the profile, and of the whole daemon, side by side as ratios.

    (a) backbone   the frozen network alone on ready pixels, batches of the daemon's size
    (b) score      Profile.score on prepared images: backbone, detector, calibrated p-values of every signal
    (c) decode     Profile.prepare on JPEG bytes: decode, properties, resize (one thread)
    (d) library    prepare and score, one after the other in one process: what any program would have to do
    (e) daemon     Kafka -> decode -> score -> Redis, from the first image applied to the last

The machine is noisy and shared, so (a), (b), (c) and (d) take turns in short rounds and the daemon runs between two
rounds of them; ratios are of medians. Kafka is KAFKA_BOOTSTRAP_SERVERS or a broker of its own, as in the tests.

    python benchmarks/throughput.py [--images 6000] [--px 160] [--input-px 96] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from detectors import FitOptions, Profile, fit_profile, load_profile
from detectors.features import BackboneSpec
from monitor.config import Config, Kafka, Redis
from monitor.demo.story import reference
from monitor.private_redis import PrivateRedis
from monitor.sources import open_producer
from monitor.store import Store, open_store
from tests.kafka.broker import Broker, Cluster

BATCH = 64
ROUND_S = 3.0
ROUNDS = 3


def main() -> int:
    arguments = _arguments()
    console = Console()
    jpegs = _jpegs(arguments.px, 600)
    with tempfile.TemporaryDirectory(prefix="layerwatch-bench-") as name, PrivateRedis() as redis:
        folder = Path(name)
        console.print("fitting a profile ...")
        fit_profile(((str(i), jpeg) for i, jpeg in enumerate(jpegs)), _options(arguments)).save(folder / "profile")
        profile = load_profile(folder / "profile")
        servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        broker = Cluster(servers) if servers else Broker(folder / "kafka")
        if isinstance(broker, Broker):
            (folder / "kafka").mkdir()
            broker.start()
        stages = _stages(profile, jpegs)
        rates: dict[str, list[float]] = {stage: [] for stage in (*stages, "daemon")}
        for turn in range(ROUNDS):
            for stage, work in stages.items():
                rates[stage].append(_rate(work))
            rates["daemon"].append(_daemon(broker, redis, folder, jpegs, arguments.images, turn))
            for stage, work in stages.items():
                rates[stage].append(_rate(work))
        if isinstance(broker, Broker):
            broker.stop()
    _report(console, arguments, {stage: statistics.median(found) for stage, found in rates.items()}, rates)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=6000, help="through the daemon, per round")
    parser.add_argument("--px", type=int, default=160, help="side of the JPEGs")
    parser.add_argument("--input-px", type=int, help="side of the model's input (default: the backbone's own)")
    parser.add_argument("--json", type=Path, default=Path("results/throughput.json"))
    return parser.parse_args()


def _options(arguments: argparse.Namespace) -> FitOptions:
    if arguments.input_px is None:
        return FitOptions()
    facts = {**BackboneSpec.embedded().to_json(), "input_px": arguments.input_px}
    return FitOptions(backbone=BackboneSpec.from_json(facts))


def _jpegs(side_px: int, count: int) -> list[bytes]:
    """Pictures of a production line, encoded at the size asked for."""
    found = []
    for _, picture in reference(np.random.default_rng(1), count):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture)).resize((side_px, side_px)).save(buffer, "JPEG", quality=88)
        found.append(buffer.getvalue())
    return found


def _stages(profile: Profile, jpegs: list[bytes]) -> dict[str, Callable[[], int]]:
    """Each stage's work on one batch; returns how many images it did."""
    some = jpegs[:BATCH]
    prepared = [profile.prepare(jpeg) for jpeg in some]
    pixels = np.stack([image.pixels for image in prepared])

    def backbone() -> int:
        return len(profile.backbone(pixels))

    def score() -> int:
        return len(profile.score(prepared).p_values)

    def decode() -> int:
        return len([profile.prepare(jpeg) for jpeg in some])

    def library() -> int:
        return len(profile.score([profile.prepare(jpeg) for jpeg in some]).p_values)

    return {"backbone": backbone, "score": score, "decode": decode, "library": library}


def _rate(work: Callable[[], int]) -> float:
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < ROUND_S:
        done += work()
    return done / (time.perf_counter() - started)


def _daemon(broker: Cluster, redis: PrivateRedis, folder: Path, jpegs: list[bytes], images: int, turn: int) -> float:
    """Images per second from the first look at which some were applied to the one at which all were."""
    monitor = f"bench-{turn}"
    topic, letters = (broker.create_topic(f"{monitor}{end}", 2) for end in ("", "-letters"))
    kafka = {"bootstrap_servers": [broker.bootstrap_servers], "topics": [topic], "dead_letter_topic": letters}
    _produce(kafka, topic, jpegs, images)
    config = folder / f"{monitor}.yaml"
    settings: dict[str, Any] = {
        "monitor": monitor,
        "kafka": {**kafka, "group_id": monitor},
        "redis": {"url": redis.url},
        "scoring": {"profile": str(folder / "profile"), "batch_images": BATCH},
        "rules": [{"name": "drift", "kind": "sequential", "expected_streams": 4}],
        "web": {"port": 0},
        "log": {"level": "error"},
    }
    config.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen([sys.executable, "-m", "monitor", "run", "-c", str(config)])
    store = open_store(Redis(url=SecretStr(redis.url)), monitor)
    try:
        first = _watch(store, process, 1)
        last = _watch(store, process, images)
    finally:
        process.terminate()
        process.wait()
        store.close()
    return (last[1] - first[1]) / (last[0] - first[0])


def _produce(kafka: dict[str, Any], topic: str, jpegs: list[bytes], images: int) -> None:
    producer = open_producer(Config(kafka=Kafka(**kafka)))
    now_ms = time.time_ns() // 1_000_000 - images * 10
    for i in range(images):
        producer.send(topic, jpegs[i % len(jpegs)], f"line-{i % 4}".encode(), (), now_ms + i * 10)
    producer.flush()
    producer.close()


def _watch(store: Store, process: subprocess.Popen[bytes], wanted: int) -> tuple[float, int]:
    while True:
        applied = sum(totals.applied for totals in store.totals(store.known_partitions()).values())
        if applied >= wanted:
            return time.perf_counter(), applied
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended with {process.returncode}")
        time.sleep(0.01)


def _report(
    console: Console, arguments: argparse.Namespace, medians: dict[str, float], rates: dict[str, list[float]]
) -> None:
    ratios = {
        "score / backbone": medians["score"] / medians["backbone"],
        "daemon / score": medians["daemon"] / medians["score"],
        "daemon / library": medians["daemon"] / medians["library"],
    }
    table = Table("stage", "images/s (median)", "rounds", title=f"{arguments.px} px JPEGs, batches of {BATCH}")
    for stage, median in medians.items():
        table.add_row(stage, f"{median:.0f}", " ".join(f"{rate:.0f}" for rate in rates[stage]))
    console.print(table)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"px": arguments.px, "input_px": arguments.input_px, "batch": BATCH, "cpus": os.cpu_count()}
    arguments.json.write_text(json.dumps({**facts, "images_per_s": rates, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
