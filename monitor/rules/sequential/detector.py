"""The statistic itself: advances many streams by one bucket, and finds the bucket in which a drift began."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from monitor.core.buckets import IMAGES, Layout, exceedances
from monitor.core.types import Verdict
from monitor.rules.bounds import Floats
from monitor.rules.sequential.plan import BETS, CLEAR_BETS, CLEAR_SHARE, DOWN, UP, Plan, Sequential, State, plan_of
from monitor.rules.sequential.verdicts import blocks, clear_evidence, cleared, log_sum_exp, verdicts

_FIRST_EPOCH = 1000  # images before the first tightening: with fewer, the calibration set (n >= 500) is more precise


def advance(
    rule: Sequential, layout: Layout, state: State, bucket_ms: int, vectors: NDArray[np.uint32]
) -> tuple[State, list[Verdict]]:
    """State and verdicts after one more closed bucket; the state passed in is not changed.

    A row that has already advanced to this bucket or beyond stays as it is. An empty bucket changes nothing, so streams
    without images need not be passed.

    Args:
        state: (K,) rows.
        bucket_ms: start of the bucket that closed.
        vectors: (K, V) its counts, in the order of the rows.
    """
    plan = plan_of(rule, layout)
    if vectors.shape != (len(state), layout.size):
        raise ValueError(f"vectors must be ({len(state)}, {layout.size}), got {vectors.shape}")
    state = state.copy()
    fresh = (vectors[:, IMAGES] > 0) & (state["bucket_ms"] < bucket_ms)
    per_signal = {signal: exceedances(layout, vectors, signal) for signal in {signal for signal, _ in plan.cuts}}
    passed = np.stack([per_signal[signal][:, cut] for signal, cut in plan.cuts], axis=1)
    firing, since = state["firing"].copy(), state["since"].copy()
    for chosen, move in ((fresh & ~firing, _watch), (fresh & firing, _wait_for_clear)):
        for rows in blocks(plan, np.flatnonzero(chosen)):
            state[rows] = move(rule, plan, state[rows], vectors[rows, IMAGES].astype(np.int64), passed[rows])
    if rule.reference == "tightening":
        learned = fresh & ~firing & ~state["firing"]
        due = np.flatnonzero(learned & (state["images"] >= _FIRST_EPOCH * 2.0 ** state["epoch"]))
        if len(due):
            _tighten(rule, plan, state, due)
    state["bucket_ms"] = np.maximum(state["bucket_ms"], bucket_ms)
    found = verdicts(rule, layout, state)
    for row in np.flatnonzero(firing & ~state["firing"]).tolist():
        found[row] = cleared(rule, images=int(since[row] + vectors[row, IMAGES]))
    return state, found


def drift_start(rule: Sequential, layout: Layout, state: State, vectors: NDArray[np.uint32]) -> int:
    """Position of the first drifted bucket, by maximum likelihood; the last position where none looks drifted.

    The bet that caused the alarm assumes a distribution of drifted images; the change point is where the sum of its log
    likelihood ratios from there to the end is largest. Only an alarm needs it, so it is computed from the stored
    buckets and not kept in every stream's state.

    Args:
        state: (1,) the row of a stream that is firing.
        vectors: (B, V) buckets of that stream in order, the alarm's last; drift before the first cannot be seen.

    Raises:
        ValueError: not one firing row, or no buckets.
    """
    if len(state) != 1 or not state["firing"][0] or len(vectors) == 0:
        raise ValueError("drift_start needs one firing row and at least one bucket")
    plan = plan_of(rule, layout)
    cut, bet = divmod(int(state["cause"][0]), BETS)
    alpha, beta = (ratio[0, cut, bet] for ratio in log_ratios(rule, plan, state))
    signal, level = plan.cuts[cut]
    beyond = exceedances(layout, vectors, signal)[:, level]
    gain = beyond * alpha + (vectors[:, IMAGES].astype(np.int64) - beyond) * beta
    to_the_end = np.cumsum(gain[::-1])[::-1]
    # of equal sums the latest: empty buckets before the drift add nothing and are not part of it
    return int(len(gain) - 1 - np.argmax(to_the_end[::-1]))


def log_ratios(rule: Sequential, plan: Plan, state: State) -> tuple[Floats, Floats]:
    """(R, T, bets) log likelihood ratio of an image beyond the cut, and of one that is not, divided by D."""
    pi = rule.pi_min
    p0_up = (state["upper"] + (1 - state["upper"]) * pi)[..., None]
    p0_down = (state["lower"] * (1 - pi))[..., None]
    alpha, beta = np.empty((2, *state["upper"].shape, BETS))
    # up: q = p0 + (1 - p0) share, so (1 - q)/(1 - p0) = 1 - share; down: q = p0 * rest
    alpha[..., : len(UP)] = np.log1p(UP * (1 / p0_up - 1))
    beta[..., : len(UP)] = np.log1p(-UP)
    alpha[..., len(UP) :] = np.log(DOWN)
    beta[..., len(UP) :] = np.log1p(-p0_down * DOWN) - np.log1p(-p0_down)
    alpha /= plan.dependence[:, None]
    beta /= plan.dependence[:, None]
    return alpha, beta


def _watch(rule: Sequential, plan: Plan, state: State, m: NDArray[np.int64], c: NDArray[np.int64]) -> State:
    """One bucket of streams that are not firing: bet, then raise an alarm or count the images as normal."""
    alpha, beta = log_ratios(rule, plan, state)
    beyond, within = c[..., None], (m[:, None] - c)[..., None]
    alpha *= beyond
    beta *= within
    # As logaddexp, in a seventh of the time. Exp overflows at 709; an alarm with evidence of 700 lacks only min_images.
    lr = np.log(np.exp(np.minimum(state["lr"].astype(np.float64), 700)) + rule.bucket_s) + (alpha + beta)
    state["lr"] = lr
    state["since"] += m
    weighted = (lr + plan.log_weights).reshape(len(state), -1)
    alarm = (log_sum_exp(weighted) >= np.log(rule.seconds_per_false_alarm)) & (state["since"] >= rule.min_images)

    learning = ~alarm
    state["images"][learning] += m[learning]
    state["passed"][learning] += c[learning]
    if alarm.any():
        state[alarm] = _raise_alarm(state[alarm], weighted[alarm])
    return state


def _raise_alarm(state: State, weighted: Floats) -> State:
    state["firing"] = True
    state["cause"] = weighted.argmax(axis=1)
    share = np.broadcast_to(np.concatenate([UP, 1 - DOWN]), state["lr"].shape).reshape(len(state), -1)
    # the bets' own estimate: each assumes one share, weighted by its evidence
    trust = np.exp(weighted - log_sum_exp(weighted)[:, None])
    state["alarm_share"] = (trust * share).sum(axis=1)
    state["lr"] = -np.inf
    state["clear_lr"] = -np.inf
    state["since"] = 0
    state["since_passed"] = 0
    return state


def _tighten(rule: Sequential, plan: Plan, state: State, rows: NDArray[np.intp]) -> None:
    """Tighten the reference bounds of these rows by the rates of the M clean images of the stream itself."""
    images, pi = state["images"][rows], rule.pi_min
    i = np.floor(np.log2(images / _FIRST_EPOCH)).astype(np.int64)
    risks = plan.risk / (2 * (i + 1) * (i + 2))  # adds up to half of delta_l over all epochs
    state["epoch"][rows] = i + 1
    passed, bounds = state["passed"][rows].T.copy(), np.stack([state["lower"][rows].T, state["upper"][rows].T])
    for t, nominal in enumerate(plan.nominal):
        # Streams that began together have similar numbers of images and few different counts: each is inverted once.
        _, once, of = np.unique(images + 1j * passed[t], return_index=True, return_inverse=True)
        m, c, risk = images[once] / plan.dependence[t], passed[t, once] / plan.dependence[t], risks[once]
        a, b = plan.k[t] + c, plan.n[t] + 1 - plan.k[t] + m - c
        lower, upper = (betaincinv(a, b, risk) - pi) / (1 - pi), betaincinv(a, b, 1 - risk) / (1 - pi)
        # never beyond nominal: a stream cleaner than the calibration set must not alarm when it becomes like it
        bounds[0, t] = np.minimum(nominal, np.maximum(bounds[0, t], lower[of]))
        bounds[1, t] = np.maximum(nominal, np.minimum(bounds[1, t], upper[of]))
    state["lower"][rows], state["upper"][rows] = bounds[0].T, bounds[1].T


def _wait_for_clear(rule: Sequential, plan: Plan, state: State, m: NDArray[np.int64], c: NDArray[np.int64]) -> State:
    """One bucket of firing streams: the reverse statistic on the cause; the baseline stays as it was."""
    cut, up = state["cause"] // BETS, state["cause"] % BETS < len(UP)
    row = np.arange(len(state))
    beyond, total = c[row, cut], m
    pi, margin = rule.pi_min, max(rule.pi_min, CLEAR_SHARE)
    upper, lower = state["upper"][row, cut], state["lower"][row, cut]
    p0_up = 1 - (1 - upper) * (1 - pi) * (1 - margin)
    p0_down = lower * (1 - pi) * (1 - margin)
    p0 = np.where(up, p0_up, p0_down)[:, None]
    # upward drift is over when fewer images lie beyond the cut than p0; downward drift when more do
    q = np.where(up[:, None], p0 * CLEAR_BETS, np.minimum(p0 / CLEAR_BETS, (1 + p0) / 2))
    llr = beyond[:, None] * np.log(q / p0) + (total - beyond)[:, None] * (np.log1p(-q) - np.log1p(-p0))
    before = np.logaddexp(state["clear_lr"].astype(np.float64), np.log(total)[:, None])
    state["clear_lr"] = before + llr / plan.dependence[cut][:, None]
    state["since"] += total
    state["since_passed"] += beyond
    clear = clear_evidence(state) >= np.log(rule.clear_images)
    state["firing"][clear] = False
    state["clear_lr"][clear] = -np.inf
    state["since"][clear] = 0
    return state
