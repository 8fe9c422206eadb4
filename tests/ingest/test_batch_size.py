"""Batches of the scoring stage: larger ones for a backlog, small ones again once nothing waits or one takes long."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from pydantic import ValidationError

from monitor.core.types import Partition, Record
from monitor.ingest.decode.pool import DecodedRecord
from monitor.ingest.decode.records import Decoder
from monitor.ingest.scoring.batch_size import LONGEST_S, BatchSize
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.settings import DecodingSettings, ScoringSettings, StreamNaming
from monitor.ingest.work import OwnedPartition, Work
from monitor.telemetry import metrics
from tests.faults.rig import wait_for
from tests.pictures import encoded, pictures


def test_it_grows_while_full_batches_leave_others_waiting_and_ends_at_the_largest() -> None:
    size = BatchSize(64, 200)
    size.after(40, 0.1, waiting=True)  # complete by age: larger would change nothing
    assert size.images == 64
    for expected in (128, 200, 200):
        size.after(size.images, 0.1, waiting=True)
        assert size.images == expected


@pytest.mark.parametrize(("seconds", "waiting"), [(0.1, False), (LONGEST_S + 0.1, True)])
def test_it_shrinks_to_the_least_when_nothing_waits_or_a_batch_takes_long(seconds: float, waiting: bool) -> None:
    size = BatchSize(64, 256)
    for _ in range(2):
        size.after(size.images, 0.1, waiting=True)
    assert size.images == 256
    for expected in (128, 64, 64):
        size.after(256, seconds, waiting)
        assert size.images == expected


def test_one_size_alone_stays() -> None:
    size = BatchSize(64, 64)
    size.after(64, 0.1, waiting=True)
    assert size.images == 64


def test_a_backlog_is_scored_in_growing_batches(profile_folder: Path) -> None:
    settings = ScoringSettings(
        profile=str(profile_folder), device="cpu", engine="torch", batch_images=4, max_batch_images=16, batch_age_s=0.5
    )
    profiles = load_profiles(settings, DecodingSettings())
    decoder = Decoder(profiles.preparers(), StreamNaming(), DecodingSettings())
    values = [encoded(image) for _, image in pictures(3, 44)]
    partition = Partition("images", 0)
    works = []
    for offset, value in enumerate(values):
        record, decoded = Record(partition, offset, 1000 + offset, b"cam", value), Future[DecodedRecord]()
        decoded.set_result(decoder(record))
        works.append(Work(OwnedPartition(partition, "token", 0, None), [record], 1, decoding=[decoded]))
    before = counted()
    stage = ScoringStage(profiles, settings)
    stage.submit(works)  # before the thread can have taken them all
    taken: list[Work] = []
    wait_for("all scores", lambda: (taken.extend(stage.take()), len(taken) == len(works))[1])
    stage.close()
    assert [work.records[0].offset for work in taken] == list(range(44))
    assert counted()[0] - before[0] == 44
    assert counted()[1] - before[1] <= 6  # 4, 8, 16 and 16; eleven batches of 4 otherwise


def counted() -> tuple[float, float]:
    """Images scored, and batches."""
    (family,) = metrics.BATCH_IMAGES.collect()
    found = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples if "le" not in sample.labels}
    return found["sum"], found["count"]


def test_the_largest_is_larger_on_a_device_unless_it_is_given() -> None:
    assert ScoringSettings().largest_batch(accelerated=False) == 64
    assert ScoringSettings().largest_batch(accelerated=True) == 1024
    assert ScoringSettings(batch_images=4096).largest_batch(accelerated=True) == 4096
    assert ScoringSettings(max_batch_images=100).largest_batch(accelerated=True) == 100
    with pytest.raises(ValidationError, match="max_batch_images is less than batch_images"):
        ScoringSettings(max_batch_images=32)
