"""Speed of `layerwatch archive score` beside plain processes of the library, and whether the numbers are the same.

    python benchmarks/archive.py IMAGES.tar --profile PROFILE

The library: as many processes as there are workers, each with one thread and a part of the images, that read, prepare
and score them in batches, and keep the numbers. The archive: the command, with as many workers of one core. Both run in
turns, so that what else the machine does meets both. `whole` is the time of the command from its start to its end;
`steady` is from the first to the last finished shard, or from the first to the last batch of the processes: what
remains of the whole where an archive is large. Prints a table, and writes JSON to results/archive.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from detectors import load_profile
from detectors.images.reading import read_images
from detectors.profile.steady import BATCH, steady_scores, use_threads
from monitor.cli.archive.results import Results


def library(profile_path: str, images: str, part: tuple[int, int], done: Any) -> None:
    """One process: scores each image of its part; puts (names, values, p-values, times of its first and last batch)."""
    use_threads(1)
    profile = load_profile(profile_path, "cpu")
    mine = (pair for i, pair in enumerate(read_images([images])) if part[0] <= i < part[1])
    names: list[str] = []
    found = []
    began = time.time()
    while batch := list(islice(mine, BATCH)):
        prepared = [profile.prepare(image, name.encode()) for name, image in batch]
        names += [name for name, _ in batch]
        found.append(steady_scores(profile, prepared))
    values, p_values = (np.concatenate([getattr(each, name) for each in found]) for name in ("values", "p_values"))
    done.put((names, values, p_values, began, time.time()))


def run_library(profile: str, images: str, count: int, workers: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Times of all processes together, and {name: (values, p-values)}."""
    context, began = multiprocessing.get_context("spawn"), time.time()
    done = context.Queue()
    edges = np.linspace(0, count, workers + 1).round().astype(int).tolist()
    parts = [(edges[i], edges[i + 1]) for i in range(workers)]
    processes = [context.Process(target=library, args=(profile, images, part, done)) for part in parts]
    for process in processes:
        process.start()
    answers = [done.get() for _ in processes]
    ended = time.time()
    for process in processes:
        process.join()
    # each at its own speed: one that began later is not slower
    steady_rate = sum(len(names) / (last - first) for names, _, _, first, last in answers)
    numbers = {
        name: (value, p) for names, values, ps, *_ in answers for name, value, p in zip(names, values, ps, strict=True)
    }
    return {"whole_s": ended - began, "steady_rate": steady_rate}, numbers


def run_archive(profile: str, images: str, out: Path, workers: int) -> dict[str, float]:
    """Times of the command."""
    command = [sys.executable, "-m", "monitor", "archive", "score", profile, images, "-o", str(out)]
    began = time.time()
    subprocess.run([*command, "--workers", str(workers), "--device", "cpu"], check=True)
    whole_s = time.time() - began
    written = sorted((path.stat().st_mtime, path) for path in out.glob("part-*.parquet"))
    first_s, last_s = written[workers - 1][0], written[-1][0]
    rows = sum(len(table) for table in Results(str(out)).tables())
    shards = len(written)
    return {"whole_s": whole_s, "steady_rate": rows / shards * (shards - workers) / (last_s - first_s)}


def differing(out: Path, numbers: dict[str, Any]) -> int:
    """Numbers of the archive that are not those of the library, bit for bit."""
    count = 0
    for table in Results(str(out)).tables():
        signals = [name.removesuffix("_p") for name in table.column_names if name.endswith("_p")]
        values = np.stack([table[signal].to_numpy() for signal in signals], axis=1)
        p_values = np.stack([table[f"{signal}_p"].to_numpy() for signal in signals], axis=1)
        for name, value, p in zip(table["id"].to_pylist(), values, p_values, strict=True):
            count += int((value != numbers[name][0]).sum() + (p != numbers[name][1]).sum())
    return count


def main() -> None:
    """Run both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a tar file")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/archive.json"))
    args = parser.parse_args()
    count, different, rounds = sum(1 for _ in read_images([args.images])), 0, []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            sides: dict[str, dict[str, float]] = {}
            sides["library"], numbers = run_library(args.profile, args.images, count, args.workers)
            out = Path(folder) / str(turn)
            sides["archive"] = run_archive(args.profile, args.images, out, args.workers)
            different += differing(out, numbers)
            rounds.append(sides)
    table = Table("", "whole, s", "images/s, whole", "images/s, steady")
    found: dict[str, Any] = {"images": count, "workers": args.workers, "rounds": rounds, "differing": different}
    for side in ("library", "archive"):
        whole_s, rate = (float(np.median([each[side][key] for each in rounds])) for key in ("whole_s", "steady_rate"))
        found[side] = {"whole_s": whole_s, "whole_rate": count / whole_s, "steady_rate": rate}
        table.add_row(side, f"{whole_s:.1f}", f"{count / whole_s:.0f}", f"{rate:.0f}")
    ratios = {key: found["archive"][key] / found["library"][key] for key in ("whole_rate", "steady_rate")}
    table.add_row("ratio", "", f"{ratios['whole_rate']:.2f}", f"{ratios['steady_rate']:.2f}")
    found["ratios"] = ratios
    Console().print(table)
    sys.stdout.write(f"{different} of the numbers of {count} images differ\n")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
