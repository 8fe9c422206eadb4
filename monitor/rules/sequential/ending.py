"""The end of a drift: a reverse statistic per cut that raised the alarm, against "it goes on at half of its strength".

The bets that won say which share of images drifts, cut by cut of the cause's signal: their mean, less their standard
deviation, since an alarm comes when chance makes the share look large. Cuts whose evidence is far below the best's say
nothing and are left out. For each of the others, with p the highest rate that normal can have (the lowest for drift
towards fewer images), `left` half of that share and r = p + (1 - p) left (p (1 - left) downward):

    E_l <- (E_l + m) * (p/r)^(c/D) * ((1-p)/(1-r))^((m-c)/D)       m images, c beyond the cut
    the alert clears when the mean of the E_l reaches `clear_images`

While the drift goes on at half of its strength or more, each E_l minus the images since the alarm is a supermartingale:
one false all-clear in `clear_images` images is expected at most. A rate well below r (less than about a quarter of the
strength is left) clears, so does a normal one, whatever normal rate below p the stream has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitor.rules.bounds import Floats
from monitor.rules.sequential.plan import BETS, DOWN, UP, Plan, Sequential
from monitor.rules.sequential.rows import CLEAR_SHARE, MOST, SLOTS, State

_FAR_BELOW = 6.0
"""An alarm needs ln R = 14 and more: a cut within 6 of the best is sure to drift, too."""
_LEFT = 0.5
"""With a third, an all-clear takes half as long again and is wrong half as often; benchmarks/alarm_ends.py."""


def begin(rule: Sequential, plan: Plan, state: State, log_r: tuple[Floats, Floats]) -> None:
    """Set what the end is judged by, from the bets of rows that alarm with this bucket.

    Args:
        log_r: (R, T, up bets) and (R, F, down bets) ln R of these rows.
    """
    state["left"], state["ended"] = 0, 0
    for i, row in enumerate(state):
        cut, bet = divmod(int(row["cause"]), BETS)
        cuts = np.flatnonzero(plan.first == plan.first[cut])
        if bet < len(UP):
            of_bets, shares = log_r[0][i, cuts], UP
        else:
            of_bets, shares = log_r[1][i, np.searchsorted(plan.falling, cuts)], 1 - DOWN
        best = of_bets.max(axis=1, keepdims=True)
        trust = np.exp(of_bets - best)
        trust /= trust.sum(axis=1, keepdims=True)
        share = (trust * shares).sum(axis=1)
        sd = np.sqrt((trust * (shares - share[:, None]) ** 2).sum(axis=1))
        tells = best[:, 0] >= best[cut - cuts[0]] - _FAR_BELOW
        row["left"][: len(cuts)] = np.where(tells, np.maximum(_LEFT * (share - sd), least(rule)), 0)


def least(rule: Sequential) -> float:
    """The smallest share that is told from none."""
    return max(rule.pi_min, CLEAR_SHARE)


def wait(rule: Sequential, plan: Plan, state: State, m: NDArray[np.int64], c: NDArray[np.int64]) -> State:
    """One bucket of firing rows; the baseline stays as it was.

    Args:
        m: (R,) images.
        c: (R, T) of them, beyond each cut.
    """
    cut = state["cause"] // BETS
    a, b = _log_ratios(rule, plan, state)
    beyond = np.take_along_axis(c, _cuts(plan, cut), axis=1)
    with np.errstate(over="ignore"):  # then it is MOST
        ended = (state["ended"] + m[:, None]) * np.exp(beyond * a + (m[:, None] - beyond) * b)
    state["ended"] = np.minimum(ended, MOST)
    state["since"] += m
    state["since_passed"] += c[np.arange(len(state)), cut]
    judged = state["left"] > 0
    clear = (state["ended"] * judged).sum(axis=1, dtype=np.float64) >= rule.clear_images * judged.sum(axis=1)
    state["firing"][clear] = False
    state["since"][clear] = 0
    return state


def share_left(plan: Plan, state: State) -> Floats:
    """(R,) of the cut of the cause: the alert clears when surely fewer images drift."""
    cut = state["cause"] // BETS
    left: Floats = state["left"][np.arange(len(state)), cut - plan.first[cut]].astype(np.float64)
    return left


def images_left(rule: Sequential, plan: Plan, state: State) -> Floats:
    """(R,) normal images until an alert clears, if they pass the cuts at the nominal rates."""
    a, b = _log_ratios(rule, plan, state)
    rate = plan.nominal[_cuts(plan, state["cause"] // BETS)]
    judged = state["left"] > 0
    # E grows by a factor of e^growth with each image, and by 1: E_n = (E_0 + 1/growth) e^(n growth) - 1/growth
    growth = np.where(judged, rate * a + (1 - rate) * b, 1)
    enough = rule.clear_images * judged.sum(axis=1, keepdims=True)
    images = np.log((enough * growth + 1) / (state["ended"].astype(np.float64) * growth + 1)) / growth
    soonest: Floats = np.where(judged, np.maximum(images, 0), np.inf).min(axis=1)
    return soonest


def _cuts(plan: Plan, cut: NDArray[np.integer]) -> NDArray[np.intp]:
    """(R, SLOTS) the cuts of the cause's signal; behind them others, for which `left` is 0."""
    cuts: NDArray[np.intp] = np.minimum(plan.first[cut][:, None] + np.arange(SLOTS), len(plan.cuts) - 1)
    return cuts


def _log_ratios(rule: Sequential, plan: Plan, state: State) -> tuple[Floats, Floats]:
    """(R, SLOTS) log likelihood ratios, normal to drifting, of an image beyond the cut and of any other, over D."""
    cuts = _cuts(plan, state["cause"] // BETS)
    up = (state["cause"] % BETS < len(UP))[:, None]
    upper, lower = (np.take_along_axis(state[name], cuts, axis=1) for name in ("upper", "lower"))
    left = state["left"].astype(np.float64)
    normal = np.where(up, 1 - (1 - upper) * (1 - rule.pi_min), lower * (1 - rule.pi_min))
    drifting = np.where(up, 1 - (1 - normal) * (1 - left), normal * (1 - left))
    d = plan.dependence[cuts]
    return np.log(normal / drifting) / d, (np.log1p(-normal) - np.log1p(-drifting)) / d
