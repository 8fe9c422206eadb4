"""A fit of stored features is the fit of the images themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import detectors
from detectors.images.decode import Limits
from detectors.images.reading import InputError, read_images
from detectors.images.tones import Tones
from detectors.profile.backbone import Backbone
from detectors.profile.choice import grids_of
from detectors.profile.spec import BackboneSpec
from monitor.cli.archive.cluster import Job, Worker
from monitor.cli.archive.features import StoredFeatures, keep_pictures
from monitor.cli.archive.reading import Naming
from monitor.cli.archive.results import Results
from monitor.cli.archive.shards import shards_of
from tests.archive.parts import drawn, folder_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of 211 usable images, two that are the same, and one that is none; and the features of all."""
    folder = tmp_path_factory.mktemp("features")
    files = drawn(12, 211)
    path = folder_of(folder / "in", {**files, "again.png": files["12-7.png"], "none.png": b"no image"})
    backbone = Backbone(BackboneSpec.embedded(), "cpu")
    grids = grids_of(backbone)
    spec = backbone.spec.to_json()
    facts = {"kind": "features", "spec": spec, "digest": backbone.digest, "grids": list(grids)}
    shards, results = shards_of([str(path)], shard_images=70), Results(str(folder / "out"))
    results.begin(facts, shards)
    worker = Worker(Job(results.uri, Naming(), "cpu", backbone=spec, grids=grids), threads=1)
    for number, shard in enumerate(shards[:-1]):
        worker.work(number, shard)
    with pytest.raises(InputError, match=r"not finished \(1 shards are missing\)"):
        StoredFeatures(results.uri)
    worker.work(len(shards) - 1, shards[-1])
    keep_pictures(results, shards, Naming(), backbone.preparer(Limits(), Tones()), lambda _: None)
    return path, results.uri


@pytest.mark.parametrize("detector", ["auto", "mahalanobis"])
def test_the_profile_is_that_of_the_images_in_the_same_order(
    stored: tuple[Path, str], tmp_path: Path, detector: str
) -> None:
    path, uri = stored
    features = StoredFeatures(uri)
    options = detectors.FitOptions(detector=detector, device="cpu")
    detectors.fit_profile(read_images([path]), options).save(tmp_path / "images")
    detectors.fit_profile(features, dataclasses.replace(options, backbone=features.spec)).save(tmp_path / "features")
    names = sorted(file.relative_to(tmp_path / "images") for file in (tmp_path / "images").rglob("*") if file.is_file())
    assert {"profile.safetensors", "reference.safetensors", "places.safetensors"} <= set(map(str, names))
    for name in names:
        one, other = (tmp_path / side / name for side in ("images", "features"))
        if name.suffix != ".json":
            assert content(one) == content(other), name
    one, other = (json.loads((tmp_path / side / "profile.json").read_text()) for side in ("images", "features"))
    for facts in (one, other):
        for measured in ("fitted_at", "seconds", "seconds_reading", "peak_memory_mib"):
            facts.pop(measured)
    assert one == other
    assert (one["images"]["duplicates"], one["images"]["broken"]) == (1, 1)


def content(path: Path) -> object:
    """Of a file; the header of safetensors names its parts in any order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def test_other_features_are_refused(stored: tuple[Path, str]) -> None:
    spec = BackboneSpec("resnet10t", weights="random", input_px=64)
    with pytest.raises(InputError, match="of another backbone"):
        detectors.fit_profile(StoredFeatures(stored[1]), detectors.FitOptions(detector="knn", backbone=spec))
