"""Adding a detector: one file and one call or line of the registry; docs/how-to/add-a-detector.md says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from torch import Tensor

import detectors
from detectors.methods.detector import LearnedTensors
from detectors.methods.registry import REGISTRY
from tests.pictures import draw, pictures

pytestmark = pytest.mark.slow


class Toy(LearnedTensors):
    """score(z) = || z - mean ||^2."""

    def fit(self, features: Tensor) -> Self:
        """The mean of (N, D) ID features."""
        self.learned = {"mean": features.mean(dim=0)}
        return self

    def score(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) squared distances."""
        return (features - self.learned["mean"]).square().sum(dim=1)


@pytest.fixture
def toy() -> Iterator[str]:
    detectors.register("toy", Toy)
    yield "toy"
    del REGISTRY["toy"]


def test_a_registered_detector_fits_saves_loads_and_scores_in_a_profile(toy: str, tmp_path: Path) -> None:
    profile = detectors.fit_profile(pictures(0, 220), detectors.FitOptions(detector=toy, device="cpu"))
    profile.save(tmp_path)
    loaded = detectors.load_profile(tmp_path, "cpu")
    images = [image for _, image in pictures(1, 40)]
    assert loaded.signals[0] == "ood"
    np.testing.assert_array_equal(loaded.score(images).values, profile.score(images).values)
    rng = np.random.default_rng(2)
    strange = loaded.score([draw(rng, stripes=True) for _ in range(10)])
    assert (strange.p_values[:, 0] <= 0.05).mean() > 0.5


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match="already registered"):
        detectors.register("dlsr", Toy)


def test_a_profile_of_a_detector_that_is_not_registered_is_refused_by_name(toy: str, tmp_path: Path) -> None:
    detectors.fit_profile(pictures(0, 220), detectors.FitOptions(detector=toy, device="cpu")).save(tmp_path)
    registered = REGISTRY.pop(toy)
    try:
        with pytest.raises(detectors.ProfileError, match="unknown detector 'toy'"):
            detectors.load_profile(tmp_path, "cpu")
    finally:
        REGISTRY[toy] = registered


def test_scoring_takes_a_batch_as_one_array_and_refuses_a_single_image(profile_folder: Path) -> None:
    profile = detectors.load_profile(profile_folder, "cpu")
    images = [image for _, image in pictures(3, 4)]
    prepared = [profile.prepare(image) for image in images]
    np.testing.assert_array_equal(profile.score(np.stack(images)).values, profile.score(prepared).values)
    with pytest.raises(detectors.ImageError, match=r"give one image as \[image\]"):
        profile.score(images[0])
