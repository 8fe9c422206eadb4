"""Images per second of the bare backbone, of the profile, and of the whole daemon, side by side as ratios.

    (a) backbone   the frozen network alone on ready pixels, batches of the daemon's size
    (b) score      Profile.score on prepared images: backbone, detector, calibrated p-values of every signal
    (c) decode     Profile.prepare on JPEG bytes: decode, properties, resize (one thread)
    (d) library    prepare and score, one after the other in one process: what any program would have to do
    (e) daemon     Kafka -> decode -> score -> Redis, from the first image applied to the last

Each scenario is MODEL:INPUT_PX:JPEG_PX. Weights are random but for the embedded backbone's: they do not matter for
time. The detector has the width that it has from 2,000 images on. The machine is noisy and shared, so (a) to (d) take
turns in short rounds and the daemon runs between two rounds of them; ratios are of medians. `bound` is the most that
daemon / score can be on this machine if nothing but decoding were added: 2 cores that spend 1 / score on one image
cannot also spend 1 / decode on it. Kafka is KAFKA_BOOTSTRAP_SERVERS or a broker of its own, as in the tests.

    python benchmarks/throughput.py [--json FILE] [SCENARIO ...]
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from detectors.methods.dlsr import WIDE
from detectors.profile.host_memory import keep_freed_memory
from detectors.profile.spec import BackboneSpec
from monitor.config.schema import Config
from monitor.demo.story import reference
from monitor.sources import open_producer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.kafka.broker import Broker, Cluster

BATCH = 64
ROUND_S = 3.0
ROUNDS = 3
DAEMON_S = 8.0
"""Images through the daemon: what the profile alone would score in that time."""
SCENARIOS = (
    "embedded:96:96",
    "embedded:96:160",
    "embedded:96:224",
    "mobilenetv2_100:96:160",
    "mobilenetv2_100:224:224",
)


@dataclass(frozen=True)
class Scenario:
    """A backbone, the side of its input, and the side of the JPEGs that it is sent."""

    model: str
    input_px: int
    jpeg_px: int

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """MODEL:INPUT_PX:JPEG_PX."""
        model, input_px, jpeg_px = text.split(":")
        return cls(model, int(input_px), int(jpeg_px))

    def __str__(self) -> str:
        return f"{self.model}, input {self.input_px} px, JPEGs of {self.jpeg_px} px"

    def options(self) -> FitOptions:
        """How its profile is fitted."""
        embedded = self.model == "embedded"
        spec = BackboneSpec.embedded() if embedded else BackboneSpec(self.model, "random")
        return FitOptions("dlsr", replace(spec, input_px=self.input_px), detector_options={"width": WIDE})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO", help="MODEL:INPUT_PX:JPEG_PX")
    parser.add_argument("--json", type=Path, default=Path("results/throughput.json"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    console, rates = Console(), {}
    with tempfile.TemporaryDirectory(prefix="layerwatch-bench-") as name, PrivateRedis() as redis, _cluster() as broker:
        for number, scenario in enumerate(map(Scenario.parse, arguments.scenarios)):
            rates[str(scenario)] = _measure(scenario, broker, redis, Path(name) / str(number))
            _report(console, str(scenario), rates[str(scenario)])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "batch": BATCH,
        "cpus": os.cpu_count(),
        "images_per_s": rates,
        "ratios": {scenario: _ratios(found) for scenario, found in rates.items()},
    }
    arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


@contextmanager
def _cluster() -> Iterator[Cluster]:
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield Cluster(servers)
        return
    with tempfile.TemporaryDirectory(prefix="layerwatch-kafka-") as name:
        broker = Broker(Path(name))
        broker.start()
        yield broker
        broker.stop()


def _measure(scenario: Scenario, broker: Cluster, redis: PrivateRedis, folder: Path) -> dict[str, list[float]]:
    """Images per second of every stage, round by round."""
    folder.mkdir()
    jpegs = _jpegs(scenario.jpeg_px, 600)
    fit_profile(((str(i), jpeg) for i, jpeg in enumerate(jpegs)), scenario.options()).save(folder / "profile")
    stages = _stages(load_profile(folder / "profile"), jpegs)
    rates: dict[str, list[float]] = {stage: [] for stage in (*stages, "daemon")}
    for turn in range(ROUNDS):
        for stage, work in stages.items():
            rates[stage].append(_rate(work))
        images = int(DAEMON_S * rates["score"][-1])
        rates["daemon"].append(_daemon(broker, redis, folder, jpegs, images, f"bench-{folder.name}-{turn}"))
        for stage, work in stages.items():
            rates[stage].append(_rate(work))
    return rates


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


def _daemon(broker: Cluster, redis: PrivateRedis, folder: Path, jpegs: list[bytes], images: int, monitor: str) -> float:
    """Images per second from the first look at which some were applied to the one at which all were."""
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
    store = open_store(RedisSettings(url=SecretStr(redis.url)), monitor)
    try:
        first = _watch(store, process, 1)
        last = _watch(store, process, images)
    finally:
        process.terminate()
        process.wait()
        store.close()
    return (last[1] - first[1]) / (last[0] - first[0])


def _produce(kafka: dict[str, Any], topic: str, jpegs: list[bytes], images: int) -> None:
    producer = open_producer(Config(kafka=KafkaSettings(**kafka)).source_settings())
    now_ms = time.time_ns() // 1_000_000 - images * 10
    for i in range(images):
        producer.send(topic, jpegs[i % len(jpegs)], f"line-{i % 4}".encode(), (), now_ms + i * 10)
    producer.flush()
    producer.close()


def _watch(store: Store, process: subprocess.Popen[bytes], wanted: int) -> tuple[float, int]:
    while True:
        applied = sum(totals.applied for totals in store.counts.totals(store.catalog.partitions()).values())
        if applied >= wanted:
            return time.perf_counter(), applied
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended with {process.returncode}")
        time.sleep(0.01)


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    median = {stage: statistics.median(found) for stage, found in rates.items()}
    cores = os.cpu_count() or 1
    return {
        "score / backbone": median["score"] / median["backbone"],
        "daemon / score": median["daemon"] / median["score"],
        "bound of daemon / score": 1 / (1 + median["score"] / (cores * median["decode"])),
        "daemon / library": median["daemon"] / median["library"],
    }


def _report(console: Console, title: str, rates: dict[str, list[float]]) -> None:
    table = Table("stage", "images/s (median)", "rounds", title=f"{title}, batches of {BATCH}", title_justify="left")
    for stage, found in rates.items():
        table.add_row(stage, f"{statistics.median(found):.0f}", " ".join(f"{rate:.0f}" for rate in found))
    console.print(table)
    for name, ratio in _ratios(rates).items():
        console.print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
