"""What a renewed profile may move by: real fits of drawn pictures, and a fault that creeps into them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from detectors import FitOptions, Profile, fit_profile
from detectors.images.prepare import AnyImage
from detectors.versions.guard import farthest, shifts, smallest_seen
from tests.pictures import draw

pytestmark = pytest.mark.slow

IMAGES = 600
DAYS = 7
A_DAY = 0.005
"""Share of images by which a fault creeps in each day."""


def pictures_of(seed: int, share: float, plain_only: bool = False, count: int = IMAGES) -> list[tuple[str, AnyImage]]:
    """Drawn pictures, that share of them with stripes; `plain_only` lets no disc be bright."""
    rng = np.random.default_rng(seed)
    drawn = ((f"{seed}-{i}", draw(rng, stripes=rng.random() < share)) for i in range(count))
    return [(name, np.minimum(image, 110).astype(np.uint8) if plain_only else image) for name, image in drawn]


def fitted(images: list[tuple[str, AnyImage]]) -> Profile:
    return fit_profile(images, FitOptions("mahalanobis-ridge", device="cpu", heat_maps=False))


@pytest.fixture(scope="module")
def first() -> Profile:
    return fitted(pictures_of(0, 0.0))


def moved(earlier: Profile, candidate: Profile, images: list[tuple[str, AnyImage]]) -> float:
    return farthest(shifts(earlier, candidate, earlier.score([image for _, image in images]).p_values))


def weeks() -> Iterator[tuple[float, list[tuple[str, AnyImage]]]]:
    """(share of images with the fault, images) of each week of thirty days."""
    for week in range(4):
        share = A_DAY * DAYS * (week + 0.5)
        yield share, pictures_of(10 + week, share)


def test_the_same_normal_has_not_moved(first: Profile) -> None:
    images = pictures_of(1, 0.0)
    assert moved(first, fitted(images), images) <= 0.03


@pytest.mark.faults
def test_a_fault_that_creeps_in_is_refused_before_a_twentieth_of_normal_is_lost(first: Profile) -> None:
    """Beside the version before alone, every week would pass: that is why the first counts."""
    last, taken, refused_at = first, [], 1.0
    for share, images in weeks():
        candidate = fitted(images)
        if moved(first, candidate, images) > 0.03:
            refused_at = min(refused_at, share)
        elif refused_at == 1.0:
            taken.append(share)
        if share > 0.08:
            assert moved(last, candidate, images) < moved(first, candidate, images)
        last = candidate
    assert refused_at < 0.06
    assert all(share < 0.05 for share in taken)
    assert smallest_seen(first, IMAGES) < 0.05


def test_a_normal_that_is_forgotten_shows_in_what_the_first_version_learned(first: Profile) -> None:
    images = pictures_of(20, 0.0, plain_only=True, count=250)
    candidate = fitted(images)
    found = shifts(first, candidate, first.score([image for _, image in images]).p_values)
    assert max(shift.moved for shift in found if shift.which == "old") > 0.3


def test_images_that_are_few_prove_nothing(first: Profile) -> None:
    images = pictures_of(30, 0.04, count=40)
    found = shifts(first, first, first.score([image for _, image in images]).p_values)
    assert farthest(shift for shift in found if shift.which == "new" and shift.signal != "ood") <= 0.05
    assert smallest_seen(first, 40) > 0.05
