"""How many independent images the frames of a video are worth: known answers."""

from itertools import accumulate

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.profile.calibration import Calibration, jitter
from detectors.profile.dependence import ENOUGH, FEWEST, Dependence, alike, estimate, note, of_frames

Floats = NDArray[np.float64]


def scenes(rng: np.random.Generator, length: int, images: int) -> Floats:
    """(images,) p-values of a video in which `length` frames after each other are equal: D is that length."""
    return np.repeat(rng.random(-(-images // length)), length)[:images]


def slow_pan(rng: np.random.Generator, memory: float, images: int) -> Floats:
    """(images,) p-values of a video whose frames resemble each other less and less, by exp(-distance / memory)."""
    near = np.exp(-1 / memory)
    noise = rng.standard_normal(images) * np.sqrt(1 - near**2)
    noise[0] = rng.standard_normal()
    series = np.array(list(accumulate(noise, lambda last, new: near * last + new)))
    ranks: Floats = (series.argsort().argsort() + 1.0) / (images + 1)
    return ranks


@pytest.mark.parametrize("length", [1, 4, 8, 20])
def test_equal_frames_count_as_one(length: int) -> None:
    """Twenty videos: right on average, and no single one far off."""
    rng = np.random.default_rng(length)
    found = np.array([estimate(scenes(rng, length, 20_000)) for _ in range(20)])
    assert found.mean() == pytest.approx(length, rel=0.08)
    assert found.min() > 0.8 * length
    assert found.max() < 1.5 * length


def test_counts_of_buckets_spread_as_much_as_it_says() -> None:
    p_values = slow_pan(np.random.default_rng(2), 10, 200_000)
    counts = (p_values <= 0.05).reshape(-1, 1000).sum(axis=1)
    assert estimate(p_values) == pytest.approx(counts.var(ddof=1) / (1000 * 0.05 * 0.95), rel=0.3)


@pytest.mark.parametrize("p_values", [[], [0.01], [0.9] * 100, [0.01] * 100, [0.01, 0.9] * 50])
def test_without_variation_or_where_neighbours_differ_frames_count_singly(p_values: list[float]) -> None:
    assert estimate(np.array(p_values)) == 1.0


@pytest.mark.parametrize(("length", "images"), [(1, 300), (4, 300), (4, 6000), (20, 600), (20, 6000), (100, 6000)])
def test_the_bound_holds_in_nine_of_ten_videos_of_scenes(length: int, images: int) -> None:
    rng = np.random.default_rng(length + images)
    found = [of_frames(scenes(rng, length, images)) for _ in range(50)]
    assert np.mean([of.inflation >= length or not of.measured for of in found]) >= 0.9
    assert np.median([of.inflation for of in found]) < 3.5 * length


@pytest.mark.parametrize(("memory", "images", "true"), [(2, 2000, 2.95), (10, 2000, 14.0), (50, 600, 69.4)])
def test_it_holds_in_nine_of_ten_slow_pans_or_says_that_it_cannot_tell(memory: int, images: int, true: float) -> None:
    """The true D is that of "p <= .5": 1 + 2 sum of 2 / pi arcsin(exp(-k / memory))."""
    rng = np.random.default_rng(memory)
    found = [of_frames(slow_pan(rng, memory, images)) for _ in range(50)]
    assert np.mean([of.inflation >= true or not of.measured for of in found]) >= 0.9


def test_independent_frames_lose_little() -> None:
    of = of_frames(np.random.default_rng(5).random(6000))
    assert of.measured
    assert of.images > 4000


def test_a_stretch_shorter_than_its_own_memory_is_called_too_short() -> None:
    rng = np.random.default_rng(6)
    found = [of_frames(slow_pan(rng, 250, 600)) for _ in range(20)]
    assert sum(of.measured for of in found) <= 2
    assert np.median([of.images for of in found]) <= FEWEST


def test_quantiles_of_frames_lie_as_surely_where_they_should_as_those_of_as_many_images() -> None:
    """The true rate of the cut at a tenth, over calibrations on 2000 frames in scenes of 8 that count as 250 images."""
    rng = np.random.default_rng(7)
    rates = []
    for _ in range(300):
        values = np.repeat(rng.random(250), 8) + rng.random(2000) * 1e-6
        kept = Calibration.of(values, jitter([b""] * 2000), two_sided=False).worth(250)
        rates.append(1 - kept.values[-25])  # 25 of the 251 gaps lie beyond it
    assert np.mean(rates) == pytest.approx(25 / 251, abs=0.005)
    assert np.std(rates) == pytest.approx(np.sqrt(0.1 * 0.9 / 251), rel=0.15)


def test_as_many_quantiles_as_frames_are_the_frames() -> None:
    values = np.random.default_rng(8).random(50)
    whole = Calibration.of(values, jitter([b"%d" % i for i in range(50)]), two_sided=True)
    np.testing.assert_array_equal(whole.worth(50).values, whole.values)
    np.testing.assert_array_equal(whole.worth(50).jitters, whole.jitters)


def test_the_note_says_what_frames_are_worth_and_how_long_to_record() -> None:
    some = {"ood": Dependence(600, 5.0, 10), "luma": Dependence(600, 60.0, 90)}
    assert note(some) == (
        "these 600 frames are worth about 120 independent images for ood and 10 for luma, the fewest of all signals; "
        "record for about 10 times as long to use the cut at 5 % of every signal; too few to see how long frames "
        "resemble each other in luma: there the false-alarm bound is not assured"
    )
    assert (
        note({"ood": Dependence(6000, 2.0, 10)})
        == "these 6,000 frames are worth about 3,000 independent images for ood"
    )
    assert note({"ood": Dependence(ENOUGH, 1.0, 0)}).endswith("for ood")
    assert "in a, b, c and 2 more: there" in note({name: Dependence(60, 60.0, 60) for name in "abcde"})


def test_frames_that_were_not_said_to_be_in_order_are_noticed_and_independent_images_are_not() -> None:
    rng = np.random.default_rng(9)
    assert all(not alike(rng.random(images)) for images in [300] * 50 + [2000] * 20)
    found = [alike(scenes(rng, 8, 300)) for _ in range(20)]
    assert all("if they are frames in time order, say so with --ordered" in facts["note"] for facts in found)
