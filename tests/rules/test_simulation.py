"""What a fault costs until the alarm, by the rules' own judgement of drawn images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from monitor.core.buckets import BINS, Layout, sum_vectors
from monitor.core.windows import Windows
from monitor.rules.rate import RateRule
from monitor.rules.registry import STANDARD_RULES
from monitor.rules.sequential.rule import SequentialRule
from monitor.rules.simulation import Delays, Scenario, Simulated, _RunningTotals, simulate

N = 999
LAYOUT = Layout(("ood", "blur"), (N, N), (False, True), (True, False), (1.0, 1.0))
UNIFORM = np.repeat((np.arange(N + 1)[:, None] + 1) / (N + 1), 2, axis=1)
"""Normal images: every p-value that the calibration can give, once."""
SHORT = Scenario(streams=4, before=500, within=1000)


def unusual(p: float, images: int = 50) -> NDArray[np.float64]:
    """Faulty images: the score of all of them has that p-value, the property is as of normal ones."""
    return np.stack([np.full(images, p), np.linspace(0.01, 1, images)], axis=1)


def standard(faults: dict[str, NDArray[np.float64]], scenario: Scenario) -> Simulated:
    return simulate(STANDARD_RULES, LAYOUT, (UNIFORM, faults), 10, scenario)


def test_a_larger_share_of_faulty_images_alarms_sooner_and_normal_streams_stay_calm() -> None:
    delays = {}
    for share in (0.05, 0.3, 1.0):
        found = standard({"hole": unusual(0.001)}, Scenario(share, streams=4, before=500, within=1000))
        delays[share] = found.faults["hole"]["drift"].quantile(0.5)
        assert found.false_alarms == {"drift": {}, "many-unusual": {}}
        assert found.images == 4 * 1500
    slow, middle, fast = delays[0.05], delays[0.3], delays[1.0]
    assert slow is not None
    assert middle is not None
    assert fast == 10  # the first bucket
    assert slow > middle > fast


def test_what_looks_normal_is_not_found_within_the_time() -> None:
    found = standard({"hidden": UNIFORM}, SHORT).faults["hidden"]
    for delays in (*found.values(), Delays.first([*found.values()])):
        assert np.isinf(delays.images).all()
        assert delays.quantile(0.5) is None


def test_a_window_rule_alarms_once_its_share_has_passed_the_threshold() -> None:
    rule = RateRule(name="r", kind="rate", window_s=100, threshold=0.2, min_images=50)
    found = simulate([rule], LAYOUT, (UNIFORM, {"hole": unusual(0.001)}), 10, Scenario(1.0, streams=4, before=500))
    # 100 images; for a lower bound above .2 some 33 of them must be beyond the cut, a few of them normal ones
    assert ((found.faults["hole"]["r"].images >= 30) & (found.faults["hole"]["r"].images <= 40)).all()


def test_for_delays_the_alarm() -> None:
    plain = SequentialRule(name="now", kind="sequential")
    waiting = plain.model_copy(update={"name": "later", "for_s": 60.0})
    found = simulate([plain, waiting], LAYOUT, (UNIFORM, {"hole": unusual(0.001)}), 10, SHORT).faults["hole"]
    np.testing.assert_array_equal(found["later"].images, found["now"].images + 60)


def test_streams_that_alarm_before_the_fault_do_not_count() -> None:
    found = simulate(
        [SequentialRule(name="drift", kind="sequential")],
        LAYOUT,
        (unusual(0.001), {"hole": unusual(0.001)}),
        10,
        SHORT,
    )
    assert found.faults["hole"]["drift"].early == SHORT.streams
    assert found.faults["hole"]["drift"].quantile(0.5) is None
    assert found.false_alarms["drift"] == {"ood: more images beyond the 0.5 % cut than normal": SHORT.streams}


def test_the_streams_of_a_fault_do_not_depend_on_other_faults() -> None:
    hole, other = {"hole": unusual(0.02)}, {"scratch": unusual(0.3)}
    alone, after = standard(hole, SHORT), standard({**other, **hole}, SHORT)
    np.testing.assert_array_equal(alone.faults["hole"]["drift"].images, after.faults["hole"]["drift"].images)


def test_quantiles_leave_out_early_streams_and_end_where_too_few_alarm() -> None:
    delays = Delays(np.array([np.nan, 40.0, np.inf, 10.0, 20.0]))
    assert (delays.early, delays.quantile(0.5), delays.quantile(0.75), delays.quantile(0.9)) == (1, 20, 40, None)
    assert Delays(np.array([np.nan])).quantile(0.5) is None
    first = Delays.first([delays, Delays(np.array([10.0, 50.0, np.inf, np.nan, 10.0]))])
    np.testing.assert_array_equal(first.images, [np.nan, 40.0, np.inf, np.nan, 10.0])


@pytest.mark.parametrize("reach_ms", [10_000, 30_000, 120_000])
def test_running_totals_are_the_sums_of_the_windows(reach_ms: int) -> None:
    rng = np.random.default_rng(0)
    plain, totals = Windows(reach_ms), _RunningTotals(10_000, reach_ms)
    for start_ms in range(0, 200_000, 10_000):
        counts = {"a": rng.integers(0, 9, LAYOUT.size).astype(np.uint32)}
        counts["a"][-1] = 0  # the longest run is not a sum
        for windows in (plain, totals):
            windows.add(start_ms, {"simulated": counts})
        after_ms = start_ms - reach_ms
        expected = plain.sum(LAYOUT, "simulated", "a", after_ms)
        np.testing.assert_array_equal(totals.sum(LAYOUT, "simulated", "a", after_ms), expected)
    assert sum_vectors([expected])[:BINS].sum() > 0
