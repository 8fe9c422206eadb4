"""Verdicts of the sequential rule from its rows: evidence, share of drifted images, cause."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import LEVELS, Layout, exceedances, images
from monitor.core.types import Vector, Verdict, share_in_words
from monitor.rules.bounds import Floats, anytime_interval, drifted_share
from monitor.rules.sequential.plan import BETS, CLEAR_BETS, CLEAR_SHARE, UP, Plan, Sequential, State, plan_of

SEVERITY_RISK = 0.025
BLOCK = 2**15
"""Bets processed at a time: the temporary arrays fit the cache, and memory stays bounded."""


def verdicts(rule: Sequential, layout: Layout, state: State) -> list[Verdict]:
    """The verdict of each row; a pure function of the state.

    While watching, `value` and `bound` are the evidence for drift, ln R / ln A, and `threshold` is 1, that of an alarm.
    While firing they are the share of drifted images since the alarm and its lower bound, and `threshold` is the share
    below which the alert clears. `severity` is that share with an interval that holds at all times together with
    probability .975.
    """
    plan = plan_of(rule, layout)
    evidence = np.empty(len(state))
    for rows in blocks(plan, np.arange(len(state))):
        weighted = state["lr"][rows].astype(np.float64) + plan.log_weights
        evidence[rows] = log_sum_exp(weighted.reshape(len(rows), -1))
    watching = np.clip(evidence / np.log(rule.seconds_per_false_alarm), 0, 1)
    result: list[Verdict] = [
        Verdict(False, value, value, 1.0, count, f"no alarm; the evidence for drift is {value:.0%} of what raises one")
        for value, count in zip(watching.tolist(), state["since"].tolist(), strict=True)
    ]
    firing = np.flatnonzero(state["firing"])
    if len(firing):
        for row, verdict in zip(firing.tolist(), _firing_verdicts(rule, plan, state[firing]), strict=True):
            result[row] = verdict
    return result


def _firing_verdicts(rule: Sequential, plan: Plan, state: State) -> list[Verdict]:
    return [
        _drifting(rule, plan, row, int(row["since"]), (lower, estimate, upper))
        for row, (lower, estimate, upper) in zip(state, _severity(plan, state).tolist(), strict=True)
    ]


def _drifting(rule: Sequential, plan: Plan, row: np.void, count: int, severity: tuple[float, float, float]) -> Verdict:
    signal, cut = plan.cuts[row["cause"] // BETS]
    side = "more" if row["cause"] % BETS < len(UP) else "fewer"
    cause = f"{signal}: {side} images beyond the {100 * LEVELS[cut]:g} % cut than normal"
    lower, estimate, _ = severity
    summary = f"{share_in_words(severity)}; {cause}"
    return Verdict(True, estimate, lower, _clear_share(rule), count, summary, severity, cause)


def at_the_alarm(rule: Sequential, layout: Layout, row: State, window: Vector) -> Verdict:
    """The verdict of one row that has just begun to fire, by the images since the drift began.

    The estimate is theirs; the interval is [0, 1], since where they begin was chosen by what they show.

    Args:
        row: (1,) its state.
        window: (V,) counts from the bucket in which the drift began to the alarm's.
    """
    plan = plan_of(rule, layout)
    cut, up = int(row["cause"][0]) // BETS, row["cause"][0] % BETS < len(UP)
    signal, level = plan.cuts[cut]
    total, normal = images(window), float(plan.nominal[cut])
    rate = float(exceedances(layout, window, signal)[level]) / max(total, 1)
    share = drifted_share(rate, normal) if up else max(0.0, 1 - rate / normal)
    return _drifting(rule, plan, row[0], total, (0.0, share, 1.0))


def cleared(rule: Sequential, images: int) -> Verdict:
    """The verdict of a row that has just cleared, that many images after its alarm."""
    share = _clear_share(rule)
    summary = f"no drift any more: less than {share:.0%} of the images drift, by {images} images since the alarm"
    return Verdict(False, 0.0, 0.0, share, images, summary)


def _clear_share(rule: Sequential) -> float:
    return max(rule.pi_min, CLEAR_SHARE)


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
