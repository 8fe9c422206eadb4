"""Scoring on a device: what crosses to it and back, batches that do not fit, and profiles in half precision.

The path is that of a GPU with the device `cpu`, or `meta`, whose tensors have no values: what asks for one there fails.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detectors import DeviceError, FitOptions, Profile, ProfileError, fit_profile, load_profile
from detectors.engines.cuda_graphs import CudaGraphs
from detectors.engines.device import arithmetic, check_precision, choose_device
from detectors.engines.engine import EngineError, use_engine
from detectors.engines.pipeline import RECOVERY_S, Pipeline
from detectors.methods.detector import Detector, LearnedTensors
from detectors.methods.registry import REGISTRY, create
from detectors.profile.backbone import Backbone
from detectors.profile.document import document_of
from detectors.profile.files import MANIFEST
from detectors.profile.mix import Mix
from detectors.profile.pooling import averaged
from detectors.profile.scorer import Scorer
from detectors.profile.spec import BackboneSpec
from tests.pictures import draw, pictures

CPU, META = torch.device("cpu"), torch.device("meta")
SPEC = replace(BackboneSpec.embedded(), input_px=32)
SMALL: dict[str, dict[str, int]] = {
    name: {"width": 16, "blocks": 1, "epochs": 1} for name in REGISTRY if name.startswith("dlsr-")
} | {"dlsr": {"width": 16}}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its streams and graphs")


class OnlyOn(TorchDispatchMode):
    """Refuses every operation that takes or gives a tensor of another device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.operations = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.operations += 1
        for each in tree_leaves((args, kwargs, given)):
            if isinstance(each, Tensor) and each.device.type != self.device.type:
                raise AssertionError(f"{func} on {each.device}")
        return given


@cache
def learned(grid: int) -> Tensor:
    """(60, D) features of the embedded backbone on a grid, drawn: shapes are what counts here."""
    layers = Backbone(replace(SPEC, grid=grid), "cpu").layers
    return torch.rand(60, sum(layers), generator=torch.Generator().manual_seed(1))


def scorer_on_meta(detector: Detector, grid: int = 1) -> Scorer:
    backbone = Backbone(replace(SPEC, grid=grid), "meta")
    mix = Mix(backbone.channels).fit(averaged(learned(grid), backbone.channels, grid))
    return Scorer(backbone, detector, mix)


def pixels_on(device: torch.device, count: int = 3) -> Tensor:
    return torch.zeros((count, 32, 32, 3), dtype=torch.uint8, device=device)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "grid"), [*((name, 1) for name in sorted(REGISTRY)), ("mahalanobis-ridge", 4)])
def test_from_pixels_to_signals_nothing_is_asked_of_the_host_and_nothing_comes_from_it(
    name: str, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.methods.diffusion.MIN_STEPS", 10)  # how well it learns does not count here
    layers = Backbone(replace(SPEC, grid=grid), "cpu").layers
    scorer = scorer_on_meta(create(name, layers, **SMALL.get(name, {})).fit(learned(grid)), grid)
    scorer.signals(pixels_on(META))  # moves what was learned to the device, once
    with OnlyOn(META) as watch, torch.inference_mode():
        signals = scorer.signals(pixels_on(META))
    assert watch.operations > 50
    assert (signals.device, signals.dtype, len(signals)) == (META, torch.float64, 3)
    assert signals.shape[1] in {1 + 8, 1 + 4 + 8}  # score, layers, coordinates of the mix


class AsksForAValue(LearnedTensors):
    def fit(self, features: Tensor) -> AsksForAValue:
        self.learned = {"mean": features.mean(dim=0)}
        return self

    def score(self, features: Tensor) -> Tensor:
        return features.sum(dim=1) * float(features.max())


class TakesFromTheHost(AsksForAValue):
    def score(self, features: Tensor) -> Tensor:
        return (features * torch.ones(features.shape[1]).to(features.device)).sum(dim=1)


@pytest.mark.parametrize("method", [AsksForAValue, TakesFromTheHost])
def test_a_detector_that_goes_to_the_host_in_between_is_found_out(method: type[AsksForAValue]) -> None:
    scorer = scorer_on_meta(method(Backbone(SPEC, "cpu").layers).fit(learned(1)))
    with pytest.raises((RuntimeError, AssertionError), match=r"meta|cpu"), OnlyOn(META):
        scorer.signals(pixels_on(META))


# ------------------------------------------------------------------------------------------------ the pipeline


class Sums(torch.nn.Module):
    """Of the pixels of each image, and how many images came with it; has memory for `room` images."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.room = room
        self.batches: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(pixels)}")
        return pixels.double().sum(dim=(1, 2, 3))[:, None]


def images(count: int, seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8))


def sums(some: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> list[float]:
    return [float(image.sum()) for image in some]


def test_batches_of_few_sizes_by_two_buffers_give_what_one_batch_gives() -> None:
    compute = Sums()
    pipeline = Pipeline(CPU, compute, sizes=(2, 4, 8))
    for count in (1, 2, 3, 8, 9, 21, 40):
        some = images(count, seed=count)
        assert pipeline(some).flatten().tolist() == sums(some)
        assert pipeline(np.stack(some)).flatten().tolist() == sums(some)
    assert set(compute.batches) == {2, 4, 8}
    compute.batches.clear()
    pipeline(images(21))
    assert compute.batches == [8, 8, 8]  # 5 are filled up


def test_up_go_pixels_and_down_come_results_alone() -> None:
    pipeline = Pipeline(CPU, Sums(), sizes=(2, 4))
    pipeline(images(5))
    assert pipeline.uploaded_bytes == (4 + 2) * 4 * 6 * 3  # one filled up
    assert pipeline.downloaded_bytes == 5 * 8


def test_on_a_cpu_a_call_is_one_batch_as_it_is() -> None:
    compute = Sums()
    pipeline = Pipeline(CPU, compute)
    assert pipeline(images(13)).flatten().tolist() == sums(images(13))
    assert compute.batches == [13]


@pytest.mark.parametrize(("sizes", "batches"), [((1, 2, 4, 8), [8, 4, 2, 2, 2, 2, 1]), ((), [9, 4, 2, 2, 2, 2, 1])])
def test_what_does_not_fit_is_halved_with_a_line_and_those_after_it_stay_small(
    sizes: tuple[int, ...], batches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    compute, now_s = Sums(room=3), [0.0]
    pipeline = Pipeline(CPU, compute, sizes, lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        assert pipeline(images(9)).flatten().tolist() == sums(images(9))
    assert compute.batches == batches
    first, last = caplog.messages
    assert first == f"cpu is out of memory for {batches[0]} images: batches of 4 from now on"
    assert last == "cpu is out of memory for 4 images: batches of 2 from now on"
    assert pipeline.halvings == 2
    compute.batches.clear()
    pipeline(images(4))
    assert compute.batches == [2, 2]
    compute.room, now_s[0] = 1000, RECOVERY_S + 1
    compute.batches.clear()
    pipeline(images(4))
    assert compute.batches == [4]


def test_no_room_for_one_image_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        Pipeline(CPU, Sums(room=0), sizes=(1, 2))(images(2))


def test_another_error_of_a_batch_leaves_the_buffers_usable() -> None:
    compute = Sums()
    pipeline = Pipeline(CPU, compute, sizes=(4,))
    with pytest.raises(ValueError, match="shape"):
        pipeline([*images(1), np.zeros((5, 6, 3), np.uint8)])
    assert pipeline(images(6)).flatten().tolist() == sums(images(6))


# ------------------------------------------------------------------------------------------------ profiles


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Path]:
    """A profile in bfloat16, and the folder where it is saved."""
    options = FitOptions("mahalanobis-ridge", replace(SPEC, precision="bfloat16"), "cpu", heat_maps=False)
    profile, folder = fit_profile(pictures(0, 200), options), tmp_path_factory.mktemp("half")
    profile.save(folder)
    return profile, folder


@pytest.fixture
def whole(profile_folder: Path) -> Profile:
    return load_profile(profile_folder, "cpu")


def some_images(count: int = 21) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(3)
    return [draw(rng, stripes=i % 2 == 0) for i in range(count)]


@pytest.mark.slow
def test_filled_batches_score_as_whole_ones(whole: Profile) -> None:
    prepared = [whole.prepare(image) for image in some_images()]
    expected = whole.score(prepared)
    whole.scorer.pipeline = Pipeline(CPU, whole.scorer.signals, sizes=(4, 8))
    found = whole.score(prepared)
    spread = np.ptp(expected.values, axis=0)
    assert np.all(np.abs(found.values - expected.values) <= 1e-4 * np.maximum(spread, 1e-9))
    assert (found.p_values == expected.p_values).mean() > 0.99
    signals = 8 * int(sum(whole.learned) + len(whole.mix_signals))
    assert whole.scorer.pipeline.downloaded_bytes == 21 * signals


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_scored_all_the_same(whole: Profile) -> None:
    expected = whole.score(some_images())
    signals = whole.scorer.signals

    def crowded(pixels: Tensor) -> Tensor:
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("crowded")
        return signals(pixels)

    whole.scorer.pipeline = Pipeline(CPU, crowded, sizes=(1, 2, 4, 8, 16))
    np.testing.assert_allclose(whole.score(some_images()).values, expected.values, rtol=1e-3, atol=1e-3)
    assert whole.scorer.pipeline.halvings == 2


@pytest.mark.slow
def test_a_profile_in_half_precision_scores_as_it_did_at_its_fit(half: tuple[Profile, Path]) -> None:
    fitted, folder = half
    loaded = load_profile(folder, "cpu", "auto")  # no engine but torch computes in bfloat16
    assert loaded.runs_by.startswith("torch (openvino is used in float32 only")
    before, after = (profile.score(some_images()) for profile in (fitted, loaded))
    assert np.array_equal(before.values, after.values)
    assert np.array_equal(before.p_values, after.p_values)
    in_full = fit_profile(pictures(0, 200), FitOptions("mahalanobis-ridge", SPEC, "cpu", heat_maps=False))
    assert not np.array_equal(in_full.score(some_images()).values, before.values)


@pytest.mark.slow
def test_it_is_not_scored_in_another_precision(half: tuple[Profile, Path], tmp_path: Path) -> None:
    fitted, folder = half
    with pytest.raises(ProfileError, match="openvino is used in float32 only"):
        load_profile(folder, "cpu", "openvino")
    fitted.save(tmp_path)
    document = json.loads((tmp_path / MANIFEST).read_text())
    assert document["version"] == 8
    document["backbone"]["precision"] = "float32"
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="its tensors are not those its manifest was written for"):
        load_profile(tmp_path, "cpu")


@pytest.mark.slow
def test_one_of_before_keeps_its_fingerprint(half: tuple[Profile, Path], tmp_path: Path) -> None:
    fitted, _ = half
    fitted.save(tmp_path)
    before = load_profile(tmp_path, "cpu")
    before.manifest["version"] = 5
    before.fingerprint = before.own_fingerprint()
    assert before.fingerprint != fitted.fingerprint
    before.save(tmp_path)
    again = load_profile(tmp_path, "cpu")
    assert (again.fingerprint, document_of(again)["version"]) == (before.fingerprint, 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: it is not missing")
def test_a_device_that_is_not_there_is_named(profile_folder: Path) -> None:
    for name in ("cuda", "cuda:7", "gpu", "xpu"):
        with pytest.raises(DeviceError, match=rf"^device '{name}' cannot be used on this machine: [A-Z]"):
            choose_device(name)
    with pytest.raises(DeviceError, match=r"^device 'cuda'"):
        load_profile(profile_folder, "cuda")
    assert choose_device("auto") == CPU


def test_a_gpu_computes_in_the_precision_of_the_profile_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, before = torch.device("cuda"), torch.backends.cudnn.allow_tf32
    with arithmetic(cuda, "float32"):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _emulated, supported=supported: supported)
        check_precision(cuda, "float32")
        check_precision(CPU, "bfloat16")
        if supported:
            check_precision(cuda, "bfloat16")
    with pytest.raises(DeviceError, match="'cuda' does not compute in bfloat16, in which this profile was fitted"):
        check_precision(cuda, "bfloat16")


@pytest.mark.slow
def test_cuda_graphs_need_cuda(whole: Profile) -> None:
    with pytest.raises(EngineError, match="cudagraphs needs a CUDA device, and the backbone is on cpu"):
        use_engine(whole, "cudagraphs")
    assert whole.score(some_images(2)).values.shape[0] == 2


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_cuda_scores_as_the_cpu_does_without_waiting_for_the_host(name: str, tmp_path: Path) -> None:
    options = FitOptions(name, SPEC, "cpu", detector_options=SMALL.get(name, {}), heat_maps=False)
    fit_profile(pictures(0, 200), options).save(tmp_path)
    here, there = (load_profile(tmp_path, device) for device in ("cpu", "cuda"))
    expected, prepared = here.score(some_images()), [here.prepare(image) for image in some_images()]
    found = there.score(prepared)
    spread = np.maximum(np.ptp(expected.values, axis=0), 1e-9)
    assert np.all(np.abs(found.values - expected.values) <= 1e-3 * spread)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there.scorer.signals(pixels_on(torch.device("cuda"), 8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graphs = CudaGraphs(there.scorer.signals, torch.device("cuda"))
    there.scorer.use(graphs)
    for _ in range(2):
        assert np.allclose(there.score(prepared).values, found.values, rtol=1e-5, atol=1e-6)
