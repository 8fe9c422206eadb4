"""What decoding costs: full beside scaled, and in processes beside threads; the same JPEGs, alternating, as ratios.

    python benchmarks/decoders.py [--workers 2] [--repeats 5] [--only full-scaled | processes-threads]

Full and scaled: milliseconds of CPU time from the bytes to the model's input, with everything that is measured on the
way, in one thread. Processes and threads: images per second through `DecoderPool` and through a thread pool that calls
the same decoder, the median of the repeats.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from detectors.images.decode import Limits
from detectors.images.prepare import DECODINGS, Preparer
from monitor.core.types import Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.settings import DecodingSettings, StreamNaming

SIZES = {"64 x 64": (64, 64, 2000), "640 x 480": (640, 480, 300), "1920 x 1080": (1920, 1080, 60)}
CAMERAS = {"640 x 480": (640, 480), "1280 x 720": (1280, 720), "1920 x 1080": (1920, 1080)}
INPUT_PX = 224


def records(width: int, height: int, count: int) -> list[Record]:
    """JPEGs with some structure, as a camera's."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(8):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(3)).save(buffer, "JPEG", quality=85)
        values.append(buffer.getvalue())
    return [Record(Partition("images", 0), i, i, b"cam", values[i % 8]) for i in range(count)]


def cpu_ms(prepare: Callable[[bytes], object], image: bytes) -> float:
    """CPU time of one call: unlike that of a clock on the wall, it is the same on a busy machine."""
    began = time.thread_time()
    prepare(image)
    return 1000 * (time.thread_time() - began)


def full_beside_scaled(repeats: int) -> dict[str, dict[str, Any]]:
    """{size: {decoding: milliseconds, "ratio"}} of JPEGs for an input of INPUT_PX, and for the embedded backbone's."""
    rows: dict[str, dict[str, Any]] = {}
    for input_px in (INPUT_PX, 96):
        preparers = {decoding: Preparer(input_px, decoding=decoding) for decoding in DECODINGS}
        for name, (width, height) in CAMERAS.items():
            images = [record.value or b"" for record in records(width, height, 8)]
            found: dict[str, list[float]] = {decoding: [] for decoding in preparers}
            for turn in range(1 + 4 * repeats):
                for decoding, preparer in preparers.items():
                    took_ms = cpu_ms(preparer, images[turn % len(images)])
                    if turn:  # the first one warms up
                        found[decoding].append(took_ms)
            cells = {of: f"{min(ms):6.1f} {median(ms):6.1f} {max(ms):6.1f}" for of, ms in found.items()}
            ratio = round(median(found["full"]) / median(found["scaled"]), 2)
            rows[f"{name} to {input_px} px"] = {**found, "ratio": ratio}
            print(f"{name:>12} to {input_px:3} px  ms min median max: full {cells['full']}  scaled {cells['scaled']}  "
                  f"(by {preparers['scaled'].shrink(height, width)})  ratio {ratio:.2f}", flush=True)  # fmt: skip
    return rows


def rate(run: Callable[[], object], count: int) -> float:
    """Records per second of one run."""
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)


def processes_beside_threads(workers: int, repeats: int) -> dict[str, dict[str, float]]:
    """{size: images per second of both, and their ratio}."""
    decoder = Decoder(Preparers(Preparer(INPUT_PX, Limits())), StreamNaming(), DecodingSettings(workers=workers))
    processes = DecoderPool(decoder)
    rows = {}
    with ThreadPoolExecutor(workers) as threads:
        for name, (width, height, count) in SIZES.items():
            given = records(width, height, count)
            found: dict[str, list[float]] = {"processes": [], "threads": []}
            for repeat in range(repeats + 1):
                turns = {
                    "processes": lambda r=given: [future.result() for future in processes.submit(r)],
                    "threads": lambda r=given: list(threads.map(decoder, r)),
                }
                for kind, run in turns.items():
                    speed = rate(run, count)
                    if repeat:  # the first one warms up
                        found[kind].append(speed)
            speeds = {kind: round(median(each), 1) for kind, each in found.items()}
            rows[name] = {**speeds, "ratio": round(speeds["processes"] / speeds["threads"], 2)}
            print(f"{name:>12}  processes {speeds['processes']:8.1f}/s  threads {speeds['threads']:8.1f}/s  "
                  f"ratio {rows[name]['ratio']:.2f}", flush=True)  # fmt: skip
    processes.close()
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--only", choices=("full-scaled", "processes-threads"))
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/decoders.json"))
    args = arguments.parse_args()
    document: dict[str, Any] = {"workers": args.workers, "input_px": INPUT_PX}
    if args.only != "processes-threads":
        document["full_and_scaled_ms"] = full_beside_scaled(args.repeats)
    if args.only != "full-scaled":
        document["images"] = processes_beside_threads(args.workers, args.repeats)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
