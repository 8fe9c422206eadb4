"""What is held between poll and apply stays within its limit, whatever a few bytes unpack to."""

from __future__ import annotations

import io
from pathlib import Path

import msgpack
import numpy as np
import pytest

from monitor.core.types import Partition, Record
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder, count_images
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
        (npy(7), 7),
        (packed(5), 5),
        (packed(5, ids=list("abcde")), 5),
        (b"\x81\xa6images\xc1", 1),
        (b"\x93NUMPY\x01\x00", 1),
        (b"no picture", 1),
        (None, 1),
    ],
)
def test_the_images_of_a_record_are_counted_before_they_are_unpacked(value: bytes | None, images: int) -> None:
    assert count_images(record(value)) == images


def test_decoding_holds_no_more_than_its_limit(profile_folder: Path) -> None:
    decoding = DecodingSettings(workers=1)
    scoring = ScoringSettings(profile=profile_folder, device="cpu", batch_images=16, batch_age_s=0.01)
    profiles = load_profiles(scoring, decoding)
    decoders = DecoderPool(Decoder(profiles.preparers(), StreamNaming(), decoding))
    stage = ScoringStage(profiles, scoring)
    limit = 50 * stage.image_bytes
    backlog = Backlog(limit, stage.image_bytes)
    try:
        partition = Partition("images", 0)
        polled = Polled({partition: [record(npy(10), i) for i in range(20)]}, {partition: 25})
        backlog.add(polled, {partition: OwnedPartition(partition, "token", 0, None)})
        assert backlog.held_bytes >= 200 * stage.image_bytes
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
