"""How many consecutive frames count as one: known answers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.profile.calibration import dependence


def scenes(rng: np.random.Generator, length: int, images: int) -> NDArray[np.float64]:
    """(images,) p-values of a video in which `length` frames after each other are equal: D is that length."""
    return np.repeat(rng.random(-(-images // length)), length)[:images]


@pytest.mark.parametrize("length", [1, 4, 8, 20])
def test_equal_frames_count_as_one(length: int) -> None:
    """Twenty videos: unbiased within what is written in the docstring, and no single one far off."""
    rng = np.random.default_rng(length)
    found = np.array([dependence(scenes(rng, length, 20_000)) for _ in range(20)])
    assert found.mean() == pytest.approx(length, rel=0.08)
    assert found.min() > 0.8 * length
    assert found.max() < 1.5 * length


def test_a_few_hundred_frames_already_show_that_they_are_alike() -> None:
    rng = np.random.default_rng(0)
    found = [dependence(scenes(rng, 8, 1000)) for _ in range(50)]
    assert np.median(found) == pytest.approx(8, abs=1)
    assert np.quantile(found, 0.05) > 5


def test_counts_of_buckets_spread_as_much_as_it_says() -> None:
    """Frames that resemble each other less and less with their distance, compared with the variance of their counts."""
    rng = np.random.default_rng(2)
    near, series = np.exp(-1 / 10), np.zeros(200_000)
    for i, noise in enumerate(rng.standard_normal(len(series)) * np.sqrt(1 - near**2)):
        series[i] = near * series[i - 1] + noise
    p_values = (series.argsort().argsort() + 1) / len(series)
    counts = (p_values <= 0.05).reshape(-1, 1000).sum(axis=1)
    assert dependence(p_values) == pytest.approx(counts.var(ddof=1) / (1000 * 0.05 * 0.95), rel=0.3)


@pytest.mark.parametrize("p_values", [[], [0.01], [0.9] * 100, [0.01] * 100, [0.01, 0.9] * 50])
def test_without_variation_or_where_neighbours_differ_frames_count_singly(p_values: list[float]) -> None:
    assert dependence(np.array(p_values)) == 1.0
