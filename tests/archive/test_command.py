"""The command and its job for Kubernetes; an archive and its results in an object store."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from detectors.images.reading import InputError
from monitor.__main__ import build_parser, main
from monitor.cli.archive.cluster import Job, Worker
from monitor.cli.archive.models import keep_profile
from monitor.cli.archive.reading import Naming
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import shards_of
from tests.archive.parts import drawn, parquet_of, tar_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local S3 with the buckets `in` and `out`, in the environment as a worker has it."""
    import s3fs  # noqa: PLC0415 - takes a second
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - likewise

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    for bucket in ("archive-in", "archive-out"):
        store.mkdir(bucket)
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_an_object_store_is_read_and_written_as_a_folder_is(s3: None, profile_folder: Path, tmp_path: Path) -> None:
    import s3fs  # noqa: PLC0415 - takes a second

    images, store = drawn(13, 9), s3fs.S3FileSystem()
    names = list(images)
    for name in names[:4]:
        store.pipe_file(f"archive-in/day/{name}", images[name])
    store.put_file(tar_of(tmp_path / "b.tar", {name: images[name] for name in names[4:7]}), "archive-in/day/b.tar")
    rows = [{"id": name, "image": images[name]} for name in names[7:]]
    store.put_file(parquet_of(tmp_path / "c.parquet", rows), "archive-in/day/c.parquet")
    shards = shards_of(["s3://archive-in/day/"], shard_images=2)
    assert [shard.kind for shard in shards] == ["files", "files", "tar", "parquet"]
    out = "s3://archive-out/scores"
    results = Results(out)
    results.begin({"kind": "scores", "profile": "a"}, shards)
    keep_profile(results, profile_folder)
    worker = Worker(Job(out, Naming(), "cpu", profile=out), threads=1)
    for number, shard in enumerate(shards):
        assert worker.work(number, shard).error == ""
    again = Results(out)
    assert again.finished() == {0, 1, 2, 3}
    assert [name for table in again.tables(["id"]) for name in table["id"].to_pylist()] == names
    with pytest.raises(InputError, match="of another profile"):
        again.begin({"kind": "scores", "profile": "b"}, shards)


def test_the_job_for_kubernetes_gives_a_command_that_exists() -> None:
    job = yaml.safe_load((ROOT / "deploy/kubernetes/ray/rayjob.yaml").read_text())["spec"]
    program, *words = shlex.split(job["entrypoint"])
    args = build_parser(words[:1]).parse_args(words)
    assert (program, args.ray_address) == ("layerwatch", "auto")
    locked = (ROOT / "requirements/lock.txt").read_text()
    assert f"\nray=={job['rayClusterSpec']['rayVersion']} " in locked


def test_without_the_extra_the_command_says_what_to_install(
    profile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tar_of(tmp_path / "a.tar", drawn(14, 1))
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["archive", "score", str(profile_folder), str(tar), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 1
    assert "layerwatch archive: needs ray: pip install 'layerwatch[ray]'" in capsys.readouterr().err


def test_features_take_the_place_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "images", "--features", str(tmp_path), "-o", str(tmp_path / "profile")]
    assert main(words) == 1
    assert "--features has its images and its backbone" in capsys.readouterr().err
