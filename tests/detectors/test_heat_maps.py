"""Where an image is unusual: maps of a real profile, their file, and the boxes made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import detectors
from detectors.images.prepare import Prepared, Preparer, Resize
from detectors.images.regions import over_whole_image
from detectors.profile.backbone import Backbone
from detectors.profile.places import PLACES, LocalSample, Places
from detectors.profile.spec import BackboneSpec
from tests.pictures import draw, pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def profile(profile_folder: Path) -> detectors.Profile:
    return detectors.load_profile(profile_folder, "cpu")


def spoiled(profile: detectors.Profile, row: int, column: int, seed: int = 5) -> Prepared:
    """A normal picture of 48 px with a striped patch of 12 px at that place."""
    rng = np.random.default_rng(seed)
    image = draw(rng)
    image[row : row + 12, column : column + 12] = draw(rng, stripes=True)[:12, :12]
    return profile.prepare(image)


@pytest.mark.parametrize(("row", "column"), [(2, 2), (2, 34), (34, 2), (30, 30)])
def test_the_hottest_place_and_the_first_box_lie_on_the_spoiled_patch(
    profile: detectors.Profile, row: int, column: int
) -> None:
    (heat,) = profile.heat_maps([spoiled(profile, row, column)])
    assert heat.dtype == np.float32
    y, x = (np.array(np.unravel_index(heat.argmax(), heat.shape)) + 0.5) * 48 / np.array(heat.shape)
    assert row - 2 <= y <= row + 14
    assert column - 2 <= x <= column + 14
    box = detectors.hottest(heat)[0]
    assert box.unusual == heat.max() > 1
    assert box.x <= (column + 6) / 48 <= box.x + box.width
    assert box.y <= (row + 6) / 48 <= box.y + box.height


def test_few_normal_images_have_a_box(profile: detectors.Profile) -> None:
    maps = profile.heat_maps([profile.prepare(image) for _, image in pictures(9, 100)])
    # one in twenty is promised, and estimated from 75 images
    assert sum(bool(detectors.hottest(heat)) for heat in maps) < 25


def test_a_map_does_not_depend_on_the_other_images(profile: detectors.Profile) -> None:
    together = [spoiled(profile, 2, 2, seed) for seed in range(35)]
    alone = profile.heat_maps(together[33:34])
    np.testing.assert_allclose(profile.heat_maps(together)[33:34], alone, rtol=1e-2, atol=1e-3)


def test_a_saved_profile_keeps_its_maps_and_without_their_file_it_still_scores(
    profile: detectors.Profile, tmp_path: Path
) -> None:
    image = spoiled(profile, 2, 2)
    profile.save(tmp_path)
    again = detectors.load_profile(tmp_path, "cpu")
    np.testing.assert_array_equal(again.heat_maps([image]), profile.heat_maps([image]))
    (tmp_path / PLACES).unlink()
    without = detectors.load_profile(tmp_path, "cpu")
    assert not without.places
    assert without.fingerprint == profile.fingerprint
    np.testing.assert_array_equal(without.score([image]).p_values, profile.score([image]).p_values)
    with pytest.raises(detectors.HeatMapError, match="no heat maps; fit again, without --no-heat-maps"):
        without.heat_maps([image])
    without.save(tmp_path)
    assert not (tmp_path / PLACES).exists()


def test_a_damaged_file_of_maps_is_named_and_scores_are_as_before(profile: detectors.Profile, tmp_path: Path) -> None:
    image = spoiled(profile, 2, 2)
    profile.save(tmp_path)
    path = tmp_path / PLACES
    path.write_bytes(path.read_bytes()[:1000])
    damaged = detectors.load_profile(tmp_path, "cpu")
    np.testing.assert_array_equal(damaged.score([image]).values, profile.score([image]).values)
    with pytest.raises(detectors.HeatMapError, match=r"places\.safetensors: cannot be read"):
        damaged.heat_maps([image])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_sample_is_spread_over_all_images_whatever_their_batches(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.profile.places.MAX_IMAGES", 20)
    numbers = torch.arange(150.0)[:, None, None, None].expand(150, 2, 4, 4)
    sample = LocalSample()
    for part in numbers.split(batch):
        sample.see([part], (32, 32))
    assert [float(kept.mean()) for kept in sample.kept] == list(range(0, 150, 8))


def test_the_sample_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectors.profile.places.MAX_BYTES", 10 * 2 * 2 * 4 * 4)
    sample = LocalSample()
    sample.see([torch.ones(40, 2, 4, 4)], (32, 32))
    assert len(sample.kept) == 10


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
        ("convnext_atto", {}),
    ],
)
def test_backbones_of_every_kind_give_maps(model: str, args: dict[str, Any], tmp_path: Path) -> None:
    spec = BackboneSpec(model, weights="random", input_px=64, args=args)
    options = detectors.FitOptions("mahalanobis", backbone=spec, device="cpu")
    profile = detectors.fit_profile(pictures(0, 200), options)
    image = spoiled(profile, 34, 34)
    (heat,) = profile.heat_maps([image])
    assert min(heat.shape) >= 4
    assert np.isfinite(heat).all()
    profile.save(tmp_path)
    np.testing.assert_array_equal(detectors.load_profile(tmp_path, "cpu").heat_maps([image])[0], heat)


def test_maps_of_another_backbone_are_refused(profile: detectors.Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    other = Backbone(BackboneSpec("mobilenetv3_small_050", weights="random", input_px=96), "cpu")
    with pytest.raises(detectors.HeatMapError, match="another backbone"):
        Places(other, tmp_path / PLACES).maps(np.zeros((1, 96, 96, 3), np.uint8))


def test_a_profile_can_do_without_maps() -> None:
    options = detectors.FitOptions("mahalanobis", device="cpu", heat_maps=False)
    assert not detectors.fit_profile(pictures(0, 200), options).places


@pytest.mark.parametrize("how", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(60, 180), (180, 60), (90, 90)])
def test_a_map_lies_over_the_original_however_it_was_resized(how: Resize, size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    rows, columns = slice(size[0] // 2, size[0] // 2 + 12), slice(size[1] // 2, size[1] // 2 + 12)
    pixels[rows, columns] = 255
    image = Preparer((96, 128), resize=how, fill=(0, 0, 0))(pixels)
    over = over_whole_image(image.pixels[:, :, 0].astype(np.float32), image.frame)
    seen = np.argwhere(over > 128)
    found = (seen.min(axis=0) / over.shape * size, (seen.max(axis=0) + 1) / over.shape * size)
    np.testing.assert_allclose(found, [(rows.start, columns.start), (rows.stop, columns.stop)], atol=1.5)


def test_what_was_cropped_is_usual() -> None:
    image = Preparer(96, resize="crop")(np.zeros((50, 100, 3), np.uint8))
    over = over_whole_image(np.full((12, 12), 5.0, np.float32), image.frame)
    assert (over[:, :3] == 0).all()
    assert (over[:, 3:9] == 5).all()
    assert (over[:, 9:] == 0).all()


def heat(height: int = 12, width: int = 16) -> NDArray[np.float32]:
    return np.full((height, width), 0.4, np.float32)


def test_boxes_come_hottest_first_and_at_most_three() -> None:
    given = heat()
    for i, value in enumerate((2.0, 5.0, 1.5, 3.0)):
        given[1, 1 + 4 * i] = value
    assert [box.unusual for box in detectors.hottest(given)] == [5.0, 3.0, 2.0]
    assert detectors.hottest(given, most=1)[0].x == 5 / 16


def test_what_lies_around_a_hot_region_makes_no_box_of_its_own() -> None:
    given = heat()
    given[3:9, 3:9] = 1.2
    given[5:7, 5:7] = 4.0
    (box,) = detectors.hottest(given)
    assert (box.x, box.y, box.width, box.height) == (5 / 16, 5 / 12, 2 / 16, 2 / 12)


@pytest.mark.parametrize("value", [0.9, 3.0])
def test_nothing_local_makes_no_box(value: float) -> None:
    assert detectors.hottest(np.full((8, 8), value, np.float32)) == ()
