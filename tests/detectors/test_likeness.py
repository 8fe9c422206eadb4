"""Is an image one that was learned? Fingerprints of pictures, and the signal `seen` of a real profile."""

from pathlib import Path

import numpy as np
import pytest

from detectors import load_profile
from detectors.images.likeness import BITS, MAX_LEARNED, NEAR, Hashes, Learned, hashes_of
from detectors.images.prepare import AnyImage, Preparer
from detectors.images.properties import NAMES
from tests.pictures import draw, encoded, pictures

PREPARE = Preparer(96)


def fingerprints(*images: AnyImage) -> Hashes:
    return hashes_of([PREPARE(image).pixels for image in images])


def differing(a: Hashes, b: Hashes) -> int:
    return int(np.bitwise_count(a ^ b).sum())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_another_encoding_or_exposure_is_the_same_image(kind: str) -> None:
    image = draw(np.random.default_rng(1))
    brighter = np.clip(image * 1.2 + 5, 0, 255).astype(np.uint8)
    first, again, exposed = fingerprints(image, encoded(image, kind), brighter)
    assert differing(first, again) <= NEAR
    assert differing(first, exposed) < NEAR / 2


def test_other_images_differ_in_about_half_of_the_bits() -> None:
    rng = np.random.default_rng(2)
    found = fingerprints(*(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(10)))
    assert all(abs(differing(found[0], other) - BITS / 2) < 40 for other in found[1:])


def test_an_even_area_resembles_nothing() -> None:
    even = [np.full((48, 48, 3), level, np.uint8) for level in (0, 90, 255)]
    known = fingerprints(*even, draw(np.random.default_rng(3)))
    learned = Learned.of(known)
    assert len(learned.hashes) == 1
    assert learned.likeness(known).tolist() == [0, 0, 0, 1]


def test_a_learned_image_is_not_compared_with_itself() -> None:
    rng = np.random.default_rng(4)
    known = fingerprints(*(draw(rng) for _ in range(20)))
    assert Learned.of(known).likeness(known).tolist() == [1.0] * 20
    assert Learned.of(known).likeness(known, among=True).tolist() == [0.0] * 20
    twice = np.concatenate([known, known[:1]])
    assert Learned.of(twice).likeness(twice, among=True)[[0, 20]].tolist() == [1.0, 1.0]


def test_the_nearest_counts_and_not_one_that_is_too_far() -> None:
    bits = np.random.default_rng(5).integers(0, 2, BITS, dtype=np.uint8)

    def changed(count: int) -> Hashes:
        other = bits.copy()
        other[np.linspace(0, BITS - 1, count).astype(int)] ^= 1
        return np.packbits(other).view(np.uint64)

    learned = Learned.of(np.stack([changed(NEAR), changed(8)]))
    assert learned.likeness(changed(0)[None]).tolist() == [1 - 8 / BITS]
    assert Learned.of(changed(NEAR)[None]).likeness(changed(0)[None]).tolist() == [1 - NEAR / BITS]
    assert Learned.of(changed(NEAR + 2)[None]).likeness(changed(0)[None]).tolist() == [0.0]
    assert Learned.of(np.empty((0, 4), np.uint64)).likeness(changed(0)[None]).tolist() == [0.0]


def test_what_is_kept_is_bounded() -> None:
    hashes = np.random.default_rng(6).integers(1, 2**62, (3 * MAX_LEARNED + 5, 4), dtype=np.uint64)
    assert MAX_LEARNED / 2 < len(Learned.of(hashes).hashes) <= MAX_LEARNED


@pytest.mark.slow
def test_a_profile_tells_what_it_has_learned_from_new_images(profile_folder: Path) -> None:
    profile = load_profile(profile_folder, device="cpu")
    seen = profile.signals.index("seen")
    assert profile.signals[seen - 1] == NAMES[-1]
    assert (profile.two_sided[seen], profile.learned[seen]) == (False, False)
    again = profile.score([encoded(image, "JPEG") for _, image in pictures(0, 100)])
    assert (again.p_values[:, seen] <= 0.01).mean() > 0.9
    new = profile.score([image for _, image in pictures(70, 200)]).p_values[:, seen]
    assert (new <= 0.05).mean() < 0.12
    assert np.median(new) == pytest.approx(0.5, abs=0.12)
