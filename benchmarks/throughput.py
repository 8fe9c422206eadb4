"""Images per second of the bare backbone, of the profile, and of the whole daemon, side by side as ratios.

    (a) backbone   the frozen network alone on ready pixels, batches of the daemon's size
    (b) score      Profile.score on prepared images: backbone, detector, calibrated p-values of every signal
    (c) decode     the daemon's decoder processes alone: decode, properties, resize, and the way back to the daemon
    (d) library    prepare and score, one after the other in one process: what any program would have to do
    (e) daemon     Kafka -> decode -> score -> Redis, from the first image applied to the last

Each scenario is MODEL:INPUT_PX:JPEG_PX, and :scaled where decoding is. Weights are random but for the embedded
backbone's: they do not matter for time. The detector has the width that it has from 2,000 images on; the engine is the
daemon's. The machine is noisy and shared, so (a) to (d) take turns in short rounds and the daemon runs between two
rounds of them; ratios are of medians.

Decoding and scoring each take all cores when they run alone, so no program can do both at the rate of the slower one:
`bound` is 1 / (1 / decode + 1 / score), what is left where nothing but these two takes time and no core ever waits.
`CPU time of daemon / stages` compares seconds of CPU time an image: what is above 1 is Kafka, Redis, counting, and the
passing on. Threads that wait by spinning count as working, so this, too, wants a quiet machine.
Kafka is KAFKA_BOOTSTRAP_SERVERS or a broker of its own, as in the tests.

    python benchmarks/throughput.py [--rounds N] [--json FILE] [SCENARIO ...]
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
from collections import defaultdict
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
from detectors.engines.engine import use_engine
from detectors.images.prepare import Decoding
from detectors.methods.dlsr import WIDE
from detectors.profile.host_memory import keep_freed_memory
from detectors.profile.spec import BackboneSpec
from monitor.config.schema import Config
from monitor.core.types import Partition, Record
from monitor.demo.story import reference
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.settings import DecodingSettings, StreamNaming
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
"""Images through the daemon: what decoding and scoring would do in that time."""
CPU = "_cpu_s"
Rates = dict[str, list[float]]
SCENARIOS = (
    "embedded:96:96",
    "embedded:96:160",
    "embedded:96:224",
    "embedded:96:1080",
    "embedded:96:1080:scaled",
    "embedded:224:1080:scaled",
    "mobilenetv2_100:96:160",
    "mobilenetv2_100:224:224",
)


@dataclass(frozen=True)
class Scenario:
    """A backbone, the side of its input, the side of the JPEGs that it is sent, and how these are decoded."""

    model: str
    input_px: int
    jpeg_px: int
    decoding: Decoding = "full"

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """MODEL:INPUT_PX:JPEG_PX[:DECODING]."""
        model, input_px, jpeg_px, *rest = text.split(":")
        return cls(model, int(input_px), int(jpeg_px), "scaled" if rest == ["scaled"] else "full")

    def __str__(self) -> str:
        return f"{self.model}, input {self.input_px} px, JPEGs of {self.jpeg_px} px, {self.decoding} decoding"

    def options(self) -> FitOptions:
        """How its profile is fitted."""
        embedded = self.model == "embedded"
        spec = BackboneSpec.embedded() if embedded else BackboneSpec(self.model, "random")
        spec = replace(spec, input_px=self.input_px, decoding=self.decoding)
        return FitOptions("dlsr", spec, detector_options={"width": WIDE})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO", help="MODEL:INPUT_PX:JPEG_PX[:scaled]"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=Path("results/throughput.json"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    console, rates = Console(), {}
    with tempfile.TemporaryDirectory(prefix="layerwatch-bench-") as name, PrivateRedis() as redis, _cluster() as broker:
        for number, scenario in enumerate(map(Scenario.parse, arguments.scenarios)):
            rates[str(scenario)] = _measure(scenario, broker, redis, Path(name) / str(number), arguments.rounds)
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


def _measure(scenario: Scenario, broker: Cluster, redis: PrivateRedis, folder: Path, rounds: int) -> Rates:
    """Images per second of every stage, round by round; and seconds of CPU time an image, as STAGE_CPU."""
    folder.mkdir()
    jpegs = camera_jpegs(scenario.jpeg_px, 600 if scenario.jpeg_px < 500 else 200)
    fit_profile(((str(i), jpeg) for i, jpeg in enumerate(jpegs)), scenario.options()).save(folder / "profile")
    profile = load_profile(folder / "profile")
    use_engine(profile, "auto")
    pool = DecoderPool(Decoder(Preparers(profile.preparer), StreamNaming(), DecodingSettings()))
    stages = _stages(profile, pool, jpegs)
    rates: Rates = defaultdict(list)

    def take_turns() -> None:
        for stage, work in stages.items():
            rate, cpu_s = _rate(work)
            rates[stage].append(rate)
            rates[stage + CPU].append(cpu_s)

    for turn in range(rounds):
        take_turns()
        images = int(DAEMON_S * _bound(rates["decode"][-1], rates["score"][-1]))
        rate, cpu_s = _daemon(broker, redis, folder, jpegs, images, f"bench-{folder.name}-{turn}")
        rates["daemon"].append(rate)
        rates["daemon" + CPU].append(cpu_s)
        take_turns()
    pool.close()
    return rates


def _bound(decode: float, score: float) -> float:
    return 1 / (1 / decode + 1 / score)


def camera_jpegs(side_px: int, count: int) -> list[bytes]:
    """Pictures of a production line, encoded at the size asked for."""
    found = []
    for _, picture in reference(np.random.default_rng(1), count):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture)).resize((side_px, side_px)).save(buffer, "JPEG", quality=88)
        found.append(buffer.getvalue())
    return found


def _stages(profile: Profile, pool: DecoderPool, jpegs: list[bytes]) -> dict[str, Callable[[], int]]:
    """Each stage's work on one batch; returns how many images it did."""
    some = jpegs[:BATCH]
    prepared = [profile.prepare(jpeg) for jpeg in some]
    pixels = np.stack([image.pixels for image in prepared])

    def backbone() -> int:
        return len(profile.backbone.features(pixels))

    def score() -> int:
        return len(profile.score(prepared).p_values)

    records = [Record(Partition("images", 0), i, i, b"line", jpeg) for i, jpeg in enumerate(some * 4)]

    def decode() -> int:
        found = [future.result() for future in pool.submit(records)]
        return sum(len(images) for images in found if isinstance(images, list))

    def library() -> int:
        return len(profile.score([profile.prepare(jpeg) for jpeg in some]).p_values)

    return {"backbone": backbone, "score": score, "decode": decode, "library": library}


def _rate(work: Callable[[], int]) -> tuple[float, float]:
    """(images per second, seconds of CPU time an image), of this process and of the decoders below it."""
    work()
    done, started, cpu_s = 0, time.perf_counter(), _cpu_s(os.getpid())
    while time.perf_counter() - started < ROUND_S:
        done += work()
    return done / (time.perf_counter() - started), (_cpu_s(os.getpid()) - cpu_s) / done


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of the Python processes below it: servers are no part of the program."""
    tasks = Path(f"/proc/{pid}/task")
    below = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    others = (_cpu_s(child) for child in below if "python" in Path(f"/proc/{child}/exe").resolve().name)
    return (int(own[11]) + int(own[12])) / os.sysconf("SC_CLK_TCK") + sum(others)


def _daemon(
    broker: Cluster, redis: PrivateRedis, folder: Path, jpegs: list[bytes], images: int, monitor: str
) -> tuple[float, float]:
    """As `_rate`, from the first look at which some images were applied to the one at which all were."""
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
        first, cpu_s = watch(store, process, 1), _cpu_s(process.pid)
        last, cpu_s = watch(store, process, images), _cpu_s(process.pid) - cpu_s
    finally:
        process.terminate()
        process.wait()
        store.close()
    return (last[1] - first[1]) / (last[0] - first[0]), cpu_s / (last[1] - first[1])


def _produce(kafka: dict[str, Any], topic: str, jpegs: list[bytes], images: int) -> None:
    producer = open_producer(Config(kafka=KafkaSettings(**kafka)).source_settings())
    now_ms = time.time_ns() // 1_000_000 - images * 10
    for i in range(images):
        producer.send(topic, jpegs[i % len(jpegs)], f"line-{i % 4}".encode(), (), now_ms + i * 10)
    producer.flush()
    producer.close()


def watch(store: Store, process: subprocess.Popen[bytes], wanted: int) -> tuple[float, int]:
    while True:
        applied = sum(totals.applied for totals in store.counts.totals(store.catalog.partitions()).values())
        if applied >= wanted:
            return time.perf_counter(), applied
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended with {process.returncode}")
        time.sleep(0.01)


def _ratios(rates: Rates) -> dict[str, float]:
    median = {stage: statistics.median(found) for stage, found in rates.items()}
    decode, score, daemon = (median[stage] for stage in ("decode", "score", "daemon"))
    return {
        "score / backbone": score / median["backbone"],
        "daemon / score": daemon / score,
        "daemon / slower stage": daemon / min(decode, score),
        "bound / slower stage": _bound(decode, score) / min(decode, score),
        "daemon / bound": daemon / _bound(decode, score),
        "CPU time of daemon / stages": median["daemon" + CPU] / (median["decode" + CPU] + median["score" + CPU]),
        "daemon / library": daemon / median["library"],
    }


def _report(console: Console, title: str, rates: Rates) -> None:
    table = Table("stage", "images/s (median)", "CPU ms", "rounds", title=f"{title}, batches of {BATCH}")
    for stage, found in rates.items():
        if not stage.endswith(CPU):
            cpu_ms = 1000 * statistics.median(rates[stage + CPU])
            rounds = " ".join(f"{rate:.0f}" for rate in found)
            table.add_row(stage, f"{statistics.median(found):.0f}", f"{cpu_ms:.2f}", rounds)
    console.print(table)
    for name, ratio in _ratios(rates).items():
        console.print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
