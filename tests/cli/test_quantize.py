"""A profile in 8-bit integers: made by the command on a real network with NNCF, served by OpenVINO."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from detectors import FitOptions, Profile, ProfileError, fit_profile, load_profile
from detectors.engines.int8 import Int8Engine
from detectors.profile.files import NETWORK
from detectors.profile.spec import BackboneSpec
from monitor.__main__ import main
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.settings import DecodingSettings, ScoringSettings
from tests.pictures import encoded, pictures

pytestmark = pytest.mark.slow


@dataclass
class Made:
    """before, after: folders of the two profiles. said: what the command printed."""

    before: Path
    after: Path
    said: str


def _write(folder: Path, seed: int, count: int, stripes: bool = False) -> Path:
    folder.mkdir()
    for name, image in pictures(seed, count, stripes):
        (folder / f"{name}.png").write_bytes(encoded(image))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("int8")
    normal, striped = _write(folder / "normal", 0, 200), _write(folder / "striped", 1, 40, stripes=True)
    options = FitOptions("mahalanobis-ridge", BackboneSpec("test_resnet", "random", input_px=32), "cpu")
    before, after = folder / "before", folder / "after"
    fit_profile(pictures(0, 200), options).save(before)
    # NNCF takes a tenth of a second of CPU time for each image of its sample
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as changed:
        changed.setattr("detectors.profile.quantize.SAMPLE", 10)
        changed.setattr("detectors.profile.quantize.ROUND_S", 0.02)
        words = ["quantize", before, normal, "-o", after, "--ood", striped]
        assert main([str(word) for word in words]) == 0
    return Made(before, after, out.getvalue())


def test_the_command_says_what_it_costs_and_the_p_values_are_valid(made: Made) -> None:
    said = made.said.replace("\n", " ")
    assert "pasted patches" in said
    assert "striped" in said
    assert "times as many images a second" in said
    before, after = load_profile(made.before, "cpu"), load_profile(made.after, "cpu")
    assert before.fingerprint != after.fingerprint
    assert after.manifest["version"] == 7
    assert after.manifest["quantised"]["from"] == before.fingerprint
    new = [image for _, image in pictures(7, 100)]
    p_values = after.score(new).p_values[:, 0]
    assert 0.35 < p_values.mean() < 0.65
    assert (p_values <= 0.1).mean() < 0.25
    assert after.score([image for _, image in pictures(8, 20, stripes=True)]).p_values[:, 0].max() < 0.05


def test_a_copy_scores_the_same_image_by_image_and_in_the_daemon_s_scoring(made: Made) -> None:
    profile = load_profile(made.after, "cpu", "auto")
    assert profile.runs_by.startswith("openvino in int8 (")
    images = [profile.prepare(image) for _, image in pictures(9, 12)]
    expected = profile.score(images)
    alone = np.concatenate([profile.score([image]).values for image in images])
    assert np.allclose(alone, expected.values, rtol=1e-5, atol=1e-5)
    serving = load_profiles(ScoringSettings(profile=str(made.after)), DecodingSettings())
    judged = serving.p_values([("line-1", image) for image in images], batch_images=5)
    assert all(np.array_equal(one.p_values, row) for one, row in zip(judged, expected.p_values, strict=True))
    assert profile.heat_maps(images[:2]).shape[0] == 2


@pytest.mark.parametrize("engine", ["torch", "compile"])
def test_no_other_engine_runs_it(made: Made, engine: str) -> None:
    with pytest.raises(ProfileError, match="quantised: only openvino runs it"):
        Profile.load(made.after, "cpu", engine)  # type: ignore[arg-type]


def test_a_damaged_missing_or_foreign_network_is_refused(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.after, tmp_path / "copy")
    content = bytearray((copy / NETWORK).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / NETWORK).write_bytes(content)
    with pytest.raises(ProfileError, match=f"{NETWORK}: is damaged"):
        load_profile(copy, "cpu")
    (copy / NETWORK).unlink()
    with pytest.raises(ProfileError, match=f"{NETWORK}: No such file"):
        load_profile(copy, "cpu")
    manifest = json.loads((copy / "profile.json").read_text())
    (copy / "profile.json").write_text(json.dumps({**manifest, "network_digest": None}))
    with pytest.raises(ProfileError, match="not those its manifest was written for"):
        load_profile(copy, "cpu")


def test_a_machine_without_openvino_or_with_other_arithmetic_refuses_to_score(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        features = Int8Engine.features
        changed.setattr(Int8Engine, "features", lambda self, pixels: features(self, pixels) * 1.3)
        with pytest.raises(ProfileError, match="computes in 8-bit integers otherwise"):
            load_profile(made.after, "cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProfileError, match="openvino is not installed"):
        load_profile(made.after, "cpu")


def test_what_is_missing_or_cannot_be_quantised_is_said(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = _write(tmp_path / "images", 2, 3)
    common = ["-o", str(tmp_path / "new")]
    assert main(["quantize", str(made.after), str(images), *common]) == 1
    assert "is in int8: only float32 can be quantised" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert main(["quantize", str(made.before), str(images), *common]) == 1
    assert "pip install 'layerwatch[quantize]'" in capsys.readouterr().err
