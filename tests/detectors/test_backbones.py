"""Every family of backbones from `fit --backbone` to p-values, in inputs of any shape; tiny, with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from detectors.images.decode import Limits
from detectors.images.prepare import Preparer
from detectors.profile.backbone import Backbone
from detectors.profile.embedded import EmbeddedNetwork
from detectors.profile.files import ProfileError
from detectors.profile.network import lean, tensor_digest
from detectors.profile.profile import Profile
from detectors.profile.reference import read_reference
from detectors.profile.spec import EMBEDDED, BackboneError, BackboneSpec
from monitor.__main__ import main
from tests.pictures import pictures

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Kind:
    """What the command line gets, and the (height, width) and layers that come of it."""

    model: str
    size: str
    shape: tuple[int, int]
    layers: tuple[int, ...]
    args: tuple[str, ...] = ()
    resize: str = "stretch"
    decoding: str = "full"


SMALL_VIT = ("depth=4", "embed_dim=24", "num_heads=2")
SMALL_SWIN = ("embed_dim=16", "depths=(1,1,1,1)", "num_heads=(1,1,2,2)")
KINDS = {
    "cnn": Kind("test_resnet", "40x56", (40, 56), (32, 48, 192, 96), decoding="scaled"),
    "convnext": Kind("test_convnext", "64", (64, 64), (24, 32, 48, 64), resize="crop"),
    "swin": Kind("swin_tiny_patch4_window7_224", "32x64", (32, 64), (16, 32, 64, 128), SMALL_SWIN),
    "vit": Kind("vit_tiny_patch16_224", "32x48", (32, 48), (24,) * 4, SMALL_VIT, "letterbox"),
    "dinov2": Kind("vit_small_patch14_reg4_dinov2", "42x28", (42, 28), (24,) * 4, SMALL_VIT),
    "dinov3": Kind("vit_small_patch16_dinov3", "32", (32, 32), (24,) * 4, SMALL_VIT),
    "siglip": Kind("vit_base_patch16_siglip_224", "48x32", (48, 32), (24,) * 4, SMALL_VIT, "crop"),
    "maxvit": Kind("test_maxvit", "32x64", (32, 64), (32, 64, 96, 128)),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, image in pictures(0, 200):
        Image.fromarray(image).save(folder / f"{name}.png", compress_level=0)
    return folder


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_backbone_of_every_family_is_fitted_saved_and_loaded_and_scores(
    kind: Kind, images: Path, tmp_path: Path
) -> None:
    options = ["--detector", "mahalanobis", "--backbone", kind.model, "--weights", "random", "--image-size", kind.size]
    options += [part for argument in kind.args for part in ("--backbone-arg", argument)]
    options += ["--resize", kind.resize, "--decoding", kind.decoding]
    assert main(["fit", str(images), "-o", str(tmp_path), *options, "--device", "cpu"]) == 0
    profile = Profile.load(tmp_path, "cpu")
    made = profile.preparer
    assert (made.shape, made.resize, made.decoding) == (kind.shape, kind.resize, kind.decoding)
    assert profile.backbone.layers == kind.layers
    normal, strange = (
        profile.score([image for _, image in pictures(1, 30, stripes)]).p_values[:, 0] for stripes in (False, True)
    )
    assert strange.max() < 0.1 < np.median(normal)
    heat = profile.heat_maps([profile.prepare(image) for _, image in pictures(1, 2)])
    assert heat.ndim == 3
    assert np.isfinite(heat).all()


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_pictures_are_turned_by_a_right_angle_only_where_that_leaves_the_frame_as_it_is(resize: str) -> None:
    for size, angles in ((64, 2 if resize == "stretch" else 1), ((32, 64), 1)):
        spec = BackboneSpec("test_resnet", "random", layers=(2, 3), input_px=size, resize=resize)  # type: ignore[arg-type]
        backbone = Backbone(spec, "cpu")
        reference = read_reference(pictures(0, 16), backbone, Limits(), lambda *_: None)
        turned = reference.turned(np.arange(16), backbone)
        assert turned is not None
        assert len(turned.features) == angles
        upside_down = np.stack([np.rot90(reference.turnable[int(row)], 2) for row in turned.rows])
        np.testing.assert_array_equal(turned.features[-1], backbone.features(upside_down))


def test_the_fingerprint_covers_how_images_are_resized_and_stays_as_it_was_for_the_default(
    profile_folder: Path, tmp_path: Path
) -> None:
    profile = Profile.load(profile_folder, "cpu")
    before = profile.backbone.digest + profile.preparer.tones.name
    assert profile.fingerprint == tensor_digest(profile._tensors(), n_bytes=8, beginning=before)
    profile.save(tmp_path)
    manifest = tmp_path / "profile.json"
    document = json.loads(manifest.read_text())
    for change in ({"resize": "crop"}, {"input_px": [96, 64]}, {"decoding": "scaled"}):
        manifest.write_text(json.dumps({**document, "backbone": {**document["backbone"], **change}}))
        with pytest.raises(ProfileError, match="its tensors are not those"):
            Profile.load(tmp_path, "cpu")
    del document["backbone"]["resize"]  # as profiles were written before there was a choice
    manifest.write_text(json.dumps(document))
    assert Profile.load(tmp_path, "cpu").fingerprint == profile.fingerprint


def test_a_letterbox_is_filled_with_what_is_zero_to_the_network() -> None:
    spec = BackboneSpec("test_resnet", "random", mean=(0.485, 0.456, 0.406), std=(0.2,) * 3, input_px=(32, 64))
    preparer = Backbone(spec, "cpu").preparer(Limits(), Preparer(1).tones)
    assert preparer.fill == (124, 116, 104)


def test_weights_and_their_digest_stay_as_they_are_at_another_input_size(tmp_path: Path) -> None:
    args: dict[str, Any] = {"depth": 4, "embed_dim": 24, "num_heads": 2}
    vit = lean.timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    spec = BackboneSpec("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"), args=args)
    native, other = (Backbone(replace(spec, input_px=size), "cpu") for size in (224, (32, 48)))
    assert other.digest == native.digest
    assert [tuple(m.shape[2:]) for m in other.maps(np.zeros((1, 32, 48, 3), np.uint8))] == [(2, 3)] * 4


def test_an_unknown_way_to_resize_and_an_impossible_size_are_refused() -> None:
    with pytest.raises(BackboneError, match="resize 'zoom' is none of stretch, letterbox, crop"):
        BackboneSpec("test_resnet", "random", resize="zoom")  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="0x64 px is impossible"):
        BackboneSpec("test_resnet", "random", input_px=(0, 64))


def test_image_sizes_on_the_command_line_are_a_side_or_height_by_width(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("160x", "1x2x3", "0x20", "wide"):
        with pytest.raises(SystemExit):
            main(["fit", "nowhere", "-o", "p", "--image-size", text])
        assert "--image-size" in capsys.readouterr().err


def test_the_embedded_network_is_timm_s_bit_for_bit_and_loads_without_timm(profile_folder: Path) -> None:
    ours = Backbone(BackboneSpec.embedded(), "cpu")
    assert isinstance(ours.network, EmbeddedNetwork)
    theirs = Backbone(replace(BackboneSpec.embedded(), weights=str(EMBEDDED)), "cpu")
    assert not isinstance(theirs.network, EmbeddedNetwork)
    assert ours.digest == theirs.digest
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    for mine, other in zip(ours.maps(pixels), theirs.maps(pixels), strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
    program = (
        "import sys, detectors\n"
        f"detectors.load_profile({str(profile_folder)!r}, 'cpu')\n"
        "print(sorted({'timm', 'torchvision', 'torch._dynamo', 'scipy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
