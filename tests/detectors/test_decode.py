"""Every format, depth and kind of transparency becomes the pixels that a person sees; what is not used is noted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from detectors.images.decode import FURTHER_PICTURES, ImageError, Limits, decode, from_array, is_deep
from detectors.images.prepare import AnyImage, Preparer
from detectors.images.tones import ABOVE_WHITE, BACKGROUND, Tones
from detectors.profile.depth import by_tones
from tests.files import png16, tiff
from tests.pictures import encoded, pictures

RNG = np.random.default_rng(0)
GREY16 = RNG.integers(0, 2**16, (9, 7), dtype=np.uint16)
RGB16 = RNG.integers(0, 2**16, (9, 7, 3), dtype=np.uint16)
RGBA16 = RNG.integers(0, 2**16, (9, 7, 4), dtype=np.uint16)
RGB8 = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
PALETTE = Image.fromarray(RGB8).quantize(8)
PICTURE = next(iter(pictures(3, 1)))[1]
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
TIFF_VALUES: dict[str, np.ndarray[Any, Any]] = {
    "grey 8": RGB8[:, :, 0], "grey 16": GREY16, "rgb 8": RGB8, "rgb 16": RGB16, "rgba 16": RGBA16
}  # fmt: skip


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PICTURE)).save(buffer, kind, **options)
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, np.ndarray[Any, Any]]] = {
    "png grey 16": (png16(GREY16), GREY16[:, :, None]),
    "png rgb 16": (png16(RGB16), RGB16),
    "png rgba 16": (png16(RGBA16), RGBA16),
    **{
        f"tiff {name} {order} {'deflate' if deflate else 'raw'}": (tiff(values, order, deflate), np.atleast_3d(values))
        for name, values in TIFF_VALUES.items()
        for order in ORDERS
        for deflate in (False, True)
    },
    "tiff lzw": (saved("TIFF", Image.fromarray(RGB8), compression="tiff_lzw"), RGB8),
    "tiff palette": (saved("TIFF", PALETTE), np.asarray(PALETTE.convert("RGB"))),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_a_file_is_read(name: str) -> None:
    file, expected = FILES[name]
    picture = decode(file, Limits())
    np.testing.assert_array_equal(picture.values, expected)
    assert picture.values.dtype == expected.dtype
    assert picture.notes == ()
    assert is_deep(file) == (expected.dtype == np.uint16)
    high = decode(file, Limits(), deep=False).values
    shallow = expected if expected.dtype == np.uint8 or expected.shape[2] == 1 else (expected >> 8).astype(np.uint8)
    np.testing.assert_array_equal(high, shallow)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("make", [png16, tiff, lambda values: values])
def test_all_levels_of_a_camera_s_depth_reach_the_pixels(
    bits: int, make: Callable[[np.ndarray[Any, Any]], AnyImage]
) -> None:
    ramp = np.linspace(0, 2**bits - 1, 32 * 32).astype(np.uint16).reshape(32, 32)
    for values in (ramp, np.stack([ramp] * 3, axis=2)):
        prepared = Preparer(32, tones=Tones.of(int(ramp.max())))(make(values))
        np.testing.assert_array_equal(prepared.pixels[:, :, 1], ramp >> (bits - 8))
        assert len(np.unique(prepared.pixels)) == 256


def test_without_a_white_level_the_high_byte_counts_as_it_always_did() -> None:
    preparer = Preparer(9, tones=Tones(None, "drop"))
    for values, file in ((GREY16, png16(GREY16)), (RGB16, png16(RGB16)), (RGBA16[:, :, :3], png16(RGBA16))):
        high = np.broadcast_to(np.atleast_3d(values) >> 8, (9, 7, 3)).astype(np.uint8)
        np.testing.assert_array_equal(decoded_pixels(preparer, file), high)
    with pytest.raises(ImageError, match="uint16 pixels, but the profile was fitted on 8-bit images only"):
        preparer(GREY16)


def decoded_pixels(preparer: Preparer, file: bytes) -> np.ndarray[Any, Any]:
    return preparer.tones.rgb(decode(file, preparer.limits, deep=False).values)[0]


def test_values_above_the_white_level_are_white_and_noted() -> None:
    tones = Tones.of(1800)
    assert tones.white_level == 4095
    bright = np.full((8, 8), 4095, np.uint16)
    assert Preparer(8, tones=tones)(png16(bright)).notes == ()
    bright[2, 3] = 4096
    prepared = Preparer(8, tones=tones)(png16(bright))
    assert prepared.notes == (ABOVE_WHITE,)
    assert set(np.unique(prepared.pixels)) == {255}


def rgba(hidden: int, alpha: int = 0) -> np.ndarray[Any, Any]:
    """A picture with a square of `alpha` over pixels of value `hidden`."""
    image = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    image[10:20, 10:20] = (hidden, hidden, hidden, alpha)
    return image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "array", "grey", "palette"])
def test_what_is_transparent_is_not_scored(kind: str) -> None:
    def made(hidden: int) -> AnyImage:
        image = Image.fromarray(rgba(hidden))
        if kind == "array":
            return rgba(hidden)
        if kind == "grey":
            return saved("PNG", image.convert("LA"))
        if kind == "palette":
            indices = Image.new("P", (48, 48), 1)
            indices.putpalette([hidden, hidden, hidden, 9, 9, 9])
            indices.paste(0, (10, 10, 20, 20))
            return saved("PNG", indices, transparency=0)
        return saved(kind, image, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))

    shown = Preparer(48)
    one, other = shown(made(0)), shown(made(250))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.digest == other.digest
    assert set(np.unique(one.pixels[10:20, 10:20])) == {BACKGROUND}
    of_before = Preparer(48, tones=Tones(alpha="drop"))
    assert of_before(made(0)).digest != of_before(made(250)).digest


def test_half_transparent_pixels_are_mixed() -> None:
    mixed = Preparer(48)(rgba(200, 51)).pixels[15, 15]
    assert mixed.tolist() == [round(200 * 0.2 + BACKGROUND * 0.8)] * 3


SEVERAL: dict[str, bytes] = {
    "two jpeg files": encoded(PICTURE, "JPEG") + encoded(PICTURE, "JPEG"),
    "two png files": encoded(PICTURE) + encoded(PICTURE),
    "two webp files": encoded(PICTURE, "WEBP") + encoded(PICTURE, "WEBP"),
    "mpo": saved("MPO", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])]),
    "png animation": saved("PNG", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])]),
    "webp animation": saved("WEBP", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])]),
    "tiff pages": saved("TIFF", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_pictures_the_first_counts_and_the_others_are_noted(name: str) -> None:
    prepared = Preparer(48)(SEVERAL[name])
    assert prepared.notes == (FURTHER_PICTURES,)
    assert (prepared.width, prepared.height) == (48, 48)


def test_a_thumbnail_and_padding_are_no_further_pictures() -> None:
    small = saved("JPEG", Image.fromarray(PICTURE[:16, :16]))
    exif = b"Exif\0\0" + small  # as a camera puts one into its metadata
    assert Preparer(48)(saved("JPEG", exif=exif)).notes == ()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert Preparer(48)(encoded(PICTURE, kind) + bytes(100)).notes == ()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True})),
        *(
            ("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate")
        ),  # with the directory at the end
    ],
)
def test_a_file_that_ends_early_is_truncated_wherever_it_is_cut(kind: str, options: dict[str, Any]) -> None:
    file = saved(kind, **options)
    for share in (0.1, 0.3, 0.6, 0.9, 0.97):
        with pytest.raises(ImageError) as refused:
            Preparer(48)(file[: max(40, int(len(file) * share))])
        assert (refused.value.code, f"{kind} of " in str(refused.value)) == ("truncated", True)


def test_a_whole_file_with_wrong_bytes_is_corrupt() -> None:
    file = bytearray(encoded(PICTURE))
    at = file.index(b"IDAT") + 20
    file[at : at + 40] = bytes(40)
    with pytest.raises(ImageError, match=r"cannot be decoded: \w") as refused:
        Preparer(48)(bytes(file))
    assert refused.value.code == "corrupt"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (tiff(GREY16.astype(np.float32)), "32 bits, mode F"),
        (tiff(GREY16.astype(np.uint32)), "32 bits, mode I"),
        (tiff(GREY16.astype(np.int16)), "16 bits, mode I"),
        (tiff(GREY16, t262=0), "where white is zero"),
        (tiff(RGB16, t284=2), "in separate planes"),
        (png16(RGBA16[:, :, :2]), "16-bit PNG of kind LA"),
    ],
)
def test_a_depth_that_is_not_read_is_refused_and_says_what_it_is(file: bytes, found: str) -> None:
    with pytest.raises(ImageError, match=found) as refused:
        decode(file, Limits())
    assert refused.value.code == "depth"


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4), np.int16), np.zeros((4, 4), np.uint32)])
def test_an_array_of_another_type_is_named_with_what_is_allowed(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ImageError, match=f"expected an array of uint8 or uint16, got {array.dtype}"):
        from_array(array, Limits())


def test_the_white_level_is_known_before_the_first_deep_image_is_given_out(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png16(np.minimum(GREY16, 900)))
    images: list[tuple[str, AnyImage]] = [
        ("a", encoded(PICTURE)),
        ("b", PICTURE),
        ("c", tiff(np.minimum(GREY16, 300))),
        ("d", np.minimum(RGB16, 3000)),
        ("broken", png16(GREY16)[:60]),
        ("e", path),
        ("f", encoded(PICTURE, "JPEG")),
    ]
    parts = [(list(part), tones) for part, tones in by_tones(iter(images), Limits())]
    assert [tones.white_level for _, tones in parts] == [None, 4095]
    found = [item for part, _ in parts for item in part]
    assert [name for name, _ in found] == ["a", "b", "c", "d", "broken", "e", "f"]
    for (_, one), (_, other) in zip(images, found, strict=True):
        np.testing.assert_array_equal(one, other)
