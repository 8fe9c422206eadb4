"""What decoding in processes costs beside decoding in threads: the same records, alternating, as a ratio.

    python benchmarks/decoders.py [--workers 2] [--repeats 5]

JPEGs of three sizes through `DecoderPool` and through a thread pool that calls the same decoder; images per second, the
median of the repeats, and processes / threads.
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

import numpy as np
from PIL import Image, ImageFilter

from detectors.images.decode import Limits
from detectors.images.prepare import Preparer
from monitor.core.types import Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.settings import DecodingSettings, StreamNaming

SIZES = {"64 x 64": (64, 64, 2000), "640 x 480": (640, 480, 300), "1920 x 1080": (1920, 1080, 60)}
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


def rate(run: Callable[[], object], count: int) -> float:
    """Records per second of one run."""
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("-o", "--output", type=Path, default=Path("results/decoders.json"))
    args = arguments.parse_args()
    decoder = Decoder(Preparers(Preparer(INPUT_PX, Limits())), StreamNaming(), DecodingSettings(workers=args.workers))
    processes = DecoderPool(decoder)
    rows = {}
    with ThreadPoolExecutor(args.workers) as threads:
        for name, (width, height, count) in SIZES.items():
            given = records(width, height, count)
            found: dict[str, list[float]] = {"processes": [], "threads": []}
            for repeat in range(args.repeats + 1):
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
    args.output.write_text(json.dumps({"workers": args.workers, "input_px": INPUT_PX, "images": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
