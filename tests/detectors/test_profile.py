"""A real profile, fitted on pictures drawn here: calibrated, deterministic, saved and loaded unchanged."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load, save

from detectors.images.tones import Tones
from detectors.profile.files import ProfileError
from detectors.profile.fit import FitOptions, TooFewImagesError, fit_profile, recalibrate
from detectors.profile.network import tensor_digest
from detectors.profile.profile import Profile
from tests.files import png16, tiff
from tests.pictures import draw, encoded, pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def profile() -> Profile:
    return fit_profile(pictures(0, 300))


def test_normal_images_are_unusual_as_often_as_promised_and_strange_ones_nearly_always(profile: Profile) -> None:
    normal = profile.score([profile.prepare(image, name.encode()) for name, image in pictures(1, 200)])
    rng = np.random.default_rng(2)
    strange = profile.score([profile.prepare(draw(rng, stripes=True)) for _ in range(50)])
    # 300 calibration images: the true share at 10 % is Beta(30, 271); with 200 images .2 is beyond its 99.9 % quantile
    assert (normal.p_values[:, 0] <= 0.1).mean() < 0.2
    assert (strange.p_values[:, 0] <= 0.05).mean() > 0.9


def test_the_score_of_an_image_does_not_depend_on_its_batch(profile: Profile) -> None:
    prepared = [profile.prepare(image, name.encode()) for name, image in pictures(3, 33)]
    together = profile.score(prepared).values
    alone = np.concatenate([profile.score([one]).values for one in prepared])
    # float32 convolutions choose their blocking by batch size: the same sums in another order
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_a_saved_profile_scores_bit_for_bit_the_same(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    loaded = Profile.load(tmp_path, "cpu")
    prepared = [profile.prepare(image, name.encode()) for name, image in pictures(4, 20)]
    np.testing.assert_array_equal(profile.score(prepared).values, loaded.score(prepared).values)
    np.testing.assert_array_equal(profile.score(prepared).p_values, loaded.score(prepared).p_values)
    assert loaded.fingerprint == profile.fingerprint
    # the daemon, another user, must be able to read all or none; who may read a folder may also open what it holds
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    (mode,) = {modes[path] for path in modes if path.is_file()}
    assert {modes[path] for path in modes if path.is_dir()} <= {mode | (mode & 0o444) >> 2}, modes


def test_fitting_twice_gives_the_same_fingerprint(profile: Profile, profile_folder: Path) -> None:
    assert Profile.load(profile_folder, "cpu").fingerprint == profile.fingerprint  # both learned from pictures(0, 300)


def test_no_images_give_empty_scores(profile: Profile) -> None:
    assert profile.score([]).p_values.shape == (0, len(profile.signals))


LARGE_FIT = """
import resource
import numpy as np
from detectors.profile.backbone import Backbone
from detectors.profile.fit import FitOptions, fit_profile
from detectors.profile.spec import BackboneSpec
from tests.pictures import pictures

spec = BackboneSpec.embedded()
Backbone(spec, "cpu").features(np.zeros((64, spec.input_px, spec.input_px, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
large = ((name, np.tile(image, (18, 18, 1))) for name, image in pictures(0, 230))  # 2.2 MB each, one after the other
fit_profile(large, FitOptions("mahalanobis", device="cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_fit_holds_one_batch_of_images_at_a_time() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_FIT], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 200 * 1024  # KiB; the images are half a GiB


def test_too_few_images_are_refused_with_their_number() -> None:
    with pytest.raises(TooFewImagesError, match="12 usable images are too few"):
        fit_profile(pictures(0, 12))


def test_an_unknown_version_a_cut_file_and_other_weights_are_refused_by_name(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    manifest = tmp_path / "profile.json"
    document = json.loads(manifest.read_text())

    manifest.write_text(json.dumps({**document, "backbone_digest": "00"}))
    with pytest.raises(ProfileError, match="other weights of mobilenetv3_small_100"):
        Profile.load(tmp_path, "cpu")
    manifest.write_text(json.dumps({**document, "version": 99}))
    with pytest.raises(ProfileError, match="version 99; this program reads versions 2 to 8"):
        Profile.load(tmp_path, "cpu")
    manifest.write_text(json.dumps(document))
    tensors = tmp_path / "profile.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(ProfileError, match=r"profile\.safetensors: cannot be read"):
        Profile.load(tmp_path, "cpu")


def deep(seed: int, count: int, gain: int = 8) -> Iterator[tuple[str, bytes]]:
    """Grey and RGB pictures of a 12-bit camera that uses half of its range, in 16-bit files."""
    for i, (name, image) in enumerate(pictures(seed, count)):
        values = image.astype(np.uint16) * gain
        yield name, png16(values[:, :, 0]) if i % 2 else tiff(values)


def test_a_profile_knows_the_depth_of_its_reference_and_keeps_it(tmp_path: Path) -> None:
    steps: list[str] = []
    fitted = fit_profile(deep(0, 220), FitOptions("mahalanobis", device="cpu"), lambda step, _: steps.append(step))
    assert steps[:2] == ["white level of 32 images", "white level of 64 images"]
    assert steps.index("features of 64 images") > steps.index("white level of 192 images")
    fitted.save(tmp_path)
    loaded = Profile.load(tmp_path, "cpu")
    assert loaded.preparer.tones == fitted.preparer.tones == Tones(4095)
    assert loaded.manifest["tones"] == {"white_level": 4095, "alpha": "composite"}
    assert loaded.manifest["images"]["broken"] == 0
    (_, image), *_ = deep(1, 1)
    # 8-bit pictures times 8 in 12 bits: half of the range, and nothing of it lost
    assert len(np.unique(loaded.prepare(image).pixels)) > 60  # seven in the high byte
    brighter = [loaded.prepare(image) for _, image in deep(1, 20, gain=14)]
    assert (loaded.score(brighter).p_values[:, loaded.signals.index("luma_p99")] < 0.05).mean() > 0.9
    before = loaded.fingerprint
    recalibrate(loaded, deep(2, 80, gain=2))  # dimmer: 10 bits would hold them
    assert loaded.preparer.tones == Tones(4095)
    assert loaded.fingerprint != before


def test_coordinates_of_the_mix_come_last_and_are_ranks_of_one_tail(profile: Profile) -> None:
    assert profile.mix_signals == tuple(f"mix{i + 1}" for i in range(len(profile.mix_signals)))
    assert profile.signals[-len(profile.mix_signals) :] == profile.mix_signals
    assert not any(profile.learned[-len(profile.mix_signals) :])
    scores = profile.score([profile.prepare(image, name.encode()) for name, image in pictures(1, 200)])
    mix, p = (part[:, -len(profile.mix_signals) :] for part in (scores.values, scores.p_values))
    for values, ranks in zip(mix.T, p.T, strict=True):
        assert (np.diff(ranks[np.argsort(values)]) <= 0).all()  # p near 0 is one end, p near 1 the other
    # new images of the same kind: the mean rank of 200 is .5 with an error of .02 and .017 of the calibration set
    assert (np.abs(p.mean(axis=0) - 0.5) < 0.1).all()


def test_a_place_within_the_reference_makes_no_image_worse_than_another(profile: Profile) -> None:
    values = np.array([[calibration.values[0] for calibration in profile.calibrations]])
    assert profile.beyond(values) == 0
    values[0, -len(profile.mix_signals) :] = 1e6
    assert profile.beyond(values) == 0
    values[0, 0] = 1e6
    assert profile.beyond(values) > 0


def test_a_kind_that_stops_coming_moves_the_mix_while_every_image_is_normal(profile: Profile) -> None:
    prepared = [profile.prepare(image, name.encode()) for name, image in pictures(1, 400)]
    p = profile.score(prepared).p_values
    redness = np.array(
        [image.properties[profile.signals.index("red_ratio") - sum(profile.learned)] for image in prepared]
    )
    fewer = p[redness < np.median(redness)]
    moved = np.abs(fewer[:, -len(profile.mix_signals) :].mean(axis=0) - 0.5).max()
    assert moved > 0.12  # with 200 images and as many to calibrate the error is .03
    assert (fewer[:, 0] <= 0.05).mean() < 0.1


def test_a_profile_of_version_4_has_no_coordinates_and_stays_as_it_was(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    manifest, tensors = tmp_path / "profile.json", tmp_path / "profile.safetensors"
    document, held = json.loads(manifest.read_text()), load(tensors.read_bytes())
    kept = len(profile.signals) - len(profile.mix_signals)
    held = {name: tensor for name, tensor in held.items() if not name.startswith("mix.")}
    del held["calibration.rows"]
    held |= {name: held[name][:kept].contiguous() for name in ("calibration.values", "calibration.jitters")}
    tensors.write_bytes(save(held))
    of_before = tensor_digest(held, n_bytes=8, beginning=profile.backbone.digest + profile.preparer.name)
    for name in ("signals", "dependence"):
        document[name] = document[name][:kept]
    manifest.write_text(json.dumps({**document, "version": 4, "fingerprint": of_before}))
    loaded = Profile.load(tmp_path, "cpu")
    assert loaded.signals == profile.signals[:kept]
    image = draw(np.random.default_rng(3))
    np.testing.assert_array_equal(loaded.score([image]).p_values, profile.score([image]).p_values[:, :kept])
    loaded.save(tmp_path)
    assert Profile.load(tmp_path, "cpu").fingerprint == of_before


def test_a_profile_of_version_3_has_no_grid_and_stretches(tmp_path: Path) -> None:
    fitted = fit_profile(pictures(0, 200), FitOptions("mahalanobis", device="cpu", heat_maps=False))
    fitted.save(tmp_path)
    manifest = tmp_path / "profile.json"
    document = json.loads(manifest.read_text())
    del document["backbone"]["grid"], document["backbone"]["resize"], document["choice"]
    manifest.write_text(json.dumps({**document, "version": 3}))
    loaded = Profile.load(tmp_path, "cpu")
    assert loaded.fingerprint == fitted.fingerprint
    image = draw(np.random.default_rng(3))
    np.testing.assert_array_equal(loaded.score([image]).p_values, fitted.score([image]).p_values)


def test_a_profile_of_scaled_decoding_has_a_version_that_earlier_programs_refuse(
    profile_folder: Path, tmp_path: Path
) -> None:
    full = Profile.load(profile_folder, "cpu")
    full.save(tmp_path)
    document = json.loads((tmp_path / "profile.json").read_text())
    assert (document["version"], document["backbone"].get("decoding")) == (5, None)  # as written before
    scaled = Profile.load(profile_folder, "cpu")
    scaled.backbone.spec = replace(scaled.backbone.spec, decoding="scaled")
    scaled.preparer = scaled.backbone.preparer(scaled.preparer.limits, scaled.preparer.tones)
    scaled.fingerprint = scaled.own_fingerprint()
    scaled.save(tmp_path)
    assert json.loads((tmp_path / "profile.json").read_text())["version"] == 6
    loaded = Profile.load(tmp_path, "cpu")
    assert loaded.fingerprint == scaled.fingerprint != full.fingerprint
    large = np.kron(draw(np.random.default_rng(3)), np.ones((8, 8, 1), np.uint8))
    one, other = (profile.prepare(encoded(large, "JPEG")) for profile in (full, loaded))
    assert one.digest != other.digest
    assert (one.width, one.height) == (other.width, other.height) == (384, 384)
    assert np.abs(one.pixels.astype(int) - other.pixels).mean() < 4  # of sharp edges, eight pixels apart


def test_a_profile_of_version_2_keeps_its_fingerprint_and_its_pixels(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    manifest = tmp_path / "profile.json"
    document = json.loads(manifest.read_text())
    del document["tones"]
    of_before = tensor_digest(profile._tensors(), n_bytes=8, beginning=profile.backbone.digest)
    manifest.write_text(json.dumps({**document, "version": 2, "fingerprint": of_before}))
    loaded = Profile.load(tmp_path, "cpu")
    assert loaded.fingerprint == of_before != profile.fingerprint
    image = draw(np.random.default_rng(3))
    hidden = np.dstack([image, np.zeros((48, 48), np.uint8)])
    assert loaded.prepare(encoded(hidden)).digest == profile.prepare(image).digest != profile.prepare(hidden).digest
    assert loaded.prepare(png16(image.astype(np.uint16) * 256 + 99)).digest == profile.prepare(image).digest
    loaded.save(tmp_path)
    assert Profile.load(tmp_path, "cpu").fingerprint == of_before
