"""A record that breaks scoring is refused alone; scoring that is broken for every image ends the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.decode.pool import DecodedRecord
from monitor.ingest.decode.records import Decoder
from monitor.ingest.scoring.profiles import Profiles, load_profiles
from monitor.ingest.scoring.stage import ScoringError, ScoringStage
from monitor.ingest.settings import DecodingSettings, ScoringSettings, StreamNaming
from monitor.ingest.work import OwnedPartition, Work
from tests.faults.rig import wait_for
from tests.pictures import draw, encoded, pictures

PARTITION = Partition("images", 0)
VALUES = [encoded(image) for _, image in pictures(3, 9)]


@pytest.fixture
def profiles(profile_folder: Path) -> Profiles:
    return load_profiles(ScoringSettings(profile=str(profile_folder), device="cpu"), DecodingSettings())


@pytest.fixture
def scored(profiles: Profiles) -> Iterator[Callable[[], Work]]:
    """Scores one work of nine records."""
    decoder = Decoder(profiles.preparers(), StreamNaming(), DecodingSettings())
    stage = ScoringStage(profiles, ScoringSettings(batch_age_s=0.01))

    def score() -> Work:
        records = [Record(PARTITION, i, 1000 + i, b"cam", value) for i, value in enumerate(VALUES)]
        work = Work(OwnedPartition(PARTITION, "token", 0, None), records, len(records))
        futures: list[Future[DecodedRecord]] = [Future() for _ in records]
        for record, future in zip(records, futures, strict=True):
            future.set_result(decoder(record))
        work.decoding = futures
        stage.submit([work])
        (found,) = wait_for("the scores", stage.take)
        return found

    yield score
    stage.close()


def test_heat_maps_are_made_without_any_work_and_only_where_the_profile_has_them(
    profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = ScoringStage(profiles, ScoringSettings(batch_age_s=0.01))
    profile = profiles.of("cam")
    strange, normal = (profile.prepare(draw(np.random.default_rng(1), stripes)) for stripes in (True, False))
    hot, cool = stage.heat([("cam", strange), ("cam", normal)]).result(30)
    assert hot is not None
    assert cool is not None
    assert hot.levels.max() > 64 > np.median(cool.levels)
    monkeypatch.setattr(profile, "heat_maps", lambda _: np.zeros((3, 3))[9])
    with pytest.raises(IndexError):
        stage.heat([("cam", strange)]).result(30)
    monkeypatch.setattr(profile, "places", None)
    assert stage.heat([("cam", strange)]).result(30) == [None]
    stage.close()


def fail_for(profiles: Profiles, monkeypatch: pytest.MonkeyPatch, culprits: set[bytes]) -> None:
    """Let the network fail for batches that hold one of these images; b"" is any."""
    profile = profiles.of("cam")
    score = profile.score
    digests = {profile.prepare(value).digest for value in culprits if value}

    def failing(images):  # type: ignore[no-untyped-def]
        if b"" in culprits or any(image.digest in digests for image in images):
            raise RuntimeError("a kernel gave up")
        return score(images)

    monkeypatch.setattr(profile, "score", failing)


def test_a_record_that_breaks_scoring_is_refused_and_its_neighbours_count(
    profiles: Profiles, scored: Callable[[], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(profiles, monkeypatch, {VALUES[2], VALUES[7]})
    outcomes = scored().outcomes
    letters = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, DeadLetter)}
    assert {i: letter.reason for i, letter in letters.items()} == {2: "scoring", 7: "scoring"}
    assert letters[2].error == "scoring fails: RuntimeError: a kernel gave up"
    judged = [outcome[0].event_time_ms for outcome in outcomes if not isinstance(outcome, DeadLetter)]
    assert judged == [1000, 1001, 1003, 1004, 1005, 1006, 1008]


def test_where_a_plain_image_fails_too_no_record_is_blamed(
    profiles: Profiles, scored: Callable[[], Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(profiles, monkeypatch, {b""})
    with pytest.raises(ScoringError, match="a kernel gave up"):
        scored()
