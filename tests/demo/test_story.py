"""What is sent when."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from monitor.demo.scene import FOREIGN_KIND, KINDS
from monitor.demo.story import (
    CALM_S,
    DRIFT_S,
    FOREIGN_SHARE,
    IMAGE_EVERY_S,
    LONGEST_S,
    MISSING_KIND,
    SMEAR_TOP,
    STREAMS,
    Act,
    Shot,
    act_at,
    reference,
    shots,
    take,
)


@pytest.fixture(scope="module")
def story() -> list[Shot]:
    return list(shots(np.random.default_rng(1)))


def test_every_line_sends_at_its_pace_and_event_time_never_goes_back(story: list[Shot]) -> None:
    times = [shot.time_s for shot in story]
    assert times == sorted(times)
    assert Counter(shot.stream for shot in story) == dict.fromkeys(STREAMS, round(LONGEST_S / IMAGE_EVERY_S))


def test_only_the_drift_act_holds_troubled_pictures(story: list[Shot]) -> None:
    troubled = [shot for shot in story if shot.smear > 0 or shot.kind == FOREIGN_KIND]
    assert {shot.stream for shot in troubled} == {"line-2", "line-3"}
    assert all(CALM_S <= shot.time_s < CALM_S + DRIFT_S for shot in troubled)
    assert {act_at(shot.time_s) for shot in troubled} == {Act.DRIFT}


def test_the_smear_creeps_in_and_stays(story: list[Shot]) -> None:
    smears = [shot.smear for shot in story if shot.stream == "line-2" and act_at(shot.time_s) is Act.DRIFT]
    assert smears == sorted(smears)
    assert smears[0] < 0.01 * SMEAR_TOP
    assert smears[-1] == SMEAR_TOP


def test_about_every_third_part_on_line_3_is_foreign(story: list[Shot]) -> None:
    kinds = [shot.kind for shot in story if shot.stream == "line-3" and CALM_S + 30 < shot.time_s < CALM_S + DRIFT_S]
    share = kinds.count(FOREIGN_KIND) / len(kinds)
    # four standard deviations of a share of some 240 pictures
    assert abs(share - FOREIGN_SHARE) < 4 * (FOREIGN_SHARE * (1 - FOREIGN_SHARE) / len(kinds)) ** 0.5


def test_one_part_is_missing_on_line_4_while_the_drift_lasts_and_the_others_come_evenly(story: list[Shot]) -> None:
    kinds = {
        act: Counter(shot.kind for shot in story if shot.stream == "line-4" and act_at(shot.time_s) is act)
        for act in Act
    }
    assert {act: MISSING_KIND in found for act, found in kinds.items()} == {act: act is not Act.DRIFT for act in Act}
    # a quarter of 300 pictures each, four standard deviations
    assert all(abs(count - 75) < 30 for count in kinds[Act.DRIFT].values())


def test_the_story_of_a_seed_is_always_the_same(story: list[Shot]) -> None:
    assert list(shots(np.random.default_rng(1))) == story
    assert list(shots(np.random.default_rng(2))) != story


def test_the_reference_is_normal_production_without_repeats() -> None:
    named = list(reference(np.random.default_rng(3), 20))
    assert len({name for name, _ in named}) == 20
    assert len({picture for _, picture in named}) == 20
    assert list(reference(np.random.default_rng(3), 20)) == named


def test_taking_the_same_shot_twice_gives_two_pictures() -> None:
    rng = np.random.default_rng(4)
    shot = Shot("line-1", 3.0, KINDS[0], 0.0)
    assert take(rng, shot) != take(rng, shot)
