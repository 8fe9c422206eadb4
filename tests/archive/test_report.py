"""The report counts in the daemon's buckets, and its alerts are what the daemon's rules say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import detectors
from detectors.images.reading import InputError
from monitor.cli.archive.cluster import Job, Worker
from monitor.cli.archive.drift import count
from monitor.cli.archive.reading import Naming
from monitor.cli.archive.report import write_report
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import shards_of
from monitor.core.buckets import IMAGES, REJECTED, fill_groups, sum_vectors
from monitor.ingest.scoring.profiles import layout_of
from tests.archive.parts import drawn, sample, tar_of

START_S, STEP_S = 1_750_000_000, 2


@pytest.fixture
def scored(profile_folder: Path, tmp_path: Path) -> str:
    """Two cameras, an image every two seconds; cam-1 drifts from the 60th on, and its tenth image is none."""
    normal, strange = list(drawn(10, 60).values()), list(drawn(11, 60, stripes=True).values())
    members: dict[str, bytes] = {}
    for i in range(240):
        camera, place = i % 2, i // 2
        image = strange[place - 60] if camera and place >= 60 else normal[place % 60]
        if camera and place == 10:
            image = b"no image"
        members |= sample(f"{i:03}", image, {"stream": f"cam-{camera}", "time": 1000 * (START_S + STEP_S * place)})
    shards = shards_of([str(tar_of(tmp_path / "in.tar", members))], shard_images=50)
    job = Job(str(tmp_path / "out"), Naming(), "cpu", profile=str(profile_folder))
    profile = detectors.load_profile(profile_folder, "cpu")
    facts = {"kind": "scores", "profile": profile.fingerprint, "condition": "", "engine": "torch", "inputs": ["in.tar"]}
    Results(job.out).begin({**facts, "layout": layout_of(profile).to_json()}, shards)
    worker = Worker(job, threads=1)
    # in whatever order workers finish them
    for number in (3, 0, 4, 2, 1):
        worker.work(number, shards[number])
    return job.out


def test_the_stream_that_drifts_is_found_with_the_rules_of_the_configuration(
    scored: str, profile_folder: Path, tmp_path: Path
) -> None:
    layout = layout_of(detectors.load_profile(profile_folder, "cpu"))
    counted = count(Results(scored), layout, 10_000, lambda _: None)
    hours = counted.by_step(3_600_000)
    totals = {stream: sum_vectors(steps.values()) for stream, steps in hours.items()}
    assert {stream: (v[IMAGES], v[REJECTED]) for stream, v in totals.items()} == {"cam-0": (120, 0), "cam-1": (119, 1)}
    rows = [row for table in Results(scored).tables() for row in table.to_pylist() if row["stream"] == "cam-0"]
    p_values = np.array([[row[f"{signal}_p"] for signal in layout.signals] for row in rows])
    (direct,) = fill_groups(layout, p_values, np.zeros(120, dtype=np.intp), 1)
    assert (totals["cam-0"] == direct).all()

    rate = {"name": "rate", "kind": "rate", "level": 0.1, "window_s": 60, "threshold": 0.3, "min_images": 10}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"rules": [rate, {"name": "still", "kind": "silence"}]}))
    documents = [json.loads(line) for line in write_report(scored, None, config, as_json=True)]
    fired = [d["data"] for d in documents if d["type"] == "alert.firing"]
    assert [(data["rule"], data["stream"]) for data in fired] == [("rate", "cam-1")]
    page = (Path(scored) / "report.html").read_text()
    assert "cam-1" in page
    assert "2025-06-15" in page
    assert fired[0]["summary"].split(" (")[0] in page
    assert "<script" not in page


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"archive\.json: cannot be read"):
        write_report(str(tmp_path), None, None, as_json=False)
