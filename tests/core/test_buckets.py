import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from monitor.core import buckets
from monitor.core.buckets import DUPLICATES, IMAGES, LEVELS, LONGEST_RUN, Layout, counted_under
from monitor.core.types import Vector
from tests.vectors import fill


def layout_of(n: int = 1999, signals: tuple[str, ...] = ("ood", "brightness"), dependence: float = 1.0) -> Layout:
    s = len(signals)
    return Layout(
        signals, (n,) * s, tuple(x == "brightness" for x in signals), (True,) + (False,) * (s - 1), (dependence,) * s
    )


LAYOUT = layout_of()

vectors = st.lists(st.integers(0, 2**20), min_size=LAYOUT.size, max_size=LAYOUT.size).map(
    lambda counts: np.array(counts, dtype=np.uint32)
)


def test_a_p_value_equal_to_a_level_passes_its_cut_in_double_and_single_precision() -> None:
    for i, level in enumerate(LEVELS):
        assert buckets.bins(np.array([level]))[0] == i + 1
        assert buckets.bins(np.array([level], dtype=np.float32))[0] == i + 1


@pytest.mark.parametrize("n", [99, 499, 1999, 9999, 123_456, 1_000_000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_images_that_pass_a_cut_are_exactly_the_reference_count(n: int, dtype: DTypeLike) -> None:
    """All n + 1 possible ranks, once each: the floats must agree with the integers of reference_counts."""
    layout = Layout(("ood",), (n,), (False,), (True,), (1.0,))
    ranks = np.arange(1, n + 2)
    one_sided = fill(layout, (ranks / (n + 1)).astype(dtype)[:, None])
    assert buckets.exceedances(layout, one_sided, "ood").tolist() == buckets.reference_counts(layout, "ood").tolist()

    layout = Layout(("ood",), (n,), (True,), (True,), (1.0,))
    both_tails = np.minimum(1, 2 * np.minimum(ranks, n + 2 - ranks) / (n + 1))
    two_sided = fill(layout, both_tails.astype(dtype)[:, None])
    assert buckets.exceedances(layout, two_sided, "ood").tolist() == buckets.reference_counts(layout, "ood").tolist()


def test_reference_counts_are_the_published_ones() -> None:
    layout = layout_of(n=500)
    assert buckets.reference_counts(layout, "ood").tolist() == [250, 100, 50, 25, 10, 5, 2, 1]
    assert buckets.usable_cuts(layout, "ood").tolist() == [0, 1, 2, 3, 4, 5]
    assert buckets.reference_counts(layout, "brightness").tolist() == [250, 100, 50, 24, 10, 4, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, 0.0, -0.1, 1.1])
def test_a_bad_p_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        fill(LAYOUT, np.array([[0.5, bad]]))


def test_an_unknown_signal_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="brightness"):
        LAYOUT.index("sharpness")


def test_signals_are_selected_by_name_or_by_group_each_once() -> None:
    layout = Layout(("ood", "layer1", "contrast"), (9,) * 3, (False,) * 3, (True, True, False), (1.0,) * 3)
    assert layout.select(["*"]) == ("ood", "layer1", "contrast")
    assert layout.select(["learned"]) == ("ood", "layer1")
    assert layout.select(["contrast", "properties", "ood"]) == ("contrast", "ood")
    assert layout.select(["ood", "mix"]) == ("ood",)
    with pytest.raises(KeyError, match="no signal 'blur'"):
        layout.select(["ood", "blur"])
    four = Layout(
        (*layout.signals, "mix1"), (9,) * 4, (False,) * 4, (True, True, False, False), (1.0,) * 4, mix=("mix1",)
    )
    assert four.kinds == ("learned", "learned", "property", "mix")
    assert four.select(["*"]) == four.signals
    assert four.select(["learned", "properties"]) == layout.signals
    assert four.select(["mix"]) == ("mix1",)
    assert Layout.from_json(four.to_json()) == four


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(1e-6, 1), st.floats(1e-6, 1)), max_size=60))
def test_filling_groups_equals_filling_one_by_one(rows: list[tuple[int, float, float]]) -> None:
    p = np.array([row[1:] for row in rows]).reshape(-1, 2)
    group = np.array([row[0] for row in rows], dtype=np.intp)
    together = buckets.fill_groups(LAYOUT, p, group, 4)
    for k in range(4):
        assert together[k].tolist() == fill(LAYOUT, p[group == k]).tolist()
        assert together[k, IMAGES] == (group == k).sum()


@given(st.lists(vectors, min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(1, 5))
def test_vectors_add_up_in_any_order_and_grouping(parts: list[Vector], random: Random, cut: int) -> None:
    whole = buckets.sum_vectors(parts)
    shuffled = list(parts)
    random.shuffle(shuffled)
    groups = [shuffled[:cut], shuffled[cut:]]
    regrouped = buckets.sum_vectors([buckets.sum_vectors(g) for g in groups if g])
    assert whole.tolist() == regrouped.tolist()
    assert buckets.sum_vectors([whole, buckets.empty(LAYOUT)]).tolist() == whole.tolist()


def test_the_longest_run_merges_by_maximum_and_counts_by_addition() -> None:
    a, b = buckets.empty(LAYOUT), buckets.empty(LAYOUT)
    a[DUPLICATES], b[DUPLICATES] = 3, 4
    a[LONGEST_RUN], b[LONGEST_RUN] = 9, 5
    merged = buckets.sum_vectors([a, b])
    assert (merged[DUPLICATES], merged[LONGEST_RUN]) == (7, 9)
    assert (a[DUPLICATES], b[LONGEST_RUN]) == (3, 5)


def test_sums_saturate_instead_of_wrapping() -> None:
    full = np.full(LAYOUT.size, 2**32 - 1, dtype=np.uint32)
    assert (buckets.sum_vectors([full, full]) == 2**32 - 1).all()


def test_the_images_beyond_a_cut_are_those_at_or_below_its_level() -> None:
    p = np.array([[0.05, 1], [0.04, 1], [0.06, 1], [0.9, 1]])
    vector = fill(LAYOUT, p)
    many = buckets.exceedances(LAYOUT, np.stack([vector, buckets.empty(LAYOUT)]), "ood")
    assert buckets.images(vector) == 4
    assert many[0, buckets.cut_index(0.05)] == 2
    assert many[0, buckets.cut_index(0.1)] == 3
    assert not many[1].any()
    assert many[0].tolist() == buckets.exceedances(LAYOUT, vector, "ood").tolist()


def test_distance_is_about_the_share_of_changed_images_and_about_zero_without_change() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(1e-6, 1, (20_000, 2))
    p[:3000, 0] = 0.001
    vector = fill(LAYOUT, p)
    assert buckets.distance_from_uniform(LAYOUT, vector, "ood") == pytest.approx(0.15, abs=0.02)
    assert buckets.distance_from_uniform(LAYOUT, vector, "brightness") < 0.01
    assert buckets.distance_from_uniform(LAYOUT, buckets.empty(LAYOUT), "ood") == 0


@pytest.mark.parametrize("images", [20, 200, 2000])
def test_chance_alone_gives_no_distance_on_average(images: int) -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(1e-6, 1, (images * 300, 2))
    rows = buckets.fill_groups(LAYOUT, p, np.repeat(np.arange(300), images), 300)
    assert buckets.distance_from_uniform(LAYOUT, rows, "ood").mean() < 0.35 / np.sqrt(images)


def test_counts_cut_at_other_levels_have_another_fingerprint_and_say_their_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = Layout(("ood",), (500,), (False,), (True,), (1.0,))
    assert counted_under("fp") == "fp"
    assert "levels" not in layout.to_json()
    other = replace(layout, levels=(0.5, 0.1))
    assert Layout.from_json(other.to_json()) == other
    assert not other.adds_up_with(layout)
    monkeypatch.setattr("monitor.core.buckets.LEVELS", (0.5, 0.1))
    assert re.fullmatch("fp-[0-9a-f]{8}", counted_under("fp"))
