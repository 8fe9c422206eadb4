"""What a calibration is worth: the levels and the faults that its size allows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monitor.config.loading import load_config
from monitor.core.buckets import BINS, IMAGES, Layout, bins, empty, reference_counts, usable_cuts
from monitor.core.types import Vector
from monitor.rules.calibration_worth import calibration_worth
from monitor.rules.rate import RateRule
from monitor.rules.registry import STANDARD_RULES
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.rows import initial
from monitor.rules.sequential.rule import SequentialRule

LAYOUT = Layout(("ood", "blur"), (180, 180), (False, True), (True, False), (1.0, 1.0))
DRIFT = SequentialRule(name="drift", kind="sequential", reference="fixed")
RATE = RateRule(name="rate", kind="rate", threshold=0.2)


def of_size(n: int) -> Layout:
    return replace(LAYOUT, calibration_sizes=(n, n))


def with_share_beyond(level: float, share: float, images: int = 1_000_000) -> Vector:
    """Counts of images of which that share lies beyond the cut of a level, and the others on its normal side."""
    vector = empty(LAYOUT)
    vector[int(bins(np.array([level]))[0])] = round(images * share)
    vector[0] = images - round(images * share)
    vector[IMAGES] = images
    return vector


def test_the_standard_rules_are_those_of_the_commented_default() -> None:
    shown = load_config(Path(__file__).parents[2] / "config.yaml", {}).rules
    as_shown = [rule.model_dump(exclude={"labels"}) for rule in shown if rule.reads_images]
    assert as_shown == [rule.model_dump(exclude={"labels"}) for rule in STANDARD_RULES]


def test_a_small_calibration_is_told_which_levels_it_lacks() -> None:
    first, drift, rate = calibration_worth(LAYOUT, STANDARD_RULES)
    assert first == (
        "calibrated on 180 images: the smallest usable level is 5 % (1 image in 20); "
        "2 % (1 image in 50) needs 69 more, 1 % (1 image in 100) needs 319 more"
    )
    assert drift.startswith("drift: at most one false alarm in 30 days")
    assert "with 320 more" in drift
    assert rate.startswith("many-unusual: a window of normal images breaches with a probability of at most 1 %")


def test_the_largest_calibration_lacks_nothing() -> None:
    lines = list(calibration_worth(of_size(100_000), STANDARD_RULES))
    assert lines[0] == "calibrated on 100,000 images: the smallest usable level is 0.2 % (1 image in 500)"
    assert not any(re.search(r"\d more", line) for line in lines)


def test_a_rule_that_cannot_judge_says_so_instead() -> None:
    _, drift, rate = calibration_worth(of_size(60), STANDARD_RULES)
    assert "sees faults" in drift
    assert rate.startswith(
        "many-unusual: cannot judge by this profile: rate: 60 calibration images of 'ood' are too few"
    )
    (line,) = (
        line
        for line in calibration_worth(LAYOUT, [DRIFT.model_copy(update={"signals": ("glare",)})])
        if "glare" in line
    )
    assert line.startswith("drift: cannot judge by this profile: no signal 'glare'")


@pytest.mark.parametrize("n", [180, 500, 2000])
def test_a_rate_rule_breaches_just_above_its_smallest_fault_and_not_below(n: int) -> None:
    layout, nominal = of_size(n), (n + 1) // 20 / (n + 1)
    for margin, breached in ((-0.005, False), (0.005, True)):
        rate = nominal + (RATE.smallest_fault(layout) + margin) * (1 - nominal)
        assert RATE.judge_window(layout, with_share_beyond(0.05, rate)).breached is breached


@pytest.mark.parametrize("n", [180, 499, 2499])
def test_the_sequential_rule_alarms_above_its_smallest_fault_and_not_below(n: int) -> None:
    layout, rule = of_size(n), DRIFT.statistic(10)
    # of normal images as many as in the calibration are in each bin; faulty ones are in the last that a cut ends
    normal = np.diff(np.concatenate([[0], reference_counts(layout, "ood")[::-1], [n + 1]]))[::-1] / (n + 1)
    last = len(usable_cuts(layout, "ood"))
    for margin, alarms in ((-0.003, False), (0.006, True)):
        fault = DRIFT.smallest_fault(layout) + margin
        shares = (1 - fault) * normal + fault * (np.arange(BINS) == last)
        vector = empty(layout)
        vector[:BINS] = np.round(1_000_000 * shares)
        vector[IMAGES] = vector[:BINS].sum()
        _, (verdict,) = advance(rule, layout, initial(rule, layout), 0, vector[None])
        assert verdict.breached is alarms


def test_more_calibration_images_let_smaller_faults_be_seen() -> None:
    for rule in STANDARD_RULES:
        found = [rule.smallest_fault(of_size(n)) for n in (180, 500, 1000, 2000, 5000, 10_000)]
        assert None not in found
        assert found == sorted(found, reverse=True)  # type: ignore[type-var]
