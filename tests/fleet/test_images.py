"""What is shown of a mix that moved, on a real Redis and with the examples of a real profile."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from detectors import Profile, load_profile
from detectors.profile.examples import AT_EACH_END, load_examples
from monitor.core.alert_document import MovedSignal, Triage
from monitor.core.buckets import Layout
from monitor.core.types import Exemplar
from monitor.fleet.evidence import StreamEvidence
from monitor.fleet.images import JPEG, shift_of_the_mix
from monitor.ingest.scoring.profiles import layout_of
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.pictures import draw


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), uuid.uuid4().hex)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def profile(profile_folder: Path) -> Profile:
    return load_profile(profile_folder, device="cpu")


def moved(signal: str, bound: float = 0.1, direction: str = "low", mix: bool = True) -> MovedSignal:
    return MovedSignal(signal, not mix, 0.2, bound, "low" if direction == "low" else "high", (10,) * 9, mix)


def evidence(*signals: MovedSignal, triage: Triage | None = "mix", causes: tuple[str, ...] = ()) -> StreamEvidence:
    return StreamEvidence(300, signals, causes, triage)


def sample_of(layout: Layout, p_values: list[float]) -> list[Exemplar]:
    """Images whose p-value of mix2 is as given, and .5 of all else."""
    place = layout.index("mix2")
    rows = np.full((len(p_values), len(layout.signals)), 0.5)
    rows[:, place] = p_values
    return [
        Exemplar(f"images/0/{p}", "cam", 1000, 0, 0.5, tuple(row.tolist()), b"jpeg", "fp")
        for p, row in zip(p_values, rows, strict=True)
    ]


def test_the_reference_at_both_ends_and_the_stream_between_them(store: Store, profile: Profile) -> None:
    layout = layout_of(profile)
    store.catalog.put_examples("fp", profile.examples)
    found = shift_of_the_mix(
        store,
        evidence(moved("mix1"), moved("mix2"), causes=("mix2",)),
        sample_of(layout, [0.2, 0.9, 0.01]),
        layout,
        "fp",
    )
    assert found
    assert (found.signal, found.towards) == ("mix2", "high"), (
        "the signal that raised the alert, though another moved more"
    )
    assert [image.id for image in found.images] == ["images/0/0.9", "images/0/0.2", "images/0/0.01"]
    for end, pictures in (("low", found.low), ("high", found.high)):
        expected = [profile.examples[f"mix2-{end}-{i}"] for i in range(1, AT_EACH_END + 1)]
        assert [base64.b64decode(picture.removeprefix(JPEG)) for picture in pictures] == expected


def test_the_low_end_grows_where_fewer_images_lie_beyond_the_cuts(store: Store, profile: Profile) -> None:
    found = shift_of_the_mix(store, evidence(moved("mix1", direction="high")), [], layout_of(profile), "fp")
    assert found
    assert found.towards == "low"
    assert found.images == []
    assert found.low == found.high == [], "a profile without examples, or from before there were any"


@pytest.mark.parametrize(
    "seen",
    [
        evidence(moved("mix1", bound=0.0)),
        evidence(moved("noise", mix=False), moved("mix1"), triage="sensor"),
        evidence(triage=None),
    ],
)
def test_nothing_is_said_where_the_mix_is_not_what_changed(
    store: Store, profile: Profile, seen: StreamEvidence
) -> None:
    assert shift_of_the_mix(store, seen, [], layout_of(profile), "fp") is None


def test_examples_are_written_once_again_where_redis_lost_some_and_removed_with_their_folder(store: Store) -> None:
    examples = {f"mix1-low-{i}": b"%d" % i for i in range(3)}
    kept = store._monitor_keys.texts("examples", "fp")
    store.catalog.put_examples("fp", examples)
    before = kept.all()
    kept.put("mix1-low-0", "as it is")
    store.catalog.put_examples("fp", examples)
    assert kept.all() == before | {"mix1-low-0": "as it is"}, "they are offered every few seconds"
    kept.remove("mix1-low-1")
    store.catalog.put_examples("fp", examples)
    assert kept.all() == before
    store.catalog.put_examples("fp", {})
    assert kept.all() == {}


def test_examples_lie_at_the_ends_of_their_coordinate(profile: Profile, profile_folder: Path) -> None:
    assert profile.examples == load_examples(profile_folder / "examples")
    assert len(profile.examples) == 2 * AT_EACH_END * len(profile.mix_signals)
    pictures = {name: np.asarray(Image.open(io.BytesIO(picture))) for name, picture in profile.examples.items()}
    scores = profile.score(list(pictures.values())).p_values
    for signal in profile.mix_signals[:3]:
        column = dict(zip(pictures, scores[:, profile.signals.index(signal)], strict=True))
        low, high = ([p for name, p in column.items() if name.startswith(f"{signal}-{end}")] for end in ("low", "high"))
        assert min(low) > 0.5 > max(high), f"{signal}: p counts from the high end"


def test_a_profile_whose_examples_were_deleted_loads_and_scores(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    for path in (tmp_path / "examples").iterdir():
        path.unlink()
    (tmp_path / "examples").rmdir()
    loaded = load_profile(tmp_path, device="cpu")
    assert loaded.examples == {}
    image = draw(np.random.default_rng(0))
    assert np.array_equal(loaded.score([image]).p_values, profile.score([image]).p_values)
