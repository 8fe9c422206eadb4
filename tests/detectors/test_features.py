"""Backbones of all kinds: which layers, which size, which weights; what cannot be used is refused by name."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from detectors.images.prepare import Preparer
from detectors.profile.backbone import Backbone
from detectors.profile.fit import FitOptions, fit_profile
from detectors.profile.network import lean
from detectors.profile.profile import load_profile
from detectors.profile.spec import BackboneError, BackboneSpec
from tests.pictures import encoded, pictures

pytestmark = pytest.mark.slow


def computing(**options: object) -> torch.nn.Module:
    """A model whose constructor asks for a value, which there is none of on torch's meta device."""
    assert torch.linspace(0, 1, 3)[1].item() == 0.5
    made: torch.nn.Module = lean.timm.create_model("test_resnet", **options)
    return made


def test_a_model_that_computes_while_it_is_built_has_its_layers_too() -> None:
    lean.timm.models.register_model(computing)
    assert Backbone(BackboneSpec("computing", "random", input_px=32), "cpu").layers == (32, 48, 192, 96)


@pytest.mark.parametrize(
    ("model", "options", "layers"),
    [
        ("efficientnet_b4", {"input_px": 64, "layers": (0, 1, 2, 3, 4)}, (24, 32, 56, 160, 448)),
        ("resnet50", {"input_px": 64, "strides": (4, 8, 16)}, (256, 512, 1024)),
        ("convnext_tiny", {"input_px": 64}, (96, 192, 384, 768)),
        ("vit_small_patch16_224", {"args": {"img_size": 64}}, (384,) * 4),
        ("vit_small_patch14_dinov2", {"args": {"img_size": 56}, "layers": (3, 11)}, (384, 384)),
    ],
)
def test_any_kind_of_backbone_gives_its_layers_side_by_side(
    model: str, options: dict[str, object], layers: tuple[int, ...]
) -> None:
    backbone = Backbone(BackboneSpec(model, "random", **options), "cpu")  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *backbone.shape, 3), dtype=np.uint8)
    assert backbone.layers == layers
    assert backbone.features(pixels).shape == (2, sum(layers))
    assert BackboneSpec.from_json(backbone.spec.to_json()) == backbone.spec


@pytest.mark.parametrize(
    ("model", "args", "shapes"),
    [
        ("test_resnet", {}, [(32, 16, 16), (48, 8, 8), (192, 4, 4), (96, 2, 2)]),
        (
            "mambaout_femto",
            {"dims": (8, 12, 16, 20), "depths": (1,) * 4},
            [(8, 16, 16), (12, 8, 8), (16, 4, 4), (20, 2, 2)],
        ),
        ("test_vit", {"img_size": 64}, [(64, 4, 4)] * 4),
        ("test_vit", {"img_size": 64, "feature_cls": "hook"}, [(64, 4, 4)] * 3),
    ],
    ids=["maps", "channels last", "class token", "tokens"],
)
def test_every_layer_comes_as_a_map_whatever_the_network_gives(
    model: str, args: dict[str, object], shapes: list[tuple[int, int, int]]
) -> None:
    backbone = Backbone(BackboneSpec(model, "random", input_px=64, args=args), "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    maps = backbone.maps(pixels)
    assert [tuple(m.shape) for m in maps] == [(2, *shape) for shape in shapes]
    assert torch.equal(backbone.features(pixels), torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1))


def test_tokens_without_a_grid_are_the_maps_that_timm_makes_of_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with_grid, tokens = (
        Backbone(BackboneSpec("test_vit", "random", (1, 3), input_px=64, args={"img_size": 64, **more}), "cpu")
        for more in ({}, {"feature_cls": "hook"})
    )
    for expected, given in zip(with_grid.maps(pixels), tokens.maps(pixels), strict=True):
        torch.testing.assert_close(given, expected)


def test_what_is_not_given_comes_from_timms_data_config() -> None:
    spec = Backbone(BackboneSpec("vit_small_patch16_224", "random"), "cpu").spec
    assert (spec.input_px, spec.mean, spec.filter) == (224, (0.5, 0.5, 0.5), "bicubic")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (BackboneSpec("nope", "random"), "Unknown model"),
        (BackboneSpec("resnet18", "random", layers=(9,)), "out of range"),
        (BackboneSpec("resnet18", "random", strides=(3,)), r"its layers have strides \[2, 4, 8, 16, 32\]"),
        (
            BackboneSpec("test_vit", "random", input_px=100),
            r"give the image size 160, or multiples of 16 px such as 96$",
        ),
        (BackboneSpec("test_maxvit", "random", input_px=(96, 100)), r"such as 96$"),
        (
            BackboneSpec("test_maxvit", "random", input_px=96, args={"img_size": 64}),
            r"give the image size 64 or leave out its argument img_size$",
        ),
        (BackboneSpec("resnet18", "/nowhere/w.safetensors"), "cannot be read"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(spec: BackboneSpec, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        Backbone(spec, "cpu")


def test_sizes_are_named_only_where_the_size_is_what_fails() -> None:
    for input_px in (64, None):
        with pytest.raises(BackboneError, match=r"cannot be used: .* 1 channels") as refusal:
            Backbone(BackboneSpec("test_resnet", "random", input_px=input_px, args={"in_chans": 1}), "cpu")
        assert "image size" not in str(refusal.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = lean.timm.create_model("resnet18", features_only=True)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="tensors missing"):
        Backbone(BackboneSpec("resnet50", str(tmp_path / "w.safetensors")), "cpu")


def test_hub_weights_come_through_timms_own_loading(tmp_path: Path) -> None:
    whole = lean.timm.create_model("resnet18", num_classes=1000)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors")}}
    hub = Backbone(BackboneSpec("resnet18", "hub", layers=(1, 2), input_px=64, args=overlay), "cpu")
    file = Backbone(BackboneSpec("resnet18", str(tmp_path / "w.safetensors"), layers=(1, 2), input_px=64), "cpu")
    assert hub.digest == file.digest


def test_half_precision_is_close_and_stays_with_the_profile(tmp_path: Path) -> None:
    full = replace(BackboneSpec.embedded(), input_px=48)
    spec = replace(full, precision="bfloat16")
    whole, half = Backbone(full, "cpu"), Backbone(spec, "cpu")
    pixels = np.stack([Preparer(half.input_px)(image).pixels for _, image in pictures(0, 16)])
    difference = (whole.features(pixels) - half.features(pixels)).abs().mean() / whole.features(pixels).abs().mean()
    assert 0.0 < difference < 0.05  # 8 bits of mantissa, in many layers
    fit_profile(pictures(0, 220), FitOptions("mahalanobis", spec)).save(tmp_path)
    profile = load_profile(tmp_path, "cpu")
    assert profile.backbone.spec.precision == "bfloat16"
    strange, normal = (
        profile.score([profile.prepare(image) for _, image in pictures(60, 40, stripes)]).p_values[:, 0]
        for stripes in (True, False)
    )
    assert strange.max() < 0.05 < np.median(normal)


def test_reencoding_as_jpeg_hardly_moves_the_p_values() -> None:
    def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:  # as a photo, not every pixel is news
        return np.asarray(Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC))

    profile = fit_profile((name, enlarged(image)) for name, image in pictures(0, 220))
    images = [enlarged(image) for _, image in pictures(60, 120)]
    png, jpeg = (
        profile.score([profile.prepare(encoding(image), b"%d" % k) for k, image in enumerate(images)]).p_values[:, 0]
        for encoding in (encoded, _jpeg)
    )
    assert np.median(np.abs(png - jpeg)) < 0.15
    assert abs(png.mean() - jpeg.mean()) < 0.15
    assert (jpeg <= 0.05).mean() < 0.1


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_one_resize_filter_serves_fit_and_serving(profile_folder: Path) -> None:
    profile = load_profile(profile_folder, "cpu")
    image = next(pictures(61, 1))[1]
    again = Preparer(profile.backbone.input_px, filter=profile.backbone.filter)(image)
    np.testing.assert_array_equal(profile.prepare(image).pixels, again.pixels)


def test_openvino_computes_the_features_of_a_large_fit_as_torch_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = FitOptions("mahalanobis-ridge", device="cpu", heat_maps=False)
    by_torch = fit_profile(pictures(3, 220), options)
    monkeypatch.setattr("detectors.profile.fit_engine.IMAGES", 64)
    first, again = (fit_profile(pictures(3, 220), options) for _ in range(2))
    assert [p.manifest["engine"] for p in (by_torch, first, again)] == ["torch", "openvino", "openvino"]
    assert first.fingerprint == again.fingerprint
    assert first.backbone.engine is None  # who serves with one says so
    new = [image for _, image in pictures(4, 40)]
    mine, theirs = first.score(new), by_torch.score(new)
    ood = first.signals.index("ood")
    np.testing.assert_allclose(mine.values[:, ood], theirs.values[:, ood], rtol=1e-3)
    assert (mine.p_values != theirs.p_values).mean() < 0.01
