"""OpenVINO in the place of torch, on a real profile."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors import Profile, load_profile
from detectors.engines.compiled import CompiledEngine
from detectors.engines.engine import EngineError, surfaces, use_engine
from detectors.engines.openvino import OpenVinoEngine, tile_of
from detectors.profile.backbone import Backbone
from detectors.profile.spec import BackboneSpec
from tests.pictures import draw


@pytest.fixture
def profile(profile_folder: Path) -> Profile:
    return load_profile(profile_folder, device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "engine-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "layerwatch"


def test_an_engine_scores_as_torch_does_and_an_image_does_not_depend_on_the_others(profile: Profile) -> None:
    rng = np.random.default_rng(1)
    images = [profile.prepare(draw(rng)) for _ in range(40)]
    by_torch = profile.score(images)
    assert use_engine(profile, "auto").startswith("openvino (")
    assert profile.backbone.engine
    found = profile.score(images)
    spread = by_torch.values.max(axis=0) - by_torch.values.min(axis=0)
    assert np.all(np.abs(found.values - by_torch.values) <= 1e-4 * np.maximum(spread, 1e-9))
    assert (found.p_values == by_torch.p_values).mean() >= 0.999
    alone = np.concatenate([profile.score([image]).values for image in images[:5]])
    assert np.allclose(alone, found.values[:5], rtol=1e-6, atol=1e-6)
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    together, parts = profile.backbone.engine.features(pixels), (pixels[:1], pixels[1:6], pixels[6:])
    assert torch.equal(torch.cat([profile.backbone.engine.features(part) for part in parts]), together)
    assert use_engine(profile, "torch") == "torch"
    assert np.array_equal(profile.score(images).values, by_torch.values)


def test_a_tile_holds_as_many_images_as_the_caches_do() -> None:
    """A network of small maps takes many, one of large maps takes one."""
    largest_maps = (1, 16 * 48 * 48, 96 * 48 * 48, 96 * 112 * 112, 64 * 224 * 224)
    assert [tile_of(4 * values) for values in largest_maps] == [16, 16, 8, 2, 1]
    assert [tile_of(values) for values in largest_maps] == [16, 16, 16, 8, 2]


def test_heat_maps_and_features_of_a_fit_are_torch_s_own(profile: Profile) -> None:
    pixels = np.stack([profile.prepare(draw(np.random.default_rng(2))).pixels])
    before = [each.clone() for each in profile.backbone.maps(pixels)]
    use_engine(profile, "openvino")
    seen: list[int] = []
    profile.backbone.features(pixels, lambda maps, _: seen.append(len(maps)))
    assert seen == [len(before)]
    assert all(a.equal(b) for a, b in zip(before, profile.backbone.maps(pixels), strict=True))


def test_a_graph_is_kept_and_made_again_where_it_is_damaged(profile: Profile, cache: Path) -> None:
    use_engine(profile, "openvino")
    (kept,) = cache.glob("*.xml")
    made = kept.stat().st_mtime_ns
    use_engine(profile, "openvino")
    assert kept.stat().st_mtime_ns == made
    kept.write_text("<net")
    assert use_engine(profile, "openvino").startswith("openvino (")
    assert kept.stat().st_size > 1000


def test_weights_that_are_damaged_are_found_out_and_made_again_at_the_next_start(profile: Profile, cache: Path) -> None:
    use_engine(profile, "openvino")
    (weights,) = cache.glob("*.bin")
    numbers = np.frombuffer(weights.read_bytes()[: weights.stat().st_size // 4 * 4], "<f4").copy()
    numbers[len(numbers) // 2 : len(numbers) * 9 // 10] *= 1.5
    weights.write_bytes(numbers.tobytes())
    said = use_engine(profile, "auto")
    assert "scores otherwise than torch" in said
    assert use_engine(profile, "auto").startswith("openvino (")


@pytest.mark.parametrize("place", ["a-file", "x" * 300])
def test_nothing_is_kept_where_nothing_can_be_read_or_written(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    assert use_engine(profile, "openvino").startswith("openvino (")


def test_examples_that_somebody_has_damaged_are_left_out_of_the_test(profile: Profile) -> None:
    profile.examples = {**dict.fromkeys(profile.examples, b""), "mix1-low-1": b"no picture"}
    assert use_engine(profile, "openvino").startswith("openvino (")


def test_an_engine_that_scores_otherwise_is_not_used(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    features = OpenVinoEngine.features
    monkeypatch.setattr(OpenVinoEngine, "features", lambda self, pixels: features(self, pixels) * 1.01)
    said = use_engine(profile, "auto")
    assert "scores otherwise than torch" in said
    assert said.startswith("torch (")
    assert profile.backbone.engine is None
    with pytest.raises(EngineError, match="scores otherwise"):
        use_engine(profile, "openvino")


def test_auto_is_torch_where_openvino_is_missing(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "not installed: pip install 'layerwatch[openvino]'" in use_engine(profile, "auto")
    with pytest.raises(EngineError, match="not installed"):
        use_engine(profile, "openvino")


def test_what_it_cannot_do_is_said() -> None:
    spec = replace(BackboneSpec.embedded(), precision="bfloat16")
    with pytest.raises(EngineError, match="float32 only"):
        OpenVinoEngine(Backbone(spec, "cpu"))


def test_a_profile_without_examples_is_tested_too(profile: Profile) -> None:
    profile.examples = {}
    assert use_engine(profile, "openvino").startswith("openvino (")
    assert len(surfaces(8, 8)) >= 40


@pytest.mark.slow
def test_nobody_is_told_over_the_network_that_it_is_used() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from detectors.engines.openvino import openvino; openvino();"
            "print([m for m in sys.modules if m.startswith('openvino_telemetry.')],"
            "      sys.modules['openvino_telemetry'])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[] None"


@pytest.mark.slow
def test_compile_keeps_a_package_and_says_where_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporting and compiling take a minute of CPU time: here the graph itself takes the place of what they make."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backbone = Backbone(BackboneSpec("test_resnet", "random", input_px=32), "cpu")
    graphs: list[torch.nn.Module] = []

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nmore")

    def package(graph: torch.nn.Module, package_path: str) -> None:
        graphs.append(graph)
        Path(package_path).write_text("compiled")

    monkeypatch.setattr(torch.export, "export", lambda graph, *_, **__: graph)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    with pytest.raises(EngineError, match=r"compile cannot compile 'test_resnet': No working C.. compiler found$"):
        CompiledEngine(backbone)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda _: graphs[0])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for count in (5, 1):  # the second is loaded, not made
        expected = backbone.features(pixels[:count])
        assert torch.allclose(CompiledEngine(backbone).features(torch.from_numpy(pixels[:count])), expected, atol=1e-5)
    assert len(graphs) == 1
    CompiledEngine(backbone).forget()
    assert not list((tmp_path / "layerwatch").glob("*.pt2"))
