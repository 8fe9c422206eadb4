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
from monitor.ingest.scoring.pipeline import Pipeline, Work
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.settings import DecodingSettings, ScoringSettings, StreamNaming
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
    profiles = load_profiles(ScoringSettings(profile=profile_folder, device="cpu"), decoding)
    decoder = Decoder(profiles.preparers(), StreamNaming(), decoding)
    input_bytes = profiles.preparers().default.input_px ** 2 * 3
    limit = 50 * input_bytes
    pipeline = Pipeline(DecoderPool(decoder, 1, 20.0, 2**30), profiles, 16, 0.01, limit)
    try:
        owner = object()
        pipeline.submit(Work(owner, [record(npy(10), i) for i in range(20)], 25))
        assert pipeline.bytes_in_hand >= 200 * input_bytes
        taken: list[Work] = []

        def done() -> bool:
            assert pipeline.bytes_begun <= limit
            taken.extend(pipeline.take())
            return not pipeline.works_in_hand

        wait_for("all of it", done)
        assert len(taken) > 4
        outcomes = [outcome for work in taken for outcome in work.outcomes]
        assert [len(outcome) for outcome in outcomes if isinstance(outcome, list)] == [10] * 20
        # each piece ends where the next one begins, and the last where the poll ended
        assert [work.next_offset for work in taken] == [*(work.records[0].offset for work in taken[1:]), 25]
        assert (pipeline.bytes_in_hand, pipeline.bytes_begun) == (0, 0)
    finally:
        pipeline.close()
