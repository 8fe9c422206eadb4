"""Verdicts of the sequential rule from its rows: evidence, share of drifted images, cause."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import LEVELS, Layout
from monitor.core.types import Verdict
from monitor.rules.bounds import Floats, anytime_interval
from monitor.rules.sequential.plan import BETS, CLEAR_BETS, UP, Plan, Sequential, State, plan_of

SEVERITY_RISK = 0.025
BLOCK = 2**15
"""Bets processed at a time: the temporary arrays fit the cache, and memory stays bounded."""


def verdicts(rule: Sequential, layout: Layout, state: State) -> list[Verdict]:
    """The verdict of each row; a pure function of the state.

    `value` and `bound` are the evidence for drift: ln R / ln A while watching (alarm at 1), one minus the evidence for
    the all-clear while firing (cleared at 0); `threshold` is 1. `severity` is the share of drifted images since the
    alarm, with an interval that holds at all times together with probability .975.
    """
    plan = plan_of(rule, layout)
    evidence = np.empty(len(state))
    for rows in blocks(plan, np.arange(len(state))):
        weighted = state["lr"][rows].astype(np.float64) + plan.log_weights
        evidence[rows] = log_sum_exp(weighted.reshape(len(rows), -1))
    watching = np.clip(evidence / np.log(rule.seconds_per_false_alarm), 0, 1)
    result: list[Verdict] = [
        Verdict(False, value, value, 1.0, images, f"evidence for drift at {value:.0%} of an alarm")
        for value, images in zip(watching.tolist(), state["since"].tolist(), strict=True)
    ]
    firing = np.flatnonzero(state["firing"])
    if len(firing):
        for row, verdict in zip(firing.tolist(), _firing_verdicts(rule, plan, state[firing]), strict=True):
            result[row] = verdict
    return result


def _firing_verdicts(rule: Sequential, plan: Plan, state: State) -> list[Verdict]:
    value = 1 - np.clip(clear_evidence(state) / np.log(rule.clear_images), 0, 1)
    shares = _severity(plan, state)
    found: list[Verdict] = []
    for i, (lower, estimate, upper) in enumerate(shares.tolist()):
        signal, cut = plan.cuts[state["cause"][i] // BETS]
        side = "more" if state["cause"][i] % BETS < len(UP) else "fewer"
        cause = f"{signal}: {side} images beyond the {100 * LEVELS[cut]:g} % cut than normal"
        # at the alarm itself no image has been counted since: the lower bound is 0
        sure = f"at least {lower:.0%} of images drifted (estimate {estimate:.0%})"
        summary = f"{sure if lower > 0 else f'about {estimate:.0%} of images drifted'}; {cause}"
        evidence = float(value[i])
        severity = (lower, estimate, upper)
        found.append(Verdict(True, evidence, evidence, 1.0, int(state["since"][i]), summary, severity, cause))
    return found


def _severity(plan: Plan, state: State) -> Floats:
    """(R, 3) share of drifted images since the alarm: lower bound, estimate, upper bound.

    Only images beyond the cut of the cause count: drifted images on its normal side are not seen. Before the first
    image after the alarm the estimate is that of the bets, and the interval is [0, 1].
    """
    row = np.arange(len(state))
    cut, up = state["cause"] // BETS, state["cause"] % BETS < len(UP)
    total, passed = state["since"] / plan.dependence[cut], state["since_passed"] / plan.dependence[cut]
    low, high = anytime_interval(passed, total, SEVERITY_RISK)
    ref_low, ref_high, nominal = state["lower"][row, cut], state["upper"][row, cut], plan.nominal[cut]
    rate = passed / np.maximum(total, 1e-9)
    rises = np.stack([_share(low, ref_high), _share(rate, nominal), _share(high, ref_low)], axis=1)
    falls = np.stack([1 - high / ref_low, 1 - rate / nominal, 1 - low / ref_high], axis=1)
    shares: Floats = np.clip(np.where(up[:, None], rises, falls), 0, 1)
    shares[:, 1] = np.where(total > 0, shares[:, 1], state["alarm_share"])
    return shares


def _share(rate: Floats, reference: Floats) -> Floats:
    return (rate - reference) / (1 - reference)


def clear_evidence(state: State) -> Floats:
    """(R,) ln of the reverse statistic; even weights."""
    return log_sum_exp(state["clear_lr"].astype(np.float64) - np.log(len(CLEAR_BETS)))


def blocks(plan: Plan, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """The rows in blocks of about BLOCK bets."""
    size = max(1, BLOCK // (len(plan.cuts) * BETS))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def log_sum_exp(x: Floats) -> Floats:
    """Over the last axis; -inf where all are."""
    top = x.max(axis=-1, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(x - safe).sum(axis=-1)) + safe[..., 0]
    return total
