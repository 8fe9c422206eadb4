"""What is held between poll and apply stays within its limit, whatever a few bytes unpack to."""

from __future__ import annotations

import io
import tracemalloc
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.decode.pool import DecodedRecord, DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.decode.values import most_images
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.settings import DecodingSettings, ScoringSettings, StreamNaming
from monitor.ingest.work import Backlog, OwnedPartition, Work
from monitor.sources.protocol import Polled
from tests.faults.rig import wait_for
from tests.pictures import encoded, pictures

IMAGE = next(iter(pictures(6, 1)))[1]


def npy(images: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.stack([IMAGE[:4, :4]] * images))
    return buffer.getvalue()


def packed(images: int, **more: object) -> bytes:
    return bytes(msgpack.packb({**more, "images": [encoded(IMAGE)] * images}))


def record(value: bytes | None, offset: int = 0) -> Record:
    return Record(Partition("images", 0), offset, 1000 + offset, b"cam", value)


@pytest.mark.parametrize(
    ("value", "images"),
    [
        (encoded(IMAGE), 1),
        (npy(7), 1024),
        (packed(5), 1024),
        (b"\x81\xa6images\xc1", 1024),
        (b"\x93NUMPY\x01\x00", 1024),
        (b"no picture", 1),
        (None, 1),
    ],
)
def test_what_may_hold_several_images_sets_the_memory_of_all_allowed_ones_aside(
    value: bytes | None, images: int
) -> None:
    assert most_images(record(value), 1024) == images


def hostile() -> list[bytes]:
    """Batches of a few MiB that would become a hundred times as much when they are read as Python values."""
    lists, long = b"\xdd\x00\x40\x00\x00" + b"\x90" * (4 << 20), b"\xdb\x00\x40\x00\x00" + b"x" * (4 << 20)
    return [
        b"\x81" + lists + b"\x01",
        b"\x82\xa1a" + lists + b"\xa6images\x90",
        b"\x81\xa6images" + lists,
        b"\x81\xa6images\x91" + lists,
        b"\x81\xa3ids" + lists,
        b"\x82" + long + b"\x01" + b"\xa6images\x90",
        b"\xdf\x00\x40\x00\x00" + b"\x90" * (4 << 20),
    ]


def test_nothing_of_a_value_is_built_in_the_daemon_and_little_in_a_decoder(profile_folder: Path) -> None:
    decoding = DecodingSettings(workers=1, worker_memory_bytes=150 << 20)
    profiles = load_profiles(ScoringSettings(profile=str(profile_folder), device="cpu"), decoding)
    decoders = DecoderPool(Decoder(profiles.preparers(), StreamNaming(), decoding))
    partition, values = Partition("images", 0), hostile()
    backlog = Backlog(64 << 20, 1 << 10, 1024)
    tracemalloc.start()
    try:
        for i, value in enumerate(values):
            batch = replace(record(value, i), headers=(("content-type", b"application/msgpack"),))
            polled = Polled({partition: [batch]}, {partition: i + 1})
            backlog.add(polled, {partition: OwnedPartition(partition, "token", 0, None)})
        letters = [future.result(60) for work in backlog.start() for future in decoders.submit(work.records)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        decoders.close()
    assert [letter.reason for letter in letters if isinstance(letter, DeadLetter)] == [
        *("msgpack", "empty", "images", "msgpack", "images", "empty", "msgpack")
    ]
    assert peak < 3 * len(values[0])  # one record on its way to a decoder, as it is


def test_decoding_holds_no_more_than_its_limit(profile_folder: Path) -> None:
    decoding = DecodingSettings(workers=1)
    scoring = ScoringSettings(profile=str(profile_folder), device="cpu", batch_images=16, batch_age_s=0.01)
    profiles = load_profiles(scoring, decoding)
    decoders = DecoderPool(Decoder(profiles.preparers(), StreamNaming(), decoding))
    stage = ScoringStage(profiles, scoring)
    limit = 50 * stage.image_bytes
    backlog = Backlog(limit, stage.image_bytes, max_images=20)
    try:
        partition = Partition("images", 0)
        polled = Polled({partition: [record(npy(10), i) for i in range(20)]}, {partition: 25})
        backlog.add(polled, {partition: OwnedPartition(partition, "token", 0, None)})
        assert backlog.held_bytes == 20 * record(npy(10)).size
        taken: list[Work] = []

        def done() -> bool:
            started = backlog.start()
            assert backlog.started_bytes <= limit
            for work in started:
                work.decoding = decoders.submit(work.records)
            stage.submit(started)
            scored = stage.take()
            backlog.finish(scored)
            taken.extend(scored)
            return not backlog.works

        wait_for("all of it", done)
        assert len(taken) > 4
        outcomes = [outcome for work in taken for outcome in work.outcomes]
        assert [len(outcome) for outcome in outcomes if isinstance(outcome, list)] == [10] * 20
        # each part ends where the next one begins, and the last where the poll ended
        assert [work.next_offset for work in taken] == [*(work.records[0].offset for work in taken[1:]), 25]
        assert (backlog.held_bytes, backlog.started_bytes) == (0, 0)
    finally:
        decoders.close()
        stage.close()


def test_what_decoding_does_not_need_is_free_for_the_next() -> None:
    backlog, partition = Backlog(15 * 1000, 1000, max_images=10), Partition("images", 0)
    records = [record(npy(2), i) for i in range(3)]
    backlog.add(Polled({partition: records}, {partition: 3}), {partition: OwnedPartition(partition, "token", 0, None)})
    (first,) = backlog.start()
    decoded: Future[DecodedRecord] = Future()
    first.decoding = [decoded]
    assert not backlog.start()
    decoded.set_result(DeadLetter(records[0], "cam", "npy", "none of its ten possible images came"))
    assert [work.records for work in backlog.start()] == [[records[1]]]
