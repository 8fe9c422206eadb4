"""Do the images of a stream depend on each other? Known answers, from counts alone."""

from itertools import accumulate

import numpy as np
import pytest

from monitor.core import buckets
from monitor.core.buckets import Layout, fill_groups
from monitor.core.types import Vector
from monitor.fleet.spread import BLOCKS, Spread, widest

PER_BUCKET, BUCKETS = 10, 360
IMAGES = PER_BUCKET * BUCKETS


def layout_of(signals: int = 1, dependence: float = 1.0) -> Layout:
    names = tuple(f"s{i}" for i in range(signals))
    return Layout(names, (2000,) * signals, (False,) * signals, (True,) * signals, (dependence,) * signals)


def counted(layout: Layout, p_values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> dict[int, Vector]:
    vectors = fill_groups(layout, p_values, np.arange(IMAGES) // PER_BUCKET, BUCKETS)
    return {10_000 * i: vector for i, vector in enumerate(vectors)}


def of_scenes(length: int, seed: int, dependence: float = 1.0) -> Spread:
    p = np.repeat(np.random.default_rng(seed).uniform(1e-6, 1, IMAGES // length + 1), length)[:IMAGES]
    found = widest(layout_of(dependence=dependence), counted(layout_of(), p[:, None]))
    assert found
    return found


@pytest.mark.parametrize("length", [4, 20, 50])
def test_scenes_vary_counts_by_their_length_also_where_they_are_longer_than_a_bucket(length: int) -> None:
    found = [of_scenes(length, seed) for seed in range(10)]
    assert np.median([spread.observed for spread in found]) == pytest.approx(length, rel=0.35)
    assert np.median([spread.at_least for spread in found]) > 0.4 * length
    assert sum(spread.at_least > length for spread in found) <= 1
    assert all(spread.clear for spread in found)


def test_frames_that_resemble_each_other_less_and_less_are_seen() -> None:
    near = np.exp(-1 / 10)
    noise = np.random.default_rng(3).standard_normal(IMAGES)
    series = np.array(list(accumulate(noise, lambda last, new: near * last + new)))
    p = (series.argsort().argsort() + 1.0) / (IMAGES + 1)
    found = widest(layout_of(), counted(layout_of(), p[:, None]))
    assert found
    assert 5 < found.at_least < 14 < 2 * found.observed


def test_independent_images_of_thirty_signals_are_never_called_dependent() -> None:
    for seed in range(10):
        p = np.random.default_rng(seed).uniform(1e-6, 1, (IMAGES, 30))
        found = widest(layout_of(30), counted(layout_of(30), p))
        assert found
        assert not found.clear


def test_what_the_profile_assumes_is_no_news() -> None:
    assert not of_scenes(8, seed=1, dependence=8.0).clear
    assert of_scenes(8, seed=1, dependence=2.0).clear


def test_too_few_buckets_tell_nothing_and_neither_do_empty_ones() -> None:
    layout = layout_of()
    some = dict(list(counted(layout, np.full((IMAGES, 1), 0.3)).items())[: BLOCKS - 1])
    assert widest(layout, some) is None
    assert widest(layout, some | {10_000 * (i + 100): buckets.empty(layout) for i in range(50)}) is None
    assert widest(layout, {}) is None


def test_counts_that_never_vary_are_no_dependence() -> None:
    found = widest(layout_of(), counted(layout_of(), np.full((IMAGES, 1), 0.9)))
    assert found
    assert (found.observed, found.clear) == (0.0, False)
