"""How pictures get the size of a model's input: stretched, letterboxed or cropped."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.images.prepare import RESIZES, Preparer, Resize, resize

FILL = (10, 20, 30)


def halves(height: int, width: int) -> NDArray[np.uint8]:
    """Left red, right blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 2] = 200
    return image


def test_a_letterbox_holds_the_whole_picture_in_its_proportions_between_bars() -> None:
    made = resize(halves(20, 40), (64, 64), "bilinear", "letterbox", FILL)
    assert (made[:16] == FILL).all()
    assert (made[48:] == FILL).all()
    assert (made[16:48, :30] == (200, 0, 0)).all()
    assert (made[16:48, 34:] == (0, 0, 200)).all()
    tall = resize(halves(40, 20), (32, 64), "bilinear", "letterbox", FILL)
    assert (tall[:, :24] == FILL).all()
    assert (tall[:, 40:] == FILL).all()
    assert (tall[:, 24:31] == (200, 0, 0)).all()


def test_a_crop_keeps_the_middle_in_its_proportions() -> None:
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, 30:60] = 200  # the middle third
    # the filter looks at the pixel beside the cut
    assert (resize(image, 60, "bilinear", "crop")[:, 1:-1] == 200).all()
    assert (resize(image.transpose(1, 0, 2).copy(), 60, "bilinear", "crop")[1:-1] == 200).all()
    wide = resize(image, (30, 60), "bilinear", "crop")
    assert (wide[:, 16:44] == 200).all()
    assert (wide[:, :14] == 0).all()


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    how=st.sampled_from(RESIZES),
)
def test_every_picture_gets_the_shape_of_the_input_and_shows_nothing_but_itself(
    height: int, width: int, shape: tuple[int, int], how: Resize
) -> None:
    prepared = Preparer(shape, resize=how, fill=FILL)(np.full((height, width, 3), 200, np.uint8))
    assert prepared.pixels.shape == (*shape, 3)
    assert (prepared.seen == 200).all()
    bars = prepared.pixels.size - prepared.seen.size
    assert (prepared.pixels == FILL).all(axis=2).sum() * 3 == bars
    assert bars == 0 or how == "letterbox"


def test_what_has_the_size_already_is_left_alone() -> None:
    image = halves(32, 48)
    assert all(resize(image, (32, 48), "bilinear", how) is image for how in RESIZES)


@pytest.mark.parametrize("how", RESIZES)
def test_another_process_prepares_a_picture_alike(how: Resize) -> None:
    preparer = Preparer((32, 48), resize=how, fill=FILL)
    again = pickle.loads(pickle.dumps(preparer))
    np.testing.assert_array_equal(again(halves(50, 20)).pixels, preparer(halves(50, 20)).pixels)


def test_only_what_differs_from_before_has_a_name_in_the_fingerprint() -> None:
    names = [Preparer(px, resize=how).name for px in (64, (64, 96), (96, 64)) for how in RESIZES]
    assert names[0] == Preparer(96).tones.name
    assert len(set(names)) == 9
