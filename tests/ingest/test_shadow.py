"""A profile in shadow scores the same images: counted apart, judged by no rule, and compared. A real Redis stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from detectors.profile.files import ProfileError
from detectors.versions.journal import State
from detectors.versions.store import ProfileStore
from monitor.__main__ import main
from monitor.core.buckets import IMAGES
from monitor.core.shadow import shadow_of
from monitor.ingest.scoring import halving
from monitor.telemetry import metrics
from tests.e2e.running import wait_for
from tests.faults.recount import CUTS, p_values, profile_of
from tests.ingest.test_watch import BAD_EVERY, VALUES, Running, versions
from tests.pictures import encoded, pictures

__all__ = ["versions"]

STRANGE = [encoded(image) for _, image in pictures(12, 40, stripes=True)]


@pytest.fixture
def make(
    request: pytest.FixtureRequest, redis_server: Any, versions: list[Path], tmp_path: Path
) -> Iterator[Callable[[str], Running]]:
    """Starts one whose stream cam-1 is scored in shadow too, by that version."""
    store, made = ProfileStore(str(tmp_path / "store")), []
    for folder in versions[:2]:
        store.add(folder)
    store.promote("1")

    def start(shadow: str) -> Running:
        name = f"shadow-{request.node.name[:40]}"
        made.append(Running(name, redis_server.url, tmp_path / "store", tmp_path / "log.jsonl", shadow))
        return made[-1]

    yield start
    for running in made:
        running.end()


def counts(running: Running, fingerprint: str) -> dict[tuple[int, str], NDArray[np.uint32]]:
    """{(bucket, stream): vector}, where there are images."""
    found = running.store.counts.buckets(running.partitions, fingerprint, 0, 2**52)
    return {(start, s): v for start, streams in found.items() for s, v in streams.items() if v[IMAGES]}


def test_a_shadow_counts_what_it_would_have_counted_and_totals_count_once(
    make: Callable[[str], Running], versions: list[Path]
) -> None:
    running = make("2")
    (judging,), second = running.serving.profiles.fingerprints, profile_of(versions[1])
    running.send(150)
    running.send(60, STRANGE)
    wait_for("all of them", lambda: running.counted() == 210)
    numbers = [i for i in range(210) if i % 3 == 1 and i % BAD_EVERY != 7]
    rows = [row for row in map(json.loads, running.path.read_text().splitlines()) if row["stream"] == "cam-1"]
    bins = np.zeros((len(second.signals), len(CUTS) + 1), dtype=int)
    for i, row in zip(numbers, rows, strict=True):
        found = p_values(versions[1], (VALUES if i < 150 else STRANGE)[i % 40], row["id"].encode())
        assert found is not None
        for signal, p in enumerate(found[0]):
            bins[signal, sum(p <= cut * (1 + 5e-7) for cut in CUTS)] += 1
    shadow = counts(running, shadow_of(second.fingerprint))
    assert {stream for _, stream in shadow} == {"cam-1"}
    total = np.sum(list(shadow.values()), axis=0)
    assert total[: bins.size].tolist() == bins.ravel().tolist()
    assert total[bins.size :].tolist() == [len(numbers), 0, 0, 0, 0, 0]
    totals = running.store.counts.totals(running.partitions)
    assert sum(t.applied for t in totals.values()) == sum(i % BAD_EVERY != 7 for i in range(210))
    assert list(running.store.catalog.layouts()) == [judging]  # whoever judges does not know it
    assert list(running.store.catalog.shadows()) == [shadow_of(second.fingerprint)]
    assert running.store.catalog.in_use(60_000) == {judging, second.fingerprint}


def test_a_profile_is_not_in_shadow_of_itself(make: Callable[[str], Running]) -> None:
    running = make("1")
    running.send(30)
    wait_for("all of them", lambda: running.counted() == 30)
    assert not counts(running, shadow_of(running.serving.profiles.fingerprints[0]))


def test_a_version_is_in_shadow_until_it_is_active_and_compared_meanwhile(
    make: Callable[[str], Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ProfileStore(str(tmp_path / "store"))
    running = make("shadow")
    running.send(60)
    wait_for("the first", lambda: running.counted() == 60)
    assert not running.store.catalog.shadows()
    first, second = (version.fingerprint for version in store.journal().versions)
    assert main(["profile", "shadow", store.root, "2", "--reason", "new lamps"]) == 0
    assert [version.state for version in store.journal().versions] == [State.ACTIVE, State.SHADOW]
    running.watch.look()
    assert running.serving.profiles.fingerprints == [first]
    running.send(300)
    running.send(300, STRANGE)
    wait_for("all of them", lambda: running.counted() == 660)
    judged, shadow = counts(running, first), counts(running, shadow_of(second))
    assert sum(found[IMAGES] for found in shadow.values()) == sum(i % 3 == 1 and i % 25 != 7 for i in range(60, 660))
    assert shadow.keys() <= judged.keys()

    config = tmp_path / "config.yaml"
    settings = running.settings
    rules = [{"name": "rate", "kind": "rate", "min_images": 20, "window_s": 20}]
    redis = {"url": settings.redis.url.get_secret_value()}
    config.write_text(yaml.safe_dump({"monitor": settings.monitor, "redis": redis, "rules": rules}))
    capsys.readouterr()
    assert main(["profile", "compare", "-c", str(config), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    sides = found["streams"]["cam-1"]
    assert found["shadow"] == shadow_of(second)
    assert 0.3 < sides["judging"]["ood_share"] < 0.8
    assert 0.3 < sides["shadow"]["ood_share"] < 0.8
    assert {d["data"]["stream"] for side in ("judging", "shadow") for d in found["alerts"][side]} == {"cam-1"}
    apart = [abs(np.log(d["p_value"] / d["shadow_p_value"])) for d in found["disagreements"]]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 0
    assert main(["profile", "compare", "-c", str(config)]) == 0
    assert "Images on which they disagree most" in capsys.readouterr().out

    store.promote("2")
    running.watch.look()
    assert [version.state for version in store.journal().versions] == [State.CANDIDATE, State.ACTIVE]
    running.send(30)
    wait_for("all of them", lambda: running.counted() == 690)
    assert {key: v.tolist() for key, v in counts(running, shadow_of(second)).items()} == {
        key: v.tolist() for key, v in shadow.items()
    }
    with pytest.raises(ProfileError, match="version 2 is active"):
        store.shadow("2")


def test_a_shadow_that_fails_costs_no_image(make: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the shadow is broken")

    monkeypatch.setattr(halving, "p_values_beside", fail)
    before = metrics.REGISTRY.get_sample_value("layerwatch_shadow_failures_total") or 0.0
    running = make("2")
    running.send(60)
    wait_for("all of them", lambda: running.counted() == 60)
    assert (metrics.REGISTRY.get_sample_value("layerwatch_shadow_failures_total") or 0.0) > before
