"""A worker that is killed half way, and a run that is interrupted, change nothing about the results of an archive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.cli.archive.cluster import Job, Worker
from monitor.cli.archive.reading import Naming
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import shards_of
from tests.archive.parts import drawn, tar_of
from tests.e2e.running import wait_for

pytestmark = pytest.mark.faults
IMAGES, SHARD = 1200, 50


def test_a_killed_worker_and_an_interrupted_run_leave_the_same_results(profile_folder: Path, tmp_path: Path) -> None:
    archive, out = tar_of(tmp_path / "in.tar", drawn(9, IMAGES)), tmp_path / "out"
    command = [sys.executable, "-m", "monitor", "archive", "score", str(profile_folder), str(archive), "-o", str(out)]
    command += ["--shard-images", str(SHARD), "--workers", "2", "--device", "cpu"]

    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for("the first shards", lambda: len(parts(out)) >= 2, patience_s=200)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    finished = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 2 <= len(finished) < IMAGES // SHARD

    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for("more shards", lambda: len(parts(out)) > len(finished) + 1, patience_s=200)
    os.kill(workers_of(second.pid)[0], signal.SIGKILL)
    _, said = second.communicate(timeout=250)
    assert second.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in finished} == finished

    job = Job(str(tmp_path / "alone"), Naming(), "cpu", profile=str(profile_folder))
    worker = Worker(job, threads=1)
    for number, shard in enumerate(shards_of([str(archive)], SHARD)):
        worker.work(number, shard)
    alone, together = (list(Results(str(path)).tables()) for path in (tmp_path / "alone", out))
    assert together == alone
    assert sum(table.num_rows for table in together) == IMAGES


def parts(out: Path) -> list[Path]:
    """The results that are there."""
    return sorted(out.glob("part-*.parquet"))


def workers_of(ancestor: int) -> list[int]:
    """Processes of Ray's workers that descend from a process and hold the model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"Worker" in title and ancestor in ancestors(int(entry.name)):
                found.append(int(entry.name))
    return found


def ancestors(pid: int) -> list[int]:
    """The parents of a process."""
    found: list[int] = []
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
        found.append(pid)
    return found
