"""`layerwatch explain` on a real profile and on files as people have them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detectors
from detectors.images.overlay import overlay
from detectors.profile.places import PLACES
from monitor.__main__ import main
from tests.pictures import draw, encoded

pytestmark = pytest.mark.slow


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def spoiled(seed: int) -> bytes:
    """A normal picture with stripes in its lower right quarter."""
    rng = np.random.default_rng(seed)
    image = draw(rng)
    image[32:44, 32:44] = draw(rng, stripes=True)[:12, :12]
    return encoded(image)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three usable images, two of which would get the same name, and a broken one."""
    folder = tmp_path / "images"
    (folder / "night").mkdir(parents=True)
    (folder / "a.png").write_bytes(spoiled(1))
    (folder / "a.jpg").write_bytes(encoded(draw(np.random.default_rng(2)), "JPEG"))
    (folder / "night" / "a.png").write_bytes(spoiled(3))
    (folder / "torn.png").write_bytes(spoiled(4)[:400])
    return folder


def test_every_image_gets_a_picture_named_after_it_and_broken_ones_are_reported(
    profile_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "explained"
    assert run("explain", profile_folder, images, "-o", output) == 1
    written = capsys.readouterr()
    assert "torn.png: " in written.err
    made = {str(path.relative_to(output)) for path in output.rglob("*.png")}
    assert made == {"a.png", "a-2.png", "night/a.png"}
    assert [line.split("  ")[0] for line in written.out.splitlines()] == [
        str(output / name) for name in ("a.png", "a-2.png", "night/a.png")
    ]
    with Image.open(output / "night" / "a.png") as picture:
        assert picture.width > picture.height > 320  # enlarged, and the original beside it


def test_the_boxes_are_those_of_the_library_and_the_picture_differs_only_there(
    profile_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", profile_folder, images / "a.png", "-o", tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    profile = detectors.load_profile(profile_folder, "cpu")
    prepared = profile.prepare(spoiled(1), b"a.png")
    (heat,) = profile.heat_maps([prepared])
    assert found["boxes"][0]["x"] == detectors.hottest(heat)[0].x > 0.5
    assert found["p"] == profile.score([prepared]).p_values[0, 0]
    assert found["picture"] == str(tmp_path / "out" / "a.png")


def test_members_of_an_archive_are_written_below_the_output_folder_alone(
    profile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(spoiled(1))
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in ("../../escaped.png", "/absolute.png"):
            member = archive.gettarinfo(tmp_path / "a.png")
            member.name = name
            archive.addfile(member, io.BytesIO(spoiled(1)))
    output = tmp_path / "deep" / "er" / "out"
    assert run("explain", profile_folder, tmp_path / "images.tar", "-o", output) == 0
    assert {path.name for path in output.iterdir()} == {"escaped.png", "absolute.png"}
    assert not list(tmp_path.glob("*escaped*"))


def test_a_profile_without_heat_maps_says_what_to_do(
    profile_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detectors.load_profile(profile_folder, "cpu").save(tmp_path / "profile")
    (tmp_path / "profile" / PLACES).unlink()
    assert run("explain", tmp_path / "profile", images / "a.png", "-o", tmp_path / "out") == 1
    assert "no heat maps; fit again, without --no-heat-maps" in capsys.readouterr().err


def test_hotter_places_are_lighter_and_normal_ones_keep_the_picture() -> None:
    picture = np.full((60, 90, 3), 120, np.uint8)
    heat = np.linspace(0.5, 3.0, 90, dtype=np.float32)[None].repeat(60, axis=0)
    over = overlay(picture, heat)
    assert over.shape == picture.shape
    assert np.array_equal(over[:, 0], picture[:, 0])
    luminance = over[30].astype(float) @ (0.2126, 0.7152, 0.0722)
    hot = luminance[20:]
    assert hot.argmin() < 20 < hot.argmax()
    assert (np.diff(hot[hot.argmin() :]) >= -1).all()
