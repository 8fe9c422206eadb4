"""Archives are read in the same shards every time, every image has a row, and its scores are those of `score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detectors
from detectors.images.reading import InputError
from detectors.profile.steady import steady_scores
from monitor.cli.archive.cluster import Job, Worker
from monitor.cli.archive.reading import Item, Naming, read_shard
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import Shard, shards_of
from tests.archive.parts import drawn, folder_of, parquet_of, sample, tar_of

NAMING = Naming()


def items(shards: list[Shard], naming: Naming = NAMING) -> list[Item]:
    """All images of some shards."""
    return [item for shard in shards for item in read_shard(Shard.from_json(_json(shard)), naming)]


def _json(shard: Shard) -> str:
    return json.dumps({name: getattr(shard, name) for name in Shard.__slots__})


# ------------------------------------------------------------------------------------------------ reading


def test_a_folder_is_cut_into_chunks_by_name_and_holds_tar_and_parquet_files(tmp_path: Path) -> None:
    images = drawn(1, 7)
    folder_of(tmp_path / "in", {**images, "b/x.png": b"", "b-c/x.png": b"", "note.txt": b"no image"})
    tar_of(tmp_path / "in" / "more.tar", {f"t/{name}": image for name, image in images.items()})
    parquet_of(tmp_path / "in" / "rows.parquet", [{"image": image} for image in images.values()], group=2)
    shards = shards_of([str(tmp_path / "in")], shard_images=3)
    assert [shard.kind for shard in shards] == ["files"] * 3 + ["tar"] * 3 + ["parquet"] * 2
    found = items(shards)
    # in the order of `layerwatch score`: a folder before what its name is the beginning of
    assert [item.id for item in found[:9]] == [*sorted(images), "b/x.png", "b-c/x.png"]
    assert [item.id for item in found[9:16]] == [f"t/{name}" for name in images]
    assert [item.id for item in found[16:]] == [f"rows.parquet/{i}" for i in range(7)]
    assert [item.image for item in found[16:]] == list(images.values())
    assert shards == shards_of([str(tmp_path / "in")], shard_images=3)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_json_of_a_sample_names_stream_and_time_and_is_never_cut_off(tmp_path: Path, mode: str) -> None:
    members: dict[str, bytes] = {}
    for i, image in enumerate(drawn(2, 5).values()):
        members |= sample(f"a/{i}", image, {"camera": f"cam-{i % 2}", "time": f"2026-03-0{i + 1}T00:00:00Z"})
    path = tar_of(tmp_path / ("s.tar" if mode == "w" else "s.tar.gz"), members, mode)
    shards = shards_of([str(path)], shard_images=2)
    assert len(shards) == (3 if mode == "w" else 1)
    found = items(shards, Naming(stream_field="camera"))
    assert [(item.id, item.stream) for item in found] == [(f"a/{i}.png", f"cam-{i % 2}") for i in range(5)]
    assert [item.event_time_ms for item in found] == [1_772_323_200_000 + 86_400_000 * i for i in range(5)]


def test_a_path_names_stream_and_time_else_the_file_does(tmp_path: Path) -> None:
    image = next(iter(drawn(3, 1).values()))
    files = {"cam-1/20260301/a.png": image, "cam-2/20261301/b.png": image, "c.png": image}
    path = tar_of(tmp_path / "in.tar", files)
    naming = Naming("other", r"(?P<stream>cam-\d)/(?P<time>\d{8})/", "%Y%m%d")
    right, wrong, neither = items(shards_of([str(path)]), naming)
    assert (right.stream, right.event_time_ms, right.reason) == ("cam-1", 1_772_323_200_000, "")
    assert (wrong.stream, wrong.reason) == ("cam-2", "event-time")
    assert (neither.stream, neither.event_time_ms, neither.reason) == ("other", 1_000_000_000, "")
    with pytest.raises(InputError, match="neither a group"):
        Naming(pattern="cam")


def test_parquet_columns_are_named_by_options(tmp_path: Path) -> None:
    image = next(iter(drawn(4, 1).values()))
    rows: list[dict[str, Any]] = [
        {"picture": {"bytes": image, "path": "x.png"}, "key": 7, "who": "cam", "at": 1_000},
        {"picture": {"bytes": None, "path": None}, "key": 8, "who": None, "at": 2_000},
    ]
    path = parquet_of(tmp_path / "a.parquet", rows)
    shards = shards_of([str(path)])
    first, second = items(shards, Naming("s", "", "", "picture", "key", "who", "at"))
    assert (first.id, first.stream, first.event_time_ms, first.image) == ("7", "cam", 1000, image)
    assert (second.id, second.stream, second.image) == ("8", "s", b"")
    with pytest.raises(InputError, match="no column 'image'"):
        items(shards)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for uri, said in (("no-such-folder", "no-such-folder"), ("nope://x", "nope"), (str(tmp_path), "no images")):
        with pytest.raises(InputError, match=said):
            shards_of([uri])


# ------------------------------------------------------------------------------------------------ results


@pytest.fixture
def job(profile_folder: Path, tmp_path: Path) -> Job:
    return Job(str(tmp_path / "out"), NAMING, "cpu", profile=str(profile_folder))


def test_scores_are_those_of_single_images_whatever_else_is_in_the_shard(
    profile_folder: Path, job: Job, tmp_path: Path
) -> None:
    files = drawn(5, 21)
    files["5-3.png"] = b"no image"
    folder_of(tmp_path / "in", files)
    worker = Worker(job, threads=2)
    shards = shards_of([str(tmp_path / "in")], shard_images=9)
    done = [worker.work(number, shard) for number, shard in enumerate(shards)]
    assert [(each.images, each.refused) for each in done] == [(9, 1), (9, 0), (3, 0)] or sum(
        d.refused for d in done
    ) == 1
    profile = detectors.load_profile(profile_folder, "cpu")
    rows = {row["id"]: row for table in Results(job.out).tables() for row in table.to_pylist()}
    assert rows.keys() == files.keys()
    assert rows["5-3.png"]["reason"] == "format"
    assert rows["5-3.png"]["ood"] is None
    for name in files.keys() - {"5-3.png"}:
        alone = steady_scores(profile, [profile.prepare(files[name], name.encode())])
        assert [rows[name][signal] for signal in profile.signals] == alone.values[0].tolist()
        assert [rows[name][f"{signal}_p"] for signal in profile.signals] == alone.p_values[0].tolist()
        assert rows[name]["shape"] == "48x48/RGB"


def test_a_shard_is_written_whole_and_a_rerun_goes_on_where_it_ended(job: Job, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "in", drawn(6, 6))
    shards = shards_of([str(path)], shard_images=3)
    results, facts = Results(job.out), {"kind": "scores", "profile": "a"}
    assert results.begin(facts, shards) == results.begin(facts, shards)
    assert Worker(job, 1).work(1, shards[1]).error == ""
    assert results.finished() == {1}
    with pytest.raises(InputError, match=r"of another profile \(a, this is b\)"):
        results.begin({**facts, "profile": "b"}, shards)
    (path / "6-0.png").write_bytes(b"another")
    with pytest.raises(InputError, match="inputs that have changed"):
        results.begin(facts, shards_of([str(path)], shard_images=3))
    with pytest.raises(InputError, match="is not empty"):
        Results(str(path)).begin(facts, shards)


def test_a_damaged_tar_fails_alone(job: Job, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", drawn(7, 3), "w:gz")
    path.write_bytes(path.read_bytes()[:2000])
    done = Worker(job, 1).work(0, shards_of([str(path)])[0])
    assert "a.tar.gz" in done.error
    assert Results(job.out).finished() == set()


def test_features_do_not_depend_on_the_batch(profile_folder: Path) -> None:
    profile = detectors.load_profile(profile_folder, "cpu")
    prepared = [profile.prepare(image) for image in drawn(8, 40).values()]
    whole = steady_scores(profile, prepared).values
    order = np.random.default_rng(0).permutation(40)
    mixed = np.concatenate(
        [steady_scores(profile, [prepared[i] for i in part]).values for part in np.split(order, [5, 22])]
    )
    assert (mixed == whole[order]).all()
