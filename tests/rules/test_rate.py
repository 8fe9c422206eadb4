from typing import Any

import numpy as np
import pytest

from detectors.deferred import Deferred
from monitor.core import buckets
from monitor.core.buckets import Layout
from monitor.core.types import Vector
from monitor.rules.rate import RateRule
from tests.vectors import fill

stats = Deferred("scipy.stats")


def rate(**keys: Any) -> RateRule:
    return RateRule(name="ood", kind="rate", **keys)


def layout_of(n: int = 1999, dependence: float = 1.0) -> Layout:
    return Layout(("ood",), (n,), (False,), (True,), (dependence,))


def window_of(layout: Layout, total: int, passed: int) -> Vector:
    p = np.full((total, 1), 0.9)
    p[:passed] = 0.03
    return fill(layout, p)


def test_too_few_images_give_no_verdict() -> None:
    layout = layout_of()
    verdict = rate(min_images=100).judge_window(layout, window_of(layout, 99, 99))
    assert verdict.breached is None
    assert "too few" in verdict.summary
    assert rate().judge_window(layout, buckets.empty(layout)).breached is None


def test_a_clear_excess_breaches_and_names_the_cut() -> None:
    layout = layout_of()
    verdict = rate(threshold=0.10).judge_window(layout, window_of(layout, 1000, 300))
    assert verdict.breached
    assert 0.10 < verdict.bound < verdict.value == 0.3
    assert verdict.cause == "ood: more images beyond the 5 % cut than normal"
    assert verdict.severity is not None
    lower, estimate, upper = verdict.severity
    assert lower < estimate < upper
    assert estimate == pytest.approx((0.3 - 0.05) / 0.95)


def test_an_excess_that_chance_explains_does_not_breach() -> None:
    layout = layout_of()
    assert rate(threshold=0.10).judge_window(layout, window_of(layout, 100, 15)).breached is False
    severity = rate(threshold=0.10).judge_window(layout, window_of(layout, 1000, 50)).severity
    assert severity is not None
    assert severity[0] == 0


def test_a_small_calibration_set_makes_the_rule_more_careful() -> None:
    small, large = layout_of(n=199), layout_of(n=100_000)
    rule = rate(threshold=0.10)
    assert rule.judge_window(small, window_of(small, 2000, 270)).breached is False
    assert rule.judge_window(large, window_of(large, 2000, 270)).breached is True


def test_dependent_images_make_the_rule_more_careful() -> None:
    free, bound = layout_of(), layout_of(dependence=8.0)
    assert (
        rate().judge_window(bound, window_of(bound, 500, 90)).bound
        < rate().judge_window(free, window_of(free, 500, 90)).bound
    )


def test_a_level_that_the_calibration_set_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="too few for level"):
        rate(level=0.005, threshold=0.05).check(layout_of(n=500))
    with pytest.raises(ValueError, match="level must be one of"):
        rate(level=0.03).check_numbers(10)
    with pytest.raises(KeyError, match="no signal"):
        rate(signal="layer9").check(layout_of())


@pytest.mark.parametrize("n", [199, 1999])
def test_in_distribution_windows_breach_at_most_as_often_as_promised(n: int) -> None:
    """The guarantee itself, at its hardest threshold (the level): exact risk, averaged over calibration sets."""
    layout = layout_of(n)
    rule = rate(threshold=(n + 1) // 20 / (n + 1), confidence=0.9)
    total = 400
    breached = [bool(rule.judge_window(layout, window_of(layout, total, c)).breached) for c in range(total // 3)]
    first = breached.index(True)
    assert all(breached[first:])
    k = (n + 1) // 20
    rates = stats.beta(k, n + 1 - k).ppf((np.arange(2000) + 0.5) / 2000)
    assert stats.binom.sf(first - 1, total, rates).mean() <= 0.1
