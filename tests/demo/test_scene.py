"""The drawn line: the same seed gives the same pictures, and the pictures vary as real ones do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from monitor.demo.scene import FOREIGN_KIND, KINDS, SIZE_PX, Light, draw, jpeg, light_at


def sharpness(picture: NDArray[np.uint8]) -> float:
    luma = picture.astype(np.float64).mean(axis=2)
    return float(np.square(np.diff(luma, axis=0)).mean() + np.square(np.diff(luma, axis=1)).mean())


@pytest.mark.parametrize("kind", [*KINDS, FOREIGN_KIND])
def test_the_same_seed_gives_the_same_picture(kind: str) -> None:
    first, second = (draw(np.random.default_rng(3), kind, light_at(12.0, 0.4), smear=0.2) for _ in range(2))
    assert first.shape == (SIZE_PX, SIZE_PX, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


def test_two_pictures_of_one_kind_differ_in_place_belt_and_noise() -> None:
    rng = np.random.default_rng(4)
    first, second = (draw(rng, "gear").astype(np.int64) for _ in range(2))
    assert np.abs(first - second).mean() > 4  # far beyond the noise of one scene (about 2 grey levels)


def test_the_kinds_are_told_apart_by_more_than_their_variation() -> None:
    rng = np.random.default_rng(5)
    means = {kind: np.mean([draw(rng, kind).mean(axis=2) for _ in range(6)], axis=0) for kind in (*KINDS, FOREIGN_KIND)}
    again = {kind: np.mean([draw(rng, kind).mean(axis=2) for _ in range(6)], axis=0) for kind in means}
    for kind, mean in means.items():
        nearest = min(again, key=lambda other: float(np.abs(again[other] - mean).mean()))
        assert nearest == kind


def test_no_part_of_the_range_is_clipped_under_any_light_of_the_day() -> None:
    rng = np.random.default_rng(6)
    for i, kind in enumerate(KINDS):
        picture = draw(rng, kind, light_at(11.0 * i, 0.2 * i))
        assert (picture == 255).mean() < 0.01
        assert (picture == 0).mean() < 0.01
        assert 60 < picture.mean() < 180


def test_a_brighter_and_warmer_lamp_shows() -> None:
    dim, bright = (draw(np.random.default_rng(7), "nut", Light(level=level)).mean() for level in (0.85, 1.15))
    assert bright > dim * 1.1
    cold, warm = (draw(np.random.default_rng(7), "nut", Light(warmth=w)).mean(axis=(0, 1)) for w in (-1.0, 1.0))
    assert warm[0] / warm[2] > cold[0] / cold[2] * 1.05


def test_the_more_grease_the_less_sharp() -> None:
    values = [sharpness(draw(np.random.default_rng(8), "gear", smear=smear)) for smear in (0.0, 0.3, 0.5, 0.7, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 * values[0]


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="teapot"):
        draw(np.random.default_rng(0), "teapot")


def test_jpeg_holds_the_picture() -> None:
    picture = draw(np.random.default_rng(9), "bolt")
    coded = jpeg(picture)
    assert 4_000 < len(coded) < 40_000
    with Image.open(io.BytesIO(coded)) as opened:
        assert opened.format == "JPEG"
        back = np.asarray(opened.convert("RGB")).astype(np.int64)
    assert np.abs(back - picture).mean() < 6
