import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

from detectors.images import properties
from detectors.images.prepare import AnyImage, Preparer
from detectors.images.properties import NAMES, TWO_SIDED, measure


def measured(pixels: ArrayLike, n_bytes: int | None = None, mode: str = "RGB") -> dict[str, float]:
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    return dict(zip(NAMES, measure(pixels, n_bytes or pixels.nbytes, mode), strict=True))


def flat(value: Sequence[int], height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(value, dtype=np.uint8), (height, width, 3))


def scene(height: int, width: int, noise: float = 0.0, seed: int = 0) -> NDArray[np.uint8]:
    """The same picture at any resolution: ramps, a disc and stripes in coordinates from 0 to 1."""
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    grey = 60 + 90 * x + 40 * y + 50 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.06) + 20 * np.sin(40 * x)
    image = np.stack([grey, 0.9 * grey, 0.7 * grey], axis=2)
    image += np.random.default_rng(seed).normal(0, noise, image.shape) if noise else 0
    return np.clip(image.round(), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_property_has_a_name_a_side_and_a_line_in_the_table() -> None:
    assert len(NAMES) == len(set(NAMES)) == len(TWO_SIDED) == len(measure(scene(48, 64), 1, "RGB"))
    assert all(name in (properties.__doc__ or "") for name in NAMES)


def test_a_flat_image_has_its_tone_everywhere_and_nothing_else() -> None:
    got = measured(flat([90, 90, 90]))
    assert got["luma_p1"] == got["luma_p50"] == got["luma_p99"] == 90
    for name in ("clipped_low", "clipped_high", "contrast", "sharpness", "entropy", "saturation", "noise", "row_jump"):
        assert got[name] == 0, name
    assert (got["width"], got["height"]) == (80, 60)
    assert got["aspect_ratio"] == pytest.approx(math.log2(4 / 3))
    assert got["bytes_per_pixel"] == pytest.approx(math.log2(3))


def test_half_black_half_white_has_the_largest_contrast_one_bit_and_both_ends_clipped() -> None:
    image = np.zeros((90, 90, 3), dtype=np.uint8)
    image[:, 45:] = 255
    got = measured(image)
    assert got["contrast"] == pytest.approx(127.5)
    assert got["entropy"] == pytest.approx(1.0)
    assert got["clipped_low"] == got["clipped_high"] == pytest.approx(0.5)
    assert (got["luma_p1"], got["luma_p99"]) == (0, 255)
    assert got["sharpness"] == pytest.approx(255**2 / 89)  # one of 89 steps across, none down


def test_colour_is_measured_as_saturation_and_as_ratios_to_green() -> None:
    got = measured(flat([200, 100, 50]))
    assert got["saturation"] == pytest.approx(0.75)
    assert got["red_ratio"] == pytest.approx(math.log2(201 / 101))
    assert got["blue_ratio"] == pytest.approx(math.log2(51 / 101))
    assert measured(flat([255, 0, 0]))["luma_p50"] == pytest.approx(0.299 * 255, abs=1)
    assert measured(flat([0, 0, 0]))["saturation"] == 0


def test_grey_is_seen_as_grey_however_it_is_stored() -> None:
    grey = Image.fromarray(scene(480, 640, noise=6)[:, :, 1])
    prepare = Preparer(96)
    images: dict[str, AnyImage] = {
        "L": encoded(grey),
        "RGB png": encoded(grey.convert("RGB"), "PNG"),
        "RGB jpeg": encoded(grey.convert("RGB"), quality=60),
        "LA": encoded(grey.convert("LA"), "PNG"),
        "palette": encoded(grey.convert("P"), "PNG"),
        "array": np.asarray(grey.convert("RGB")),
    }
    for name, image in images.items():
        got = dict(zip(NAMES, prepare(image).properties, strict=True))
        assert got["saturation"] == got["red_ratio"] == got["blue_ratio"] == 0, name


def test_the_noise_of_a_sensor_is_estimated_and_a_blur_takes_it_away() -> None:
    for sd in (2.0, 8.0):
        noisy = 120 + np.random.default_rng(1).normal(0, sd, (300, 400, 3))
        assert measured(noisy.round())["noise"] == pytest.approx(sd, rel=0.1)
    sharp = Image.fromarray(scene(480, 640, noise=5))
    before, after = measured(np.asarray(sharp)), measured(np.asarray(sharp.filter(ImageFilter.GaussianBlur(1))))
    assert after["noise"] < 0.3 * before["noise"]


@pytest.mark.parametrize(("rows", "value"), [([200], 0), ([7], 255), ([300, 301], 0)])
def test_a_dead_or_hot_row_anywhere_is_seen_as_a_jump(rows: list[int], value: int) -> None:
    image = scene(480, 640, noise=5).copy()
    clean = measured(image)["row_jump"]
    image[rows] = value
    assert measured(image)["row_jump"] > max(20, 4 * clean)


def test_blur_and_darkness_move_what_they_should() -> None:
    image = Image.fromarray(scene(480, 640, noise=3))
    before = measured(np.asarray(image))
    blurred = measured(np.asarray(image.filter(ImageFilter.GaussianBlur(12))))
    assert blurred["sharpness"] < 0.6 * before["sharpness"]
    dark = measured(np.asarray(image) // 2)
    assert dark["luma_p50"] == pytest.approx(before["luma_p50"] / 2, abs=1)
    assert dark["contrast"] == pytest.approx(before["contrast"] / 2, rel=0.03)


@pytest.mark.parametrize("width", [160, 320, 500, 641, 1280, 2000])
def test_resolution_does_not_fake_sharpness_tone_or_colour(width: int) -> None:
    want, got = measured(scene(480, 640, noise=4)), measured(scene(width * 3 // 4, width, noise=4))
    assert got["sharpness"] == pytest.approx(want["sharpness"], rel=0.1)
    for name in ("luma_p1", "luma_p50", "luma_p99", "contrast"):
        assert got[name] == pytest.approx(want[name], abs=2.5), name
    for name in ("saturation", "red_ratio", "blue_ratio"):
        assert got[name] == pytest.approx(want[name], abs=0.01), name
    assert got["entropy"] == pytest.approx(want["entropy"], abs=0.1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 2), (3, 3), (95, 96), (97, 4000)])
@pytest.mark.parametrize("value", [0, 255])
def test_every_size_and_the_extremes_give_finite_numbers_in_range(shape: tuple[int, int], value: int) -> None:
    for pixels in (flat([value] * 3, *shape), np.random.default_rng(0).integers(0, 256, (*shape, 3))):
        got = measured(pixels, n_bytes=1)
        assert np.isfinite(list(got.values())).all()
        for name in ("clipped_low", "clipped_high", "saturation"):
            assert 0 <= got[name] <= 1
        assert 0 <= got["entropy"] <= 8
        assert 0 <= got["contrast"] <= 127.5
        assert 0 <= got["luma_p1"] <= got["luma_p50"] <= got["luma_p99"] <= 255


def test_encoded_bytes_count_and_pixels_do_not_change() -> None:
    pixels = scene(48, 64)
    copy = pixels.copy()
    assert measured(pixels, n_bytes=48 * 64)["bytes_per_pixel"] == 0
    assert (pixels == copy).all()
