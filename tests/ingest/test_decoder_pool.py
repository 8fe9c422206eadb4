"""Decoder processes that die, hang or grow: the culprit becomes a dead letter, and nothing else does."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import msgpack
import numpy as np
import pytest
from PIL import Image

from detectors.images.decode import Limits
from detectors.images.prepare import Preparer
from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode import pool as pool_module
from monitor.ingest.decode.large import MOST_BYTES, LargePicture
from monitor.ingest.decode.pool import DecoderError, DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.settings import DecodingSettings, StreamNaming
from monitor.telemetry import failpoints
from tests.files import png16, tiff
from tests.pictures import encoded, pictures

pytestmark = pytest.mark.slow

PARTITION = Partition("images", 0)
PICTURES = [encoded(image) for _, image in pictures(3, 12)]


def decoder(workers: int = 2, timeout_s: float = 20.0) -> Decoder:
    settings = DecodingSettings(workers=workers, timeout_s=timeout_s, worker_memory_bytes=400_000_000)
    preparer = Preparer((48, 96), Limits(), resize="letterbox", fill=(9, 8, 7))  # nothing here is the default
    return Decoder(Preparers(preparer), StreamNaming(), settings)


def records(values: list[bytes]) -> list[Record]:
    return [Record(PARTITION, i, 1000 + i, b"cam-1", value) for i, value in enumerate(values)]


@pytest.fixture
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """Two processes with the failpoints that the test names; one second for a record."""
    monkeypatch.setenv(failpoints.VARIABLE, getattr(request, "param", ""))
    made = DecoderPool(decoder(workers=2, timeout_s=1.0))
    yield made
    made.close()


def test_processes_give_what_the_decoder_gives(pool: DecoderPool) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 2**16, (30, 20, 3), dtype=np.uint16)  # both are read by C libraries under confinement
    given = records([*PICTURES, tiff(deep, deflate=True), png16(deep)])
    for record, future in zip(given, pool.submit(given), strict=True):
        (expected,), found = decoder()(record), future.result(30)
        assert isinstance(found, list)
        (image,) = found
        assert (image.id, image.stream, image.event_time_ms) == (expected.id, expected.stream, expected.event_time_ms)
        np.testing.assert_array_equal(image.prepared.pixels, expected.prepared.pixels)
        np.testing.assert_array_equal(image.prepared.properties, expected.prepared.properties)
        assert (image.prepared.digest, image.prepared.key) == (expected.prepared.digest, expected.prepared.key)
        assert (image.prepared.width, image.prepared.mode) == (expected.prepared.width, expected.prepared.mode)
        assert image.prepared.resize == "letterbox"


@pytest.mark.parametrize(
    ("pool", "reason"),
    [("decode:kill~CULPRIT", "crashed"), ("decode:hang~CULPRIT", "timeout"), ("decode:oom@*~CULPRIT", "memory")],
    indirect=["pool"],
)
def test_the_culprit_alone_is_rejected(pool: DecoderPool, reason: str) -> None:
    values = [*PICTURES]
    values[3] += b"CULPRIT"
    values[4] += b"CULPRIT"
    found = [future.result(60) for future in pool.submit(records(values))]
    bad = {i: outcome for i, outcome in enumerate(found) if isinstance(outcome, DeadLetter)}
    assert {i: letter.reason for i, letter in bad.items()} == {3: reason, 4: reason}
    assert bad[3].record.value == values[3]
    assert bad[3].stream == "cam-1"


def test_a_large_picture_is_the_image_itself_within_its_bounds(pool: DecoderPool) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (900, 1600, 3), dtype=np.uint8)  # no picture has more bytes
    small = np.full((30, 80, 3), (200, 30, 30), np.uint8)
    batch = msgpack.packb({"images": [encoded(small), encoded(noise)]})
    (record,) = records([batch])
    first, second = (pool.large(LargePicture(record, i, 512)).result(30) for i in range(2))
    assert max(len(first), len(second)) <= MOST_BYTES
    with Image.open(io.BytesIO(first)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (80, 30))
        assert np.abs(np.asarray(shown).astype(int) - small).max() < 10
    with Image.open(io.BytesIO(second)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (512, 288))


@pytest.mark.parametrize("pool", ["decode:kill~CULPRIT"], indirect=True)
def test_a_large_picture_that_cannot_be_made_is_empty_and_no_dead_letter(pool: DecoderPool) -> None:
    killing, broken, good = records([PICTURES[0] + b"CULPRIT", b"no picture", PICTURES[1]])
    found = [pool.large(LargePicture(record, 0, 512)) for record in (killing, broken, good)]
    assert [bool(future.result(60)) for future in found] == [False, False, True]


@pytest.mark.parametrize("pool", ["decode:kill@5"], indirect=True)
def test_a_process_that_dies_for_other_reasons_costs_no_record(pool: DecoderPool) -> None:
    found = [future.result(60) for future in pool.submit(records(PICTURES * 4))]
    assert all(isinstance(outcome, list) for outcome in found)


def test_close_ends_the_processes_soon_and_cancels_what_waits() -> None:
    made = DecoderPool(decoder(workers=1, timeout_s=30.0))
    futures = made.submit(records(PICTURES * 200))
    futures[0].result(30)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 3
    assert futures[-1].cancelled()


@pytest.mark.parametrize("pool", ["decode:hang@1"], indirect=True)
def test_a_thread_that_is_slow_to_end_ends_after_close(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, release = threading.Event(), threading.Event()
    end = pool_module._Process.end

    def slow_end(process: pool_module._Process) -> None:
        stuck.set()
        release.wait(60)
        end(process)

    monkeypatch.setattr(pool_module._Process, "end", slow_end)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]
    futures = pool.submit(records(PICTURES * 4))
    assert stuck.wait(60)  # one process hangs, and its thread is slow to replace it
    pool.close()
    assert any(thread.is_alive() for thread in threads)
    release.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert all(future.done() for future in futures)


def test_what_pillow_warns_of_is_not_written_between_the_log_lines(capfd: pytest.CaptureFixture[str]) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", exif=exif.tobytes()[:-3])
    with closing(DecoderPool(decoder(workers=1))) as made:  # started here: between set-up and call stderr is another
        (future,) = made.submit(records([buffer.getvalue()]))
        assert isinstance(future.result(60), list)
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_where_no_other_process_starts_every_record_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "decode:kill~CULPRIT")
    made = DecoderPool(decoder(workers=1))
    try:
        made.submit(records(PICTURES[:1]))[0].result(60)
        monkeypatch.setattr(sys, "executable", "/bin/false")
        for future in made.submit(records([PICTURES[0] + b"CULPRIT", *PICTURES])):
            with pytest.raises(DecoderError):
                future.result(60)
    finally:
        made.close()
