"""A profile with conditions: the same detector, a calibration for each kind of normal, all in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detectors.profile.files import ProfileError
from detectors.profile.fit import TooFewImagesError, recalibrate
from detectors.profile.outline import read_outline
from detectors.profile.profile import Profile
from monitor.__main__ import main
from monitor.ingest.scoring.profiles import layout_of
from tests.pictures import at_night, encoded, pictures


@pytest.fixture(scope="module")
def folder(profile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile by day, with conditions beside it."""
    profile = Profile.load(profile_folder, "cpu")
    recalibrate(profile, at_night(pictures(60, 120)), condition="night")
    recalibrate(profile, pictures(61, 90), ordered=True, condition="day")
    saved = tmp_path_factory.mktemp("conditions") / "profile"
    profile.save(saved)
    return saved


def test_each_condition_has_p_values_and_a_fingerprint_of_its_own_and_the_same_scores(
    folder: Path, profile_folder: Path
) -> None:
    before, profile = Profile.load(profile_folder, "cpu"), Profile.load(folder, "cpu")
    assert profile.fingerprint == before.fingerprint  # its own calibration, and its counts, stay what they are
    day, night = profile.under("day"), profile.under("night")
    assert len({profile.fingerprint, day.fingerprint, night.fingerprint}) == 3
    assert (night.condition, night.calibration_sizes[0], night.manifest["frames"]) == ("night", 120, {})
    assert day.calibration_sizes[0] < 90  # frames in order
    assert day.manifest["frames"]["note"].startswith("these 90 frames are worth about")
    dark = [profile.prepare(image, name.encode()) for name, image in at_night(pictures(62, 60))]
    by_all, by_night = profile.score(dark), night.score(dark)
    np.testing.assert_array_equal(by_all.values, by_night.values)
    luma = profile.signals.index("luma_p50")
    assert (by_all.p_values[:, luma] <= 0.05).mean() > 0.95
    assert (by_night.p_values[:, luma] <= 0.05).mean() < 0.2
    np.testing.assert_array_equal(night.p_values(by_all.values, [image.key for image in dark]), by_night.p_values)


def test_conditions_are_loaded_as_they_were_saved_and_can_be_replaced_in_place(folder: Path, tmp_path: Path) -> None:
    loaded = Profile.load(folder, "cpu")
    loaded.save(tmp_path)
    again = Profile.load(tmp_path, "cpu")
    for name, view in loaded.conditions.items():
        assert again.under(name).fingerprint == view.fingerprint
        assert again.under(name).dependence == view.dependence
    outline = read_outline(folder)
    assert layout_of(outline) == layout_of(loaded)
    for name, view in loaded.conditions.items():
        assert layout_of(outline.conditions[name]) == layout_of(view)
        assert outline.conditions[name].fingerprint == view.fingerprint
        assert outline.conditions[name].quantiles() == view.quantiles()
    kept, image = again.under("day"), next(at_night(pictures(64, 1)))[1]
    before = kept.score([image]).p_values
    recalibrate(again, at_night(pictures(63, 70)), condition="night")
    again.save(tmp_path)  # its own tensors are mapped from the file that is replaced
    np.testing.assert_array_equal(kept.score([image]).p_values, before)
    assert Profile.load(tmp_path, "cpu").under("night").fingerprint != loaded.under("night").fingerprint
    assert Profile.load(tmp_path, "cpu").under("day").fingerprint == loaded.under("day").fingerprint


def test_a_view_that_is_saved_alone_is_loaded_as_it_was(folder: Path, tmp_path: Path) -> None:
    night = Profile.load(folder, "cpu").under("night")
    night.save(tmp_path)
    loaded = Profile.load(tmp_path, "cpu")
    assert (loaded.fingerprint, loaded.condition, loaded.conditions) == (night.fingerprint, "night", {})
    image = next(at_night(pictures(68, 1)))[1]
    np.testing.assert_array_equal(loaded.score([image]).p_values, night.score([image]).p_values)


def test_two_conditions_calibrated_on_the_same_images_have_different_fingerprints(profile_folder: Path) -> None:
    profile = Profile.load(profile_folder, "cpu")
    for name in ("early", "late"):
        recalibrate(profile, pictures(65, 60), condition=name)
    assert profile.under("early").fingerprint != profile.under("late").fingerprint


def test_what_is_not_there_or_not_whole_is_refused_by_name(folder: Path, profile_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"has no condition 'dusk' \(it has day, night\); add it with"):
        Profile.load(folder, "cpu").under("dusk")
    with pytest.raises(ProfileError, match=r"no condition 'night' \(it has none\)"):
        Profile.load(profile_folder, "cpu").under("night")
    with pytest.raises(ProfileError, match="'Night!' names no condition"):
        recalibrate(Profile.load(profile_folder, "cpu"), pictures(66, 60), condition="Night!")
    with pytest.raises(TooFewImagesError):
        recalibrate(Profile.load(profile_folder, "cpu"), pictures(66, 20), condition="night")
    Profile.load(folder, "cpu").save(tmp_path)
    document = json.loads((tmp_path / "profile.json").read_text())
    document["conditions"]["night"]["fingerprint"] = "0" * 16
    (tmp_path / "profile.json").write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="tensors of condition 'night' are not those"):
        Profile.load(tmp_path, "cpu")


def test_the_command_adds_a_condition_in_place_and_the_model_card_shows_it(
    profile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, folder = tmp_path / "night", tmp_path / "profile"
    images.mkdir()
    for name, image in at_night(pictures(67, 65)):
        (images / f"{name}.png").write_bytes(encoded(image))
    Profile.load(profile_folder, "cpu").save(folder)
    assert main(["calibrate", str(folder), str(images)]) == 1
    assert "-o names the folder" in capsys.readouterr().err
    assert main(["calibrate", str(folder), str(images), "--condition", "night", "--device", "cpu"]) == 0
    assert "condition night (" in (told := capsys.readouterr().err)
    assert "calibrated on 65 images" in told
    assert main(["profile", "show", str(folder)]) == 0
    assert "night" in (shown := capsys.readouterr().out)
    assert Profile.load(folder, "cpu").under("night").fingerprint in shown
    one = str(next(iter(images.iterdir())))
    found = {}
    for option in ((), ("--condition", "night")):
        assert main(["score", str(folder), one, "--json", "--device", "cpu", *option]) == 0
        found[option] = json.loads(capsys.readouterr().out)["signals"]["luma_p50"]["p"]
    assert found[()] < 0.01 < found["--condition", "night"]


def test_a_calibration_on_frames_without_the_word_for_it_says_so(profile_folder: Path) -> None:
    profile = Profile.load(profile_folder, "cpu")
    rng = np.random.default_rng(3)
    shots = [image for _, image in pictures(63, 12)]
    frames = [
        np.clip(shot + rng.normal(0, 0.6, shot.shape), 0, 255).astype(np.uint8) for shot in shots for _ in range(8)
    ]
    recalibrate(profile, [(f"{i}.png", frame) for i, frame in enumerate(frames)])
    assert "neighbours are alike" in profile.manifest["frames"]["note"]
