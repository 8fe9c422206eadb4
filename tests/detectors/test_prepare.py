"""How pictures get the size of a model's input: stretched, letterboxed or cropped, decoded in full or scaled."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detectors.images.decode import ImageError, Limits
from detectors.images.prepare import DECODINGS, RESIZES, AnyImage, Decoding, Preparer, Resize, resize
from detectors.images.properties import NAMES
from detectors.images.tones import ABOVE_WHITE, BACKGROUND, Tones
from tests.files import png16, tiff
from tests.pictures import encoded

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
    decoding=st.sampled_from(DECODINGS),
)
def test_every_picture_gets_the_shape_of_the_input_and_shows_nothing_but_itself(
    height: int, width: int, shape: tuple[int, int], how: Resize, decoding: Decoding
) -> None:
    prepared = Preparer(shape, resize=how, fill=FILL, decoding=decoding)(np.full((height, width, 3), 200, np.uint8))
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


# ------------------------------------------------------------------------------------------------ scaled decoding


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """The same smooth picture at any size."""
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    grey = 128 + 60 * np.sin(7 * x + 3 * y) + 40 * np.cos(9 * y * x)
    return np.stack([grey, 0.8 * grey, 255 - grey], axis=2).round().astype(np.uint8)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("stretch", (1080, 1920), 4),
        ("stretch", (1920, 1080), 4),
        ("stretch", (447, 900), 1),
        ("stretch", (448, 448), 2),
        ("stretch", (4000, 230), 1),  # its short side has no pixel to spare
        ("letterbox", (4000, 230), 8),
        ("crop", (4000, 230), 1),
        ("stretch", (9000, 9000), 8),
    ],
)
def test_an_image_is_shrunk_by_its_size_alone_and_never_below_the_input(
    resize: Resize, size: tuple[int, int], expected: int
) -> None:
    assert Preparer(224, resize=resize, decoding="scaled").shrink(*size) == expected
    assert Preparer(224, resize=resize).shrink(*size) == 1


@pytest.mark.parametrize("how", RESIZES)
def test_scaled_pixels_look_like_full_ones_whatever_the_format(how: Resize) -> None:
    image = scene(1083, 1921)  # of sides that no step divides
    files: list[AnyImage] = [jpeg(Image.fromarray(image)), encoded(image), image, tiff(image)]
    full = Preparer((96, 128), resize=how, fill=FILL)
    scaled = replace(full, decoding="scaled")
    assert scaled.shrink(1083, 1921) == 8
    for file in files:
        one, other = full(file), scaled(file)
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 4
        assert (other.width, other.height, other.frame) == (1921, 1083, one.frame)
        named = dict(zip(NAMES, other.properties, strict=True))
        assert (named["width"], named["height"]) == (1921, 1083)
        for name in ("aspect_ratio", "bytes_per_pixel"):
            assert named[name] == one.properties[NAMES.index(name)]
        assert np.abs(one.properties - other.properties)[[NAMES.index("luma_p50"), NAMES.index("contrast")]].max() <= 1
    shown = [scaled(file) for file in files]
    for measured in shown[1:]:  # equal to a rounding, so that no camera drifts when its files change their format
        difference = np.abs(shown[0].properties - measured.properties)
        assert difference[NAMES.index("noise")] < 0.3
        assert difference[NAMES.index("row_jump")] < 1


def test_a_large_picture_of_a_shrunk_image_is_no_smaller_than_asked_for() -> None:
    file, preparer = jpeg(Image.fromarray(scene(1080, 1920))), Preparer(96, decoding="scaled")
    assert preparer.upright(file).shape == (1080, 1920, 3)
    assert preparer.upright(file, longest_px=512).shape == (540, 960, 3)
    assert replace(preparer, decoding="full").upright(file, longest_px=512).shape == (1080, 1920, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_that_writes_its_orientation_and_one_that_turns_the_pixels_are_shrunk_alike(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(scene(480, 1040))  # the input needs other steps for either of its sides
    with Image.open(io.BytesIO(jpeg(picture, exif=exif))) as opened:
        turned = ImageOps.exif_transpose(opened)
    preparer = Preparer((400, 100), decoding="scaled")
    one, other = preparer(jpeg(picture, exif=exif)), preparer(np.asarray(turned))
    assert (one.width, one.height) == turned.size
    assert preparer.shrink(one.height, one.width) == (2 if orientation > 4 else 1)
    assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 4


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "progressive"])
def test_every_kind_of_jpeg_is_shrunk_and_a_cut_one_is_truncated(mode: str) -> None:
    picture = Image.fromarray(scene(400, 600))
    file = jpeg(picture.convert("RGB" if mode == "progressive" else mode), progressive=mode == "progressive")
    one, other = Preparer(96)(file), Preparer(96, decoding="scaled")(file)
    assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 4
    assert (one.mode, one.notes) == (other.mode, other.notes)
    for share in (0.1, 0.5, 0.97):
        with pytest.raises(ImageError) as refused:
            Preparer(96, decoding="scaled")(file[: int(len(file) * share)])
        assert refused.value.code == "truncated"
    with pytest.raises(ImageError) as refused:
        Preparer(96, Limits(max_pixels=100_000), decoding="scaled")(file)
    assert refused.value.code == "pixels"


def test_depth_and_transparency_are_looked_at_before_an_image_is_shrunk() -> None:
    deep = np.full((400, 400), 1000, np.uint16)
    deep[7, 9] = 5000
    prepared = Preparer(96, tones=Tones.of(1023), decoding="scaled")(png16(deep))
    assert prepared.notes == (ABOVE_WHITE,)
    assert set(np.unique(prepared.pixels)) <= set(range(250, 256))
    hidden = np.full((400, 400, 4), (255, 0, 0, 0), np.uint8)
    assert (Preparer(96, decoding="scaled")(hidden).pixels == BACKGROUND).all()


def test_scaled_decoding_is_named_in_the_fingerprint_and_full_decoding_is_not() -> None:
    for preparer in (Preparer(96), Preparer((64, 96), resize="crop")):
        assert replace(preparer, decoding="scaled").name == preparer.name + "/scaled"
