"""Verdicts of the sequential rule from its rows: evidence, share of drifted images, cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import LEVELS, Layout, exceedances, images
from monitor.core.types import Vector, Verdict, share_in_words
from monitor.rules.bounds import Floats, anytime_interval, drifted_share
from monitor.rules.sequential.ending import images_left, share_left
from monitor.rules.sequential.plan import BETS, UP, Plan, Sequential, plan_of
from monitor.rules.sequential.rows import State, bets_of

SEVERITY_RISK = 0.025
BLOCK = 2**15
"""Bets processed at a time: the temporary arrays fit the cache, and memory stays bounded."""


def verdicts(rule: Sequential, layout: Layout, state: State) -> list[Verdict]:
    """The verdict of each row; a pure function of the state.

    While watching, `value` and `bound` are the evidence for drift, ln R / ln A, and `threshold` is 1, that of an alarm.
    While firing they are the share of drifted images since the alarm and its lower bound, and `threshold` is the share
    below which the alert clears, half of that at the alarm. `severity` is the share with an interval that holds at all
    times together with probability .975.
    """
    plan = plan_of(rule, layout)
    found = np.ones(len(state))
    for rows in blocks(plan, np.flatnonzero(~state["firing"])):
        found[rows] = evidence(plan, state[rows])
    watching = np.clip(np.log(np.maximum(found, 1)) / np.log(rule.seconds_per_false_alarm), 0, 1)
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
    columns = zip(_severity(plan, state).tolist(), share_left(plan, state), images_left(rule, plan, state), strict=True)
    return [
        _drifting(plan, row, int(row["since"]), (lower, estimate, upper), (share, images))
        for row, ((lower, estimate, upper), share, images) in zip(state, columns, strict=True)
    ]


def _drifting(
    plan: Plan, row: np.void, count: int, severity: tuple[float, float, float], end: tuple[float, float]
) -> Verdict:
    """`end`: the share below which it clears, and the normal images until then."""
    signal, cut = plan.cuts[row["cause"] // BETS]
    side = "more" if row["cause"] % BETS < len(UP) else "fewer"
    cause = f"{signal}: {side} images beyond the {100 * LEVELS[cut]:g} % cut than normal"
    (lower, estimate, _), (share, images) = severity, end
    summary = f"{share_in_words(severity, cause)}; {cause}; clears after about {_round_up(images)} more normal images"
    return Verdict(True, estimate, lower, share, count, summary, severity, cause)


def _round_up(images: float) -> int:
    """To two digits: it is what normal images need on average."""
    step = 10 ** max(0, math.floor(math.log10(max(images, 1))) - 1)
    return int(max(1, math.ceil(images / step) * step))


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
    if plan.mix[cut]:
        share = abs(rate - normal)
    end = (float(share_left(plan, row)[0]), float(images_left(rule, plan, row)[0]))
    return _drifting(plan, row[0], total, (0.0, share, 1.0), end)


def cleared(plan: Plan, row: State, images: int) -> Verdict:
    """The verdict of a (1,) row that has just cleared, that many images after its alarm."""
    share = float(share_left(plan, row)[0])
    summary = f"no drift any more: less than {share:.0%} of the images drift, by {images} images since the alarm"
    return Verdict(False, 0.0, 0.0, share, images, summary)


def of_the_reference(verdict: Verdict) -> Verdict:
    """The verdict of a row that a bucket of images of the reference has left as it was."""
    return replace(verdict, summary=f"{verdict.summary}; most images are of the reference and say nothing new")


def _severity(plan: Plan, state: State) -> Floats:
    """(R, 3) share of drifted images since the alarm: lower bound, estimate, upper bound.

    Only images beyond the cut of the cause count: drifted images on its normal side are not seen. Of a mix it is the
    smallest share that must have changed places, the difference of the rates: where a kind of image has gone, all that
    are left are as they were. Before the first image after the alarm the estimate is that of the bets, and the interval
    is [0, 1].
    """
    row = np.arange(len(state))
    cut, up = state["cause"] // BETS, state["cause"] % BETS < len(UP)
    total, passed = state["since"] / plan.dependence[cut], state["since_passed"] / plan.dependence[cut]
    low, high = anytime_interval(passed, total, SEVERITY_RISK)
    ref_low, ref_high, nominal = state["lower"][row, cut], state["upper"][row, cut], plan.nominal[cut]
    rate = passed / np.maximum(total, 1e-9)
    rises = np.stack([_share(low, ref_high), _share(rate, nominal), _share(high, ref_low)], axis=1)
    falls = np.stack([1 - high / ref_low, 1 - rate / nominal, 1 - low / ref_high], axis=1)
    shares: Floats = np.where(up[:, None], rises, falls)
    moved = np.stack([low - ref_high, rate - nominal, high - ref_low], axis=1)
    moved = np.where(up[:, None], moved, -moved[:, ::-1])
    shares = np.clip(np.where(plan.mix[cut][:, None], moved, shares), 0, 1)
    before = np.where(plan.mix[cut], state["alarm_share"] * np.where(up, 1 - nominal, nominal), state["alarm_share"])
    shares[:, 1] = np.where(total > 0, shares[:, 1], before)
    return shares


def _share(rate: Floats, reference: Floats) -> Floats:
    return (rate - reference) / (1 - reference)


def evidence(plan: Plan, state: State) -> Floats:
    """(R,) the weighted sum of R over all bets."""
    total: Floats = (bets_of(state) * plan.in_a_row[1]).sum(axis=1).astype(np.float64)
    return total


def blocks(plan: Plan, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """The rows in blocks of about BLOCK bets."""
    size = max(1, BLOCK // plan.bets)
    return (rows[start : start + size] for start in range(0, len(rows), size))
