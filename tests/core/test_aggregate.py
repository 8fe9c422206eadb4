"""The worst images are so by content or as pictures; typical ones come soon, ever fewer, however the log is cut."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detectors.images.prepare import Prepared, Preparer
from monitor.core import kept_images
from monitor.core.aggregate import Aggregation, Judged, aggregate
from monitor.core.buckets import Layout
from monitor.core.kept_images import SAMPLED, KeptImages, KeptWorst, hour_of
from monitor.core.settings import BucketSettings
from monitor.core.types import Delta, Exemplar, Partition, Sampled, StreamFacts

LAYOUT = Layout(("ood",), (99,), (False,), (True,), (1.0,))
START_MS = 1_760_000_000_000
HOW = Aggregation(BucketSettings(), {"fp": LAYOUT}, lambda _: "fp", 12, lambda _: b"jpeg")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    return Preparer(8)(held.getvalue())


def judged(prepared: Prepared, second: int, p_value: float, stream: str = "cam") -> list[Judged]:
    at_ms = START_MS + 1000 * second
    return [Judged(f"{stream}/{second}", stream, at_ms, "fp", np.array([p_value]), prepared)]


def counted(records: list[list[Judged]], facts: Mapping[str, StreamFacts], how: Aggregation = HOW) -> Delta:
    begin = Delta(Partition("images", 0), "t", 0, len(records), 0, {})
    return aggregate(records, begin, facts, START_MS + 10**9, how).delta


def test_the_worst_images_are_those_of_either_kind(prepared: Prepared) -> None:
    layout = Layout(
        ("ood", "layer1", "sharpness", "noise"), (999,) * 4, (False,) * 4, (True, True, False, False), (1.0,) * 4
    )
    how = Aggregation(BucketSettings(), {"fp": layout}, lambda _: "fp", 2)
    rows = {
        "normal": (0.5, 0.5, 0.5, 0.5),
        "strange": (0.004, 0.001, 0.4, 0.4),
        "blurred": (0.6, 0.6, 0.001, 0.3),
        "stranger layer": (0.4, 0.001, 0.4, 0.4),  # what layers say is in the score
        "rather dark": (0.5, 0.5, 0.3, 0.02),
    }
    images = [
        [Judged(name, "cam", START_MS, "fp", np.array(p_values), replace(prepared, digest=name.encode()))]
        for name, p_values in rows.items()
    ]
    worst = counted(images, {}, how).exemplars
    assert [(image.id, image.p_value) for image in worst] == [("blurred", 0.004), ("strange", 0.008)]


def test_equal_p_values_are_ordered_by_how_far_the_scores_lie_beyond_the_calibration(prepared: Prepared) -> None:
    far = {"near": 0.1, "farthest": 7.0, "far": 2.5}
    images = [
        [Judged(name, "cam", START_MS, "fp", np.array([0.002]), replace(prepared, digest=name.encode()), beyond)]
        for name, beyond in far.items()
    ]
    delta = counted(images, {})
    assert [image.id for image in delta.exemplars] == ["farthest", "far", "near"]
    assert [image.id for image in delta.worst["fp", START_MS, "cam"]] == ["farthest", "far", "near"]


def test_repeats_of_one_image_are_kept_once_per_bucket(prepared: Prepared) -> None:
    delta = counted([judged(prepared, second, 0.002) for second in range(20)], {})
    assert [image.id for image in delta.exemplars] == ["cam/0", "cam/10"]


def test_batches_of_any_size_name_the_same_worst_images_of_a_bucket(prepared: Prepared) -> None:
    """A batch of several buckets keeps the worst of each, not the worst of all."""
    rng = np.random.default_rng(0)
    images = [judged(replace(prepared, digest=b"%d" % i), i, float(rng.uniform(0.001, 0.05))) for i in range(60)]
    how = Aggregation(BucketSettings(), HOW.layouts, HOW.fingerprint_of, 3)
    worst = counted(images, {}, how).worst
    assert {start for _, start, _ in worst} == {START_MS + 10_000 * i for i in range(6)}
    assert {len(kept) for kept in worst.values()} == {3}


def test_what_the_store_would_drop_is_not_made_and_what_it_keeps_is_the_same(prepared: Prepared) -> None:
    rng = np.random.default_rng(2)
    images = [judged(replace(prepared, digest=b"%d" % i), 7 * i, float(rng.uniform(0.001, 0.05))) for i in range(1500)]
    most, seen = 3, KeptWorst(3)
    how = Aggregation(BucketSettings(), HOW.layouts, HOW.fingerprint_of, most, lambda _: b"jpeg")
    all_of, made = list[Exemplar](), list[Exemplar]()
    for start in range(0, len(images), 10):
        batch = images[start : start + 10]
        begin = Delta(Partition("images", 0), "t", 0, len(batch), START_MS + 7000 * start, {})
        found = aggregate(batch, begin, {}, START_MS + 10**9, how, KeptImages(seen))
        assert [image.id for image in found.unusual] == [image.id for image in found.delta.exemplars]
        seen.add(found.delta.exemplars)
        made += found.delta.exemplars
        all_of += aggregate(batch, begin, {}, START_MS + 10**9, how).delta.exemplars

    def kept(given: list[Exemplar]) -> dict[int, set[str]]:
        by_hour: dict[int, list[Exemplar]] = {}
        for image in given:
            by_hour.setdefault(hour_of(image.event_time_ms), []).append(image)
        return {hour: {i.id for i in sorted(of, key=lambda i: i.rank)[:most]} for hour, of in by_hour.items()}

    assert kept(made) == kept(all_of)
    assert len(made) < len(all_of) / 5
    assert not any(KeptWorst(0).admits(image) for image in made)


def test_names_without_end_are_forgotten_and_what_is_forgotten_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_images, "MOST_STREAMS", 3)
    seen = KeptWorst(1)
    worst = [Exemplar("a", f"cam-{i}", START_MS, START_MS, 0.001, (), b"", "fp") for i in range(4)]
    seen.add(worst[:3])
    better = replace(worst[0], p_value=0.04)
    assert not seen.admits(better)
    seen.add(worst[:1])  # known: nothing is forgotten
    assert not seen.admits(better)
    seen.add(worst[3:])
    assert seen.admits(better)
    assert not seen.admits(replace(worst[3], p_value=0.04))


def test_the_longer_a_stream_runs_the_longer_until_its_next_typical_image(prepared: Prepared) -> None:
    found = counted([judged(prepared, second, 0.7) for second in range(400)], {})
    seconds = [int(image.id.partition("/")[2]) for image in found.typical]
    assert seconds == [0, 10, 30, 60, 100, 150, 210, 280, 360]
    assert found.facts["cam"].typical == 9
    old = StreamFacts(typical=10_000, typical_ms=START_MS)
    found = counted([judged(prepared, second, 0.7) for second in range(0, 7300, 100)], {"cam": old})
    assert [image.id for image in found.typical] == ["cam/3600", "cam/7200"]


def test_only_what_most_normal_images_exceed_is_typical(prepared: Prepared) -> None:
    records = [judged(prepared, 0, 0.04), judged(prepared, 1, 0.29), judged(prepared, 2, 0.3), judged(prepared, 3, 1.0)]
    found = counted(records, {})
    assert [(image.id, image.p_value, image.thumbnail) for image in found.typical] == [("cam/2", 0.3, b"jpeg")]
    assert [image.id for image in found.exemplars] == ["cam/0"]
    assert counted(records, {}, Aggregation(BucketSettings(), {"fp": LAYOUT}, lambda _: "fp", 0)).typical == []


@pytest.mark.parametrize("cut", [1, 7, 50])
def test_batches_of_any_size_keep_the_same_ones(prepared: Prepared, cut: int) -> None:
    p_values = np.random.default_rng(1).uniform(0, 1, 120)
    records = [judged(prepared, i, p, f"cam-{i % 3}") for i, p in enumerate(p_values)]
    whole = [image.id for image in counted(records, {}).typical]
    facts: dict[str, StreamFacts] = {}
    parts = []
    for begin in range(0, len(records), cut):
        found = counted(records[begin : begin + cut], facts)
        facts.update(found.facts)
        parts += [image.id for image in found.typical]
    assert parts == whole
    assert len(whole) > 9


def test_a_stream_that_was_silent_for_the_retention_begins_anew_whether_it_was_forgotten_or_not(
    prepared: Prepared,
) -> None:
    before = counted([judged(prepared, 0, 0.9)], {}).facts
    now_ms, retention_ms = START_MS + 10**9, 1000 * HOW.buckets.retention_s
    silent = {"cam": replace(before["cam"], seen_ms=now_ms - retention_ms - 1)}
    assert counted([judged(prepared, 1, 0.9)], before).facts["cam"].run == 2
    assert counted([judged(prepared, 1, 0.9)], silent).facts == counted([judged(prepared, 1, 0.9)], {}).facts


def test_the_sample_of_a_stream_is_random_and_of_its_last_minutes_whatever_the_batches(prepared: Prepared) -> None:
    images = [judged(replace(prepared, digest=b"%d" % i), i, 0.4) for i in range(3600)]
    kept = KeptImages()
    made = list[Sampled]()
    for start in range(0, len(images), 50):
        batch = images[start : start + 50]
        begin = Delta(Partition("images", 0), "t", 0, len(batch), START_MS + 1000 * start, {})
        delta = aggregate(batch, begin, {}, START_MS + 10**9, HOW, kept).delta
        kept.sample.add(delta.sample)
        made += delta.sample
    assert len(made) < 300, "thumbnails are made of few"
    at_once = counted(images, {}).sample
    assert sorted(made)[-SAMPLED:] == sorted(at_once)
    ages_s = [3600 - (image.event_time_ms - START_MS) / 1000 for _, image in at_once]
    assert 300 < sum(ages_s) / len(ages_s) < 1200, "ten minutes on average, give or take two standard errors and more"
    assert max(ages_s) > 900
    assert all(image.thumbnail == b"jpeg" for _, image in at_once)


def test_a_picture_that_a_camera_repeats_is_in_the_sample_once_a_bucket(prepared: Prepared) -> None:
    delta = counted([judged(prepared, second, 0.4) for second in range(20)], {})
    assert {image.id for _, image in delta.sample} == {"cam/0", "cam/10"}


def test_no_sample_is_kept_where_no_pictures_are(prepared: Prepared) -> None:
    how = replace(HOW, exemplars=0)
    assert counted([judged(prepared, 0, 0.4)], {}, how).sample == []


@pytest.mark.parametrize("digest", [0, 2**64 - 1])
def test_no_id_that_a_sender_may_choose_has_a_score_that_cannot_be_computed(digest: int) -> None:
    assert 0 < kept_images.uniform(digest) < 1
    assert math.isfinite(math.log(-math.log(kept_images.uniform(digest))))
