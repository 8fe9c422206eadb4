"""The library's commands on real files: fit with options, evaluate, calibrate, show."""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from detectors.profile.profile import Profile
from monitor.__main__ import main
from monitor.rules.simulation import Scenario
from tests.pictures import draw, encoded, pictures

pytestmark = pytest.mark.slow


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def write_tar(path: Path, seed: int, count: int, stripes: bool = False, extra: tuple[bytes, ...] = ()) -> Path:
    with tarfile.open(path, "w") as archive:
        images = [encoded(image) for _, image in pictures(seed, count, stripes)]
        for i, content in enumerate([*images, *extra]):
            member = tarfile.TarInfo(f"{i:04}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "id": write_tar(folder / "id.tar", 50, 70),
        "ood": write_tar(folder / "ood.tar", 51, 40, stripes=True),
    }


@dataclass(frozen=True)
class Short(Scenario):
    before: int = 500
    within: int = 500


def test_evaluate_compares_all_detectors_and_writes_a_report(
    profile_folder: Path,
    sets: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("detectors.methods.diffusion.MIN_STEPS", 50)  # stripes are seen after fewer
    monkeypatch.setattr("monitor.cli.evaluate.Scenario", Short)
    report = tmp_path / "report.html"
    common = ("evaluate", profile_folder, "--id", sets["id"], "--ood", f"stripes={sets['ood']}")
    assert run(*common, "--detectors", "all", "--json", "--html", report) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["detectors"]) >= {"dlsr", "dlsr-mse", "dlsr-lr", "dlsr-mfsim", "mahalanobis", "knn", "pca"}
    dlsr = document["detectors"]["dlsr"]["stripes"]
    assert dlsr["auroc"] > 0.9
    assert dlsr["auroc_interval"][0] <= dlsr["auroc"] <= dlsr["auroc_interval"][1]
    assert {"fpr95", "aupr"} <= set(dlsr)
    html = report.read_text()
    assert "http" not in html.replace("http://www.w3.org", "")  # nothing is fetched from elsewhere
    assert html.count("data:image/jpeg;base64,") == 2 * 3 * 12  # each image, and where it is unusual
    assert document["headline"] in html
    assert "Images until the alarm, 20 % faulty" in html


def test_evaluate_trains_no_network_unless_asked_to_and_says_what_a_fault_costs(
    profile_folder: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("""rules:
  - {name: drift, kind: sequential, signals: [ood]}
  - {name: odd, kind: rate, level: 0.01}
  - {name: frozen, kind: frozen}
""")
    common = ("evaluate", profile_folder, "--id", sets["id"], "--ood", f"stripes={sets['ood']}", f"none={sets['id']}")
    assert run(*common, "--share", "50%", "--json", "-c", config) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["default"] == "mahalanobis-ridge"
    assert set(document["detectors"]) == {"mahalanobis-ridge", "mahalanobis", "mahalanobis-layers", "knn", "pca"}
    alarms = document["alarms"]
    assert alarms["share"] == 0.5
    (left_out,) = alarms["left_out"]
    assert left_out.startswith("odd cannot judge by this profile: rate: 300 calibration images of 'ood' are too few")
    assert alarms["faults"]["stripes"]["first"]["median"] <= 100
    assert alarms["faults"]["stripes"]["rules"] == {"drift": alarms["faults"]["stripes"]["first"]}
    # seventy images that come again and again may look like a change, but a far smaller one
    none = alarms["faults"]["none"]["first"]["median"]
    assert none is None or none > 5 * alarms["faults"]["stripes"]["first"]["median"]
    assert set(alarms["normal"]["false_alarms"]) == {"drift"}
    assert err.startswith("evaluate: features of id")

    assert run(*common, "--detectors", "mahalanobis-ridge") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mahalanobis-ridge: AUROC")
    assert "knn" not in printed
    # the profile was fitted on arrays, and these images are files, of other sizes in bytes
    assert "20 % none: alarms on normal images already" in printed
    assert re.search(r"False alarms in 140,000 normal images: drift \d+ \(bytes_per_pixel: ", printed)
    assert "…" not in printed


def test_evaluate_refuses_an_unknown_detector_and_a_share_that_is_none(
    profile_folder: Path, sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("evaluate", profile_folder, "--id", sets["id"], "--ood", f"stripes={sets['ood']}")
    assert run(*common, "--detectors", "knm") == 1
    assert "unknown detectors ['knm']; choose from all, baselines, dlsr" in capsys.readouterr().err
    for share in ("0", "20", "120%", "a%", "20%x"):
        with pytest.raises(SystemExit):
            run(*common, "--share", share)
        assert "must be a share above 0 and up to 1" in capsys.readouterr().err


def test_evaluate_says_in_its_first_line_when_a_baseline_does_better() -> None:
    from detectors.evaluation.evaluate import Evaluation, ImageSet  # noqa: PLC0415

    metrics = {name: {"s": {"auroc": a, "fpr95": 0.1, "aupr": 0.9}} for name, a in (("dlsr", 0.8), ("knn", 0.9))}
    sets = {name: ImageSet(None, None) for name in ("id", "s")}  # type: ignore[arg-type]
    assert Evaluation("dlsr", {}, metrics, {}, sets).headline.startswith("knn does better than dlsr")


def test_calibrating_keeps_the_detector_and_changes_the_fingerprint(
    profile_folder: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", profile_folder, sets["id"], "-o", tmp_path / "new", "--ordered", "--max-images", "65") == 0
    said = capsys.readouterr().err
    assert "these 65 frames are worth about " in said
    assert "times as long to use the cut at 5 %" in said
    old, new = Profile.load(profile_folder), Profile.load(tmp_path / "new")
    assert new.fingerprint != old.fingerprint
    assert new.manifest["frames"]["note"] in said
    for size, d in zip(new.calibration_sizes, new.dependence, strict=True):
        assert size == max(11, int(65 / d + 0.001)) < 65
    assert not old.manifest["frames"]
    prepared = [new.prepare(draw(np.random.default_rng(3)))]
    np.testing.assert_array_equal(new.score(prepared).values, old.score(prepared).values)


def test_calibrating_on_too_few_images_is_refused(
    profile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_tar(tmp_path / "few.tar", 52, 9)
    assert run("calibrate", profile_folder, few, "-o", tmp_path / "new") == 1
    assert "9 usable images are too few: at least 60" in capsys.readouterr().err


def test_show_is_a_model_card(profile_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", "show", profile_folder, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"]["fit"], document["images"]["calibration"]) == (300, 300)
    assert set(document["choice"]["pasted"]) == {"1", "2", "4"}
    assert {"p1", "p50", "p95", "p99"} == set(document["calibration_scores"]["ood"])
    assert run("profile", "show", profile_folder) == 0
    shown = capsys.readouterr().out
    assert document["fingerprint"] in shown
    assert "mobilenetv3_small_100" in shown
    assert "a patch of another image was pasted into 150 images" in shown.replace("\n", " ")
    assert "calibrated on 300 images: the smallest usable level is 2 % (1 image in 50)" in shown
    assert "many-unusual: a window of normal images breaches with a probability of at most 1 %" in shown


def test_the_worth_of_a_calibration_is_said_for_the_configured_rules(
    profile_folder: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("rules: [{name: slow, kind: sequential, false_alarm_days: 90}, {name: still, kind: frozen}]\n")
    assert run("calibrate", profile_folder, sets["id"], "-o", tmp_path / "new", "-c", config) == 0
    said = capsys.readouterr().err
    assert "calibrated on 70 images: the smallest usable level is 10 % (1 image in 10)" in said
    assert "slow: at most one false alarm in 90 days" in said
    assert "still" not in said

    # what only the daemon can read is no obstacle
    config.write_text("receivers: [{name: a, type: webhook, url: {env: NOT_SET_HERE}}]\n")
    assert run("profile", "show", profile_folder, "-c", config) == 0
    shown = capsys.readouterr().out
    assert f"the standard rules stand in for those of {config}" in shown
    assert "drift: at most one false alarm in 30 days" in shown


def test_fit_takes_another_detector_and_backbone_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    double = encoded(next(pictures(53, 1))[1])
    images = write_tar(tmp_path / "images.tar", 53, 210, extra=(double, b"not an image"))
    options = ("--detector", "knn", "--backbone", "resnet18", "--weights", "random", "--layers", "/4,/8")
    status = run("fit", images, "-o", tmp_path / "p", *options, "--image-size", "48", "--mean", ".5,.5,.5", "--ordered")
    assert status == 0
    told = capsys.readouterr().err
    assert "left out 1 broken: 0211.png" in told
    assert "left out 1 duplicates: 0210.png" in told
    profile = Profile.load(tmp_path / "p")
    assert (profile.manifest["detector"], profile.backbone.spec.layers) == ("knn", (1, 2))
    assert (profile.backbone.layers, profile.backbone.spec.mean) == ((64, 128), (0.5, 0.5, 0.5))
    assert profile.score([profile.prepare(draw(np.random.default_rng(1)))]).p_values.shape == (1, len(profile.signals))


@pytest.mark.slow
def test_fit_takes_an_image_size_for_the_embedded_backbone_too(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "images.tar", 55, 200)
    assert run("fit", images, "-o", tmp_path / "p", "--detector", "knn", "--image-size", "64") == 0
    profile = Profile.load(tmp_path / "p")
    assert (profile.backbone.spec.weights, profile.backbone.spec.input_px) == ("embedded", 64)


def test_fit_refuses_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_tar(tmp_path / "images.tar", 54, 2)
    for options, message in (
        (("--layers", "1,2"), "need --backbone"),
        (("--epochs", "3"), "are for dlsr-mse, dlsr-lr and dlsr-mfsim"),
        (("--backbone", "nope"), "Unknown model"),
        (("--backbone", "resnet18", "--backbone-arg", "x"), "expected KEY=VALUE"),
        (("--grid", "2"), "--grid needs --detector"),
        (("--since", "2h"), "--since says how far back to read a stream"),
    ):
        assert run("fit", images, "-o", tmp_path / "p", *options) == 1
        assert message in capsys.readouterr().err
