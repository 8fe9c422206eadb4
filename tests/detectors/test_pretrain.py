"""The pretraining tool: a step of it runs, an interrupted run goes on, and fit takes what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.profile.backbone import Backbone
from detectors.profile.spec import BackboneSpec
from tests.pictures import encoded, pictures
from tools import pretrain_backbone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for name, stripes in (("plain", False), ("striped", True)):
        (root / name).mkdir()
        for i, (_, image) in enumerate(pictures(70, 12, stripes)):
            (root / name / f"{i}.png").write_bytes(encoded(image))
    return root


@pytest.mark.parametrize("teacher", [(), ("--teacher", "resnet18", "--teacher-weights", "random")])
def test_a_run_goes_on_where_it_stopped_and_makes_weights_that_load(
    folder: Path, tmp_path: Path, teacher: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small.safetensors"
    common = [str(folder), "-o", str(output), "--px", "32", "--batch", "8", "--max-steps", "1", "--device", "cpu"]
    pretrain_backbone.main([*common, "--epochs", "1", *teacher])
    pretrain_backbone.main([*common, "--epochs", "2", *teacher])
    printed = capsys.readouterr().out
    assert "24 images, 2 classes" in printed
    assert "going on after epoch 1" in printed
    assert "epoch 2/2" in printed
    backbone = Backbone(BackboneSpec("mobilenetv3_small_100", str(output), input_px=32), "cpu")
    assert backbone.layers == (16, 24, 48, 576)
