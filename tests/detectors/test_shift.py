"""The test of a whole sample: calm on new images of the kind, sure where the mix changed, refuses what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import detectors
from detectors import Profile, ProfileError, Scores, shift_test
from tests.pictures import draw, pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profile(profile_folder: Path) -> Profile:
    return detectors.load_profile(profile_folder, device="cpu")


@pytest.fixture(scope="module")
def fresh(profile: Profile) -> Scores:
    return profile.score([profile.prepare(image, name.encode()) for name, image in pictures(1, 400)])


def some(scores: Scores, rows: slice | NDArray[np.intp]) -> Scores:
    return Scores(scores.values[rows], scores.p_values[rows])


def test_new_images_of_the_kind_are_called_shifted_as_rarely_as_promised(profile: Profile, fresh: Scores) -> None:
    found = [shift_test(profile, some(fresh, slice(i, None, 16)), permutations=199).p_value for i in range(16)]
    # they share one calibration set, which may be an unlucky one: at a level of .1 five of 16 are 1 in 60
    assert sum(p <= 0.05 for p in found) <= 4


def test_a_sample_of_normal_images_with_another_mix_is_found_and_its_coordinates_named(
    profile: Profile, fresh: Scores
) -> None:
    reds = fresh.values[:, profile.signals.index("mix1")]
    half = some(fresh, np.flatnonzero(reds < np.median(reds))[:60])
    assert (half.p_values[:, 0] <= 0.05).mean() < 0.15  # single images look normal
    result = shift_test(profile, half)
    assert result.p_value <= 0.01
    assert result.images == 60
    assert next(iter(result.signals)) == "mix1"


def test_a_few_strange_images_among_normal_ones_are_found(profile: Profile, fresh: Scores) -> None:
    strange = profile.score([draw(np.random.default_rng(i), stripes=True) for i in range(6)])
    mixed = Scores(np.concatenate([fresh.values[:54], strange.values]), np.zeros((60, len(profile.signals))))
    assert shift_test(profile, mixed).p_value <= 0.01


def test_the_more_a_sample_is_shifted_the_surer_it_is_found(profile: Profile, fresh: Scores) -> None:
    strange = profile.score([draw(np.random.default_rng(i), stripes=True) for i in range(80)])
    assert shift_test(profile, strange).p_value == pytest.approx(0.001)
    first = fresh.values[:, profile.signals.index("mix1")]
    assert shift_test(profile, some(fresh, np.argsort(first)[:120])).p_value == pytest.approx(0.001)


def test_the_same_sample_gives_the_same_answer(profile: Profile, fresh: Scores) -> None:
    sample = some(fresh, slice(0, 40))
    assert shift_test(profile, sample) == shift_test(profile, sample)


def test_what_cannot_be_tested_is_refused(profile: Profile, fresh: Scores, profile_folder: Path) -> None:
    with pytest.raises(ValueError, match="m >= 2"):
        shift_test(profile, some(fresh, slice(0, 1)))
    with pytest.raises(ValueError, match="at least one permutation"):
        shift_test(profile, fresh, permutations=0)
    before = detectors.load_profile(profile_folder, device="cpu")
    before.calibrations = tuple(replace(calibration, rows=None) for calibration in before.calibrations)
    with pytest.raises(ProfileError, match="calibrate it again"):
        shift_test(before, fresh)
