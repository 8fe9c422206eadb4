"""Images that records name instead of holding: on real files, on a local S3, and out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from pydantic import ValidationError

from detectors.images.prepare import Preparer
from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode import pool as pool_module
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.decode.remote import UnavailableError
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import DecodingSettings, StreamNaming
from monitor.store.child_process import free_port
from tests.pictures import encoded, pictures

PICTURE = encoded(next(pictures(3, 1))[1])


def decoder(*prefixes: str, **limits: float) -> Decoder:
    settings = DecodingSettings.model_validate({"claim_check_prefixes": prefixes, "workers": 1, **limits})
    return Decoder(Preparers(Preparer(32)), StreamNaming(), settings)


def record(uri: object, *headers: tuple[str, bytes]) -> Record:
    return Record(Partition("images", 0), 7, 1_000, b"cam-1", json.dumps({"uri": uri}).encode(), headers)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with images/a.png, and a secret beside it that no record may reach."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(PICTURE)
    (tmp_path / "images-private").mkdir()
    (tmp_path / "images-private/a.png").write_bytes(PICTURE)
    return tmp_path


def test_a_file_is_fetched_and_decoded_like_a_value(shelf: Path) -> None:
    (image,) = decoder(f"file://{shelf}/images")(record(f"file://{shelf}/images/a.png"))
    assert (image.id, image.stream, image.event_time_ms) == ("images/0/7", "cam-1", 1_000)
    whole = Record(Partition("images", 0), 7, 1_000, b"cam-1", PICTURE)
    assert image.prepared.digest == decoder()(whole)[0].prepared.digest


@pytest.mark.parametrize(
    "uri",
    [
        "{0}/images-private/a.png",
        "{0}/images/../images-private/a.png",
        "{0}/images/%2e%2e/images-private/a.png",
        "{0}/images/..\\images-private/a.png",
        "{0}/images/./a.png",
        "{0}/images/out.png",
        "{0}/images/outside/a.png",
        "{0}/images/",
        "{0}/images",
        "{0}/images/pipe",
        "{0}/images/none.png",
        "{0}/images/a.png::{0}/images-private/a.png",
        "{0}/images/a\n.png",
        "simplecache::{0}/images/a.png",
        "FILE{0}/images/a.png",
    ],
)
def test_nothing_else_can_be_reached(shelf: Path, uri: str) -> None:
    (shelf / "images/out.png").symlink_to(shelf / "images-private/a.png")
    (shelf / "images/outside").symlink_to(shelf / "images-private")
    os.mkfifo(shelf / "images/pipe")
    asked = uri.format(f"file://{shelf}").replace("FILEfile", "FILE")
    with pytest.raises(DecodeError) as refused:
        decoder(f"file://{shelf}/images/")(record(asked))
    assert refused.value.reason == "claim-check"


@pytest.mark.parametrize("uri", [None, 5, "", ["file:///x"], {"a": 1}])
def test_what_is_no_uri_is_refused(shelf: Path, uri: object) -> None:
    with pytest.raises(DecodeError, match=r"/uri"):
        decoder(f"file://{shelf}/images/")(record(uri))


def test_without_prefixes_json_is_no_image() -> None:
    with pytest.raises(DecodeError) as refused:
        decoder()(record("file:///etc/passwd"))
    assert refused.value.reason == "format"


def test_what_the_object_holds_is_limited_like_a_value(shelf: Path) -> None:
    below = shelf / "images"
    (below / "large").write_bytes(b"x" * 20_001)
    (below / "empty").write_bytes(b"")
    (below / "text").write_bytes(b"no image")
    (below / "batch").write_bytes(msgpack.packb({"images": [PICTURE, PICTURE]}))
    for name, reason in (("large", "bytes"), ("empty", "claim-check"), ("text", "format"), ("batch", "images")):
        with pytest.raises(DecodeError) as refused:
            decoder(f"file://{below}", max_record_bytes=20_000)(record(f"file://{below}/{name}"))
        assert refused.value.reason == reason, str(refused.value)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("s3:bucket", "is no prefix"),
        ("s3://", "is no prefix"),
        ("s3://b/../c/", "is no prefix"),
        ("simplecache::s3://b/", "is no prefix"),
        ("https://example.org/images/", "may redirect"),
        ("file://images/", "is not absolute"),
    ],
)
def test_a_prefix_that_cannot_work_is_refused_by_name(prefix: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        decoder(prefix)


def test_a_store_without_a_driver_is_named_before_the_start() -> None:
    decoder("file:///srv/", "s3://bucket/").reader.check()
    with pytest.raises(ValueError, match=r"decoding\.claim_check_prefixes: nosuch:// needs"):
        decoder("nosuch://bucket/").reader.check()


# -------------------------------------------------------------------------------------------------- a store


@pytest.fixture(scope="module")
def s3(request: pytest.FixtureRequest) -> Iterator[str]:
    """Endpoint of a local S3 with the bucket `cameras`, in the environment as a deployment has it."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes a second

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as changed:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            changed.setenv(name, value)
        import s3fs  # noqa: PLC0415 - likewise

        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir("cameras")
        store.pipe("cameras/line-1/a.png", PICTURE)
        store.pipe("cameras/line-1/empty.png", b"")
        yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.mark.slow
def test_an_object_is_fetched_in_the_decoder_process(s3: str) -> None:
    made = DecoderPool(decoder("s3://cameras/line-1/"))
    try:
        uris = [f"s3://cameras/line-1/{name}" for name in ("a.png", "none.png", "empty.png", "../line-2/a.png")]
        found = [future.result(60) for future in made.submit([record(uri) for uri in uris])]
    finally:
        made.close()
    assert isinstance(found[0], list)
    assert found[0][0].prepared.width > 0
    refused = [letter for letter in found[1:] if isinstance(letter, DeadLetter)]
    assert [letter.reason for letter in refused] == ["claim-check"] * 3
    assert "none.png: FileNotFoundError" in refused[0].error


def test_a_bucket_that_is_not_allowed_is_not_asked(s3: str) -> None:
    with pytest.raises(DecodeError, match="below none of"):
        decoder("s3://cameras/line-1/")(record("s3://others/line-1/a.png"))


# -------------------------------------------------------------------------------------------------- out of reach


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 endpoint at which nobody listens."""
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ACCESS_KEY_ID": "a",
                        "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_store_that_is_away_costs_no_record(s3: str, no_store: None, tmp_path: Path) -> None:
    """A record waits for its store, another one does not, and the first gets through once an S3 is there."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    (tmp_path / "a.png").write_bytes(PICTURE)
    made = DecoderPool(decoder("s3://cameras/", f"file://{tmp_path}/"))
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    try:
        held, other = made.submit([record("s3://cameras/line-1/a.png"), record(f"file://{tmp_path}/a.png")])
        assert isinstance(other.result(60), list)
        assert not held.done()
        server.start()  # with the objects of the other one: both are in this process
        assert isinstance(held.result(60), list), held.result()
    finally:
        made.close()
        server.stop()


@pytest.mark.slow
def test_a_record_waits_no_longer_than_the_limit(no_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HOLD_S", 0.0)
    made = DecoderPool(decoder("s3://bucket/"))
    try:
        (future,) = made.submit([record("s3://bucket/a.png")])
        letter = future.result(60)
    finally:
        made.close()
    assert isinstance(letter, DeadLetter)
    assert letter.reason == "unavailable"
    assert "s3://bucket/a.png" in letter.error


def test_a_store_that_never_answers_is_interrupted() -> None:
    """In a process of its own, as in a decoder: nothing else there sets an alarm."""
    program = "import time; from monitor.ingest.decode.remote import time_limit\nwith time_limit(0.05): time.sleep(30)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stderr.endswith("TimeoutError: no whole answer in 0.05 s\n")
    assert time.monotonic() - began < 20


def test_an_absent_store_is_no_fault_of_the_record(no_store: None) -> None:
    with pytest.raises(UnavailableError, match=r"s3://bucket/a\.png"):
        decoder("s3://bucket/")(record("s3://bucket/a.png"))
