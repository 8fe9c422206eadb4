"""What a fit decides from normal images alone, and how few images both teach and calibrate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detectors import FitOptions, Profile, fit_profile
from detectors.methods.mahalanobis_ridge import MahalanobisRidge
from detectors.methods.registry import create
from detectors.profile.backbone import Backbone
from detectors.profile.choice import grids_of
from detectors.profile.pooling import averaged, pool, widths
from detectors.profile.spec import BackboneSpec
from tests.pictures import pictures

LAYERS = (3, 5)
GRID = replace(BackboneSpec.embedded(), grid=2)


def correlated(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, 8)
    return torch.randn(count, 8, generator=generator) @ mixing + 3.0


@pytest.mark.parametrize("count", [6, 40], ids=["fewer images than values", "more images than values"])
def test_leaving_a_row_out_is_what_a_fit_without_it_scores(count: int) -> None:
    rows = correlated(0, count)
    copies = rows + 0.1 * correlated(2, count)
    detector = MahalanobisRidge(LAYERS).fit(rows)
    found = detector.left_out(copies, torch.arange(count))
    for i in range(count):
        others = torch.cat([rows[:i], rows[i + 1 :]])
        # the same, from the definition, in the units of the whole fit and with the ridge of one more row
        standard = ((others - detector.learned["mean"]) / detector.learned["scale"]).double()
        copy = ((copies[i] - detector.learned["mean"]) / detector.learned["scale"]).double() - standard.mean(dim=0)
        for column, part in enumerate((slice(0, 8), slice(0, 3), slice(3, 8))):
            centred = (standard - standard.mean(dim=0))[:, part]
            ridge = detector.ridge * count / (count - 1) * torch.eye(centred.shape[1], dtype=torch.float64)
            covariance = centred.T @ centred / (count - 1) + ridge
            distance = copy[part] @ torch.linalg.solve(covariance, copy[part])
            assert float(found[i, column]) == pytest.approx(float(distance), rel=1e-3)  # its means are float32


def test_the_ridge_decides_how_far_an_unseen_direction_is() -> None:
    flat = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    flat[:, 7] = 2.0
    aside = flat.mean(dim=0)
    aside[7] += 1e-6  # a tenth of the smallest deviation that a channel is divided by
    for ridge in (0.01, 0.1):
        score = MahalanobisRidge(LAYERS, ridge).fit(flat).score(aside[None])
        assert float(score) == pytest.approx(0.1**2 / ridge, rel=0.1)
    with pytest.raises(ValueError, match="ridge must be positive"):
        create("mahalanobis-ridge", LAYERS, ridge=0)


def test_cells_keep_their_place_and_average_to_the_whole_map() -> None:
    maps = [torch.zeros(1, 2, 8, 8), torch.ones(1, 121, 4, 4)]
    maps[0][0, 1, 6, 1] = 16.0  # lower left
    features = pool(maps, 2)
    assert widths((2, 121), 2) == (8, 121)
    assert features[0, :8].tolist() == [0, 0, 0, 0, 0, 0, 1.0, 0]
    torch.testing.assert_close(averaged(features, (2, 121), 2), pool(maps, 1))


def test_features_of_several_grids_lie_side_by_side() -> None:
    backbone = Backbone(BackboneSpec.embedded(), "cpu")
    assert grids_of(backbone) == (1, 2, 4)
    pixels = np.stack([np.resize(image, (96, 96, 3)) for _, image in pictures(0, 2)])
    several = backbone.on_grids(1, 2, 4)
    features = several.features(pixels)
    for grid in (1, 2, 4):
        torch.testing.assert_close(features[:, several.columns(grid)], backbone.on_grids(grid).features(pixels))


def test_a_grid_makes_no_difference_where_all_layers_are_wide() -> None:
    spec = BackboneSpec("resnet18", "random", layers=(3, 4), input_px=64)
    assert grids_of(Backbone(spec, "cpu")) == (1,)


def scenes(seed: int, count: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """No two alike: patches of all colours and sizes, so that one patch more is nothing new."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = np.full((48, 48, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(12):
            (top, left), (height, width) = rng.integers(0, 40, 2), rng.integers(4, 24, 2)
            image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        yield f"{seed}-{i}", image


@pytest.fixture(scope="module")
def uniform() -> Profile:
    return fit_profile(pictures(0, 200), FitOptions(device="cpu"))


@pytest.mark.parametrize("options", [{"detector_options": {"level": 0.1}}, {"backbone": GRID}], ids=["level", "grid"])
def test_what_auto_chooses_cannot_be_given_with_it(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="auto chooses its options and the grid itself"):
        fit_profile(pictures(0, 2), FitOptions(**options))


@pytest.mark.slow
def test_images_that_are_alike_choose_the_distance_and_scenes_choose_dlsr(
    uniform: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.methods.diffusion.MIN_STEPS", 20)  # what is chosen is chosen before it learns
    various = fit_profile(scenes(0, 200), FitOptions(device="cpu"))
    assert uniform.manifest["detector"] == "mahalanobis-ridge"
    assert various.manifest["detector"] == "dlsr"
    assert various.backbone.spec.grid == 1
    assert various.manifest["learning"]["steps"] >= 20
    for profile in (uniform, various):
        assert set(profile.manifest["choice"]["pasted"]) == {"1", "2", "4"}
        assert profile.manifest["choice"]["images"] == 100
        assert profile.manifest["images"]["fit"] == profile.manifest["images"]["calibration"] == 200
        assert profile.signals[:5] == ("ood", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.slow
def test_images_that_teach_and_calibrate_give_p_values_that_fresh_ones_share(uniform: Profile) -> None:
    """Uniform but for chance: 600 fresh images against 200 that calibrate, five standard errors of both."""
    p_values = uniform.score([image for _, image in pictures(5, 600)]).p_values
    for signal, column in zip(uniform.signals[:5], p_values.T, strict=False):
        for level in (0.05, 0.2, 0.5):
            error = (level * (1 - level) * (1 / 200 + 1 / 600)) ** 0.5
            assert abs((column <= level).mean() - level) < 5 * error, (signal, level)


@pytest.mark.slow
def test_ordered_frames_are_still_calibrated_on_another_stretch_of_time() -> None:
    profile = fit_profile(pictures(0, 200), FitOptions(device="cpu", ordered=True))
    assert (profile.manifest["images"]["fit"], profile.manifest["images"]["calibration"]) == (140, 60)
