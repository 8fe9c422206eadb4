from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from monitor.core import buckets
from monitor.core.buckets import DUPLICATES, IMAGES, LONGEST_RUN, REJECTED, Layout
from monitor.core.types import Vector, Verdict
from monitor.rules.rate import RateRule
from monitor.rules.rule import LastSeen, Rule
from monitor.rules.shift import ShiftRule, distance_bound
from monitor.rules.stream_health import FrozenRule, RejectedRule, SilenceRule
from tests.vectors import fill


def shift(**keys: Any) -> ShiftRule:
    return ShiftRule(name="moved", kind="shift", **keys)


def rejected(**keys: Any) -> RejectedRule:
    return RejectedRule(name="unreadable", kind="rejected", **keys)


def frozen(**keys: Any) -> FrozenRule:
    return FrozenRule(name="stuck", kind="frozen", **keys)


def layout_of(n: int = 1999, signals: tuple[str, ...] = ("ood",), dependence: float = 1.0) -> Layout:
    s = len(signals)
    return Layout(signals, (n,) * s, (False,) * s, (True,) * s, (dependence,) * s)


def own_calibration(rng: np.random.Generator, layout: Layout, sets: int, images: int) -> NDArray[np.uint32]:
    """(sets, V): windows of `images` ID images, each under a calibration set of its own."""
    k = buckets.reference_counts(layout, "ood")
    gaps = -np.diff(np.concatenate([[layout.calibration_sizes[0] + 1], k, [0]]))
    weights = rng.standard_gamma(gaps, size=(sets, buckets.BINS))
    vectors = np.zeros((sets, layout.size), dtype=np.uint32)
    vectors[:, : buckets.BINS] = rng.multinomial(images, weights / weights.sum(axis=1, keepdims=True))
    vectors[:, IMAGES] = images
    return vectors


# ------------------------------------------------------------------------------------------------ shift


@pytest.mark.parametrize("n", [99, 1999])
def test_in_distribution_the_sure_distance_is_zero_as_often_as_promised(n: int) -> None:
    layout = layout_of(n)
    windows = own_calibration(np.random.default_rng(n), layout, 400, 1000)
    assert np.mean([distance_bound(layout, w, "ood", 0.1)[0] > 0 for w in windows]) <= 0.1


@pytest.mark.parametrize(("low", "high"), [(1e-6, 0.002), (0.5, 1.0), (0.1, 0.2)])
def test_the_sure_distance_is_below_the_share_that_changed(low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    layout = layout_of()
    p = rng.uniform(1e-6, 1, (5000, 1))
    p[:1500] = rng.uniform(low, high, (1500, 1))
    bound, _ = distance_bound(layout, fill(layout, p), "ood", 0.01)
    assert 0.05 < bound <= 0.3


def test_shift_names_the_signal_and_the_p_values_that_crowd() -> None:
    rng = np.random.default_rng(1)
    layout = layout_of(signals=("ood", "layer1"))
    p = rng.uniform(1e-6, 1, (2000, 2))
    p[:800, 1] = 0.015
    verdict = shift(signals=("ood", "layer1"), effect=0.15).judge_window(layout, fill(layout, p))
    assert verdict.breached
    assert verdict.cause == "layer1: too many images with p-values from 0.01 to 0.02"
    assert 0.15 < verdict.bound <= verdict.value == pytest.approx(0.4, abs=0.03)


def test_shift_needs_enough_images_and_an_effect() -> None:
    rng = np.random.default_rng(2)
    layout = layout_of()
    assert shift().judge_window(layout, buckets.empty(layout)).breached is None
    p = rng.uniform(1e-6, 1, (20_000, 1))
    p[:1000] = 0.001  # 5 % moved: surely there, and surely less than the effect asked for
    verdict = shift(effect=0.15).judge_window(layout, fill(layout, p))
    assert verdict.breached is False
    assert verdict.bound > 0
    with pytest.raises(KeyError):
        shift(signals=("layer9",)).check(layout)


# ------------------------------------------------------------------------------------------------ quality


def window(**counts: int) -> tuple[Layout, Vector]:
    layout = layout_of()
    vector = buckets.empty(layout)
    for name, count in counts.items():
        vector[{"images": IMAGES, "rejected": REJECTED, "repeats": DUPLICATES, "run": LONGEST_RUN}[name]] = count
    return layout, vector


def test_undecodable_images_breach_when_chance_cannot_explain_them() -> None:
    assert rejected().judge_window(*window(images=70, rejected=30)).breached is True
    assert rejected().judge_window(*window(images=93, rejected=7)).breached is False
    severity = rejected().judge_window(*window(rejected=50)).severity
    assert severity is not None
    assert severity[1] == 1
    assert rejected().judge_window(*window(images=10, rejected=9)).breached is None


def test_a_stream_is_frozen_by_its_longest_run() -> None:
    assert frozen(run=10).judge_window(*window(images=40, repeats=9, run=10)).breached is True
    assert frozen(run=10).judge_window(*window(images=40, repeats=20, run=9)).breached is False
    assert frozen(run=10).judge_window(*window()).breached is None
    with pytest.raises(ValueError, match="at least 2"):
        frozen(run=1).check_numbers(10)


def test_silence_counts_only_time_in_which_the_monitor_read() -> None:
    rule = SilenceRule(name="silent", kind="silence", after_s=60)

    def verdict(seen_ms: int | None, now_ms: int, running_since_ms: int) -> Verdict:
        return rule.judge_clock(LastSeen({"cam-1": seen_ms}, now_ms, running_since_ms))["cam-1"]

    assert verdict(0, now_ms=60_001, running_since_ms=0).breached is True
    assert verdict(0, now_ms=60_000, running_since_ms=0).breached is False
    assert verdict(0, now_ms=500_000, running_since_ms=450_000).breached is False
    assert verdict(None, now_ms=500_000, running_since_ms=0).breached is None
    assert verdict(99, now_ms=50, running_since_ms=0).value == 0


@pytest.mark.parametrize(
    "rule",
    [
        RateRule(name="r", kind="rate", threshold=0.1),
        ShiftRule(name="s", kind="shift", effect=0.1, min_images=100),
        RejectedRule(name="x", kind="rejected"),
        FrozenRule(name="f", kind="frozen"),
    ],
    ids=lambda rule: rule.kind,
)
def test_no_window_that_breaches_is_left_out_by_the_quick_look(rule: Rule) -> None:
    rng = np.random.default_rng(0)
    layout = Layout(("ood",), (500,), (False,), (True,), (1.0,))
    vectors = []
    for _ in range(300):
        vector = fill(layout, np.maximum(rng.random((rng.integers(1, 800), 1)) ** rng.uniform(1, 2.5), 2e-3))
        vector[[REJECTED, LONGEST_RUN]] = rng.integers(0, 80), rng.integers(0, 20)
        vectors.append(vector)
    breached = np.array([bool(rule.judge_window(layout, vector).breached) for vector in vectors])
    suspected = rule.may_breach(layout, np.stack(vectors))
    assert not (breached & ~suspected).any()
    assert 20 < breached.sum() < 280
    assert suspected.sum() < 280
