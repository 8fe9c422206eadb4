"""The statistic itself: advances many streams by one bucket, and finds the bucket in which a drift began."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred
from monitor.core.buckets import IMAGES, Layout, exceedances
from monitor.core.types import Verdict
from monitor.rules.bounds import Floats
from monitor.rules.sequential import ending
from monitor.rules.sequential.plan import BETS, DOWN, SEEN, UP, Plan, Sequential, plan_of
from monitor.rules.sequential.rows import MOST, State
from monitor.rules.sequential.verdicts import blocks, cleared, evidence, of_the_reference, verdicts

special = Deferred("scipy.special")

_FIRST_EPOCH = 1000  # images before the first tightening: with fewer, the calibration set (n >= 500) is more precise


def advance(
    rule: Sequential, layout: Layout, state: State, bucket_ms: int, vectors: NDArray[np.uint32]
) -> tuple[State, list[Verdict]]:
    """State and verdicts after one more closed bucket; the state passed in is not changed.

    A row that has already advanced to this bucket or beyond stays as it is. An empty bucket changes nothing, so streams
    without images need not be passed. A bucket of which most images are those of the reference, played again, says
    nothing about a stream that is not firing: its bets stay where they are.

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
    again = _played_again(plan, layout, vectors) & ~firing
    watching = fresh & ~firing & ~again
    for chosen, move in ((watching, _watch), (fresh & firing, ending.wait)):
        for rows in blocks(plan, np.flatnonzero(chosen)):
            state[rows] = move(rule, plan, state[rows], vectors[rows, IMAGES].astype(np.int64), passed[rows])
    if rule.reference == "tightening":
        learned = watching & ~state["firing"]
        due = np.flatnonzero(learned & (state["images"] >= _FIRST_EPOCH * 2.0 ** state["epoch"]))
        if len(due):
            _tighten(rule, plan, state, due)
    state["bucket_ms"] = np.maximum(state["bucket_ms"], bucket_ms)
    found = verdicts(rule, layout, state)
    for row in np.flatnonzero(firing & ~state["firing"]).tolist():
        found[row] = cleared(plan, state[row : row + 1], images=int(since[row] + vectors[row, IMAGES]))
    for row in np.flatnonzero(again).tolist():
        found[row] = of_the_reference(found[row])
    return state, found


def _played_again(plan: Plan, layout: Layout, vectors: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(K,) whether most images are as close to an image of the reference as hardly any other is."""
    if plan.seen is None:
        return np.zeros(len(vectors), dtype=bool)
    return np.asarray(2 * exceedances(layout, vectors, SEEN)[:, plan.seen] > vectors[:, IMAGES])


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
    d = plan.dependence[cut]
    if bet < len(UP):
        alpha, beta = (ratios[..., bet] for ratios in up_ratios(rule, state["upper"][0, cut], d))
    else:
        alpha, beta = (ratios[..., bet - len(UP)] for ratios in down_ratios(rule, state["lower"][0, cut], d))
    signal, level = plan.cuts[cut]
    beyond = exceedances(layout, vectors, signal)[:, level]
    gain = beyond * alpha + (vectors[:, IMAGES].astype(np.int64) - beyond) * beta
    to_the_end = np.cumsum(gain[::-1])[::-1]
    # of equal sums the latest: empty buckets before the drift add nothing and are not part of it
    return int(len(gain) - 1 - np.argmax(to_the_end[::-1]))


def up_ratios(rule: Sequential, upper: Floats, dependence: Floats) -> tuple[Floats, Floats]:
    """(..., up bets) log likelihood ratio of an image beyond the cut, and of one that is not, divided by D."""
    p0 = (upper + (1 - upper) * rule.pi_min)[..., None]
    # q = p0 + (1 - p0) share, so (1 - q)/(1 - p0) = 1 - share
    return np.log1p(UP * (1 / p0 - 1)) / dependence[..., None], np.log1p(-UP) / dependence[..., None]


def down_ratios(rule: Sequential, lower: Floats, dependence: Floats) -> tuple[Floats, Floats]:
    """(..., down bets) likewise, with q = p0 * rest."""
    p0 = (lower * (1 - rule.pi_min))[..., None]
    return np.log(DOWN) / dependence[..., None], (np.log1p(-p0 * DOWN) - np.log1p(-p0)) / dependence[..., None]


def _watch(rule: Sequential, plan: Plan, state: State, m: NDArray[np.int64], c: NDArray[np.int64]) -> State:
    """One bucket of streams that are not firing: bet, then raise an alarm or count the images as normal."""
    stakes: list[tuple[Floats, Floats]] = []
    for name, cuts, ratios, bound in (
        ("up", slice(None), up_ratios, "upper"),
        ("down", plan.falling, down_ratios, "lower"),
    ):
        alpha, beta = ratios(rule, state[bound][:, cuts], plan.dependence[cuts])
        beyond = c[:, cuts, None]
        stake = state[name].astype(np.float64) + rule.bucket_s
        log_ratio = alpha * beyond + beta * (m[:, None, None] - beyond)
        with np.errstate(over="ignore"):  # then it is MOST
            state[name] = np.minimum(stake * np.exp(log_ratio), MOST)
        stakes.append((stake, log_ratio))
    state["since"] += m
    alarm = (evidence(plan, state) >= rule.seconds_per_false_alarm) & (state["since"] >= rule.min_images)
    learning = ~alarm
    state["images"][learning] += m[learning]
    state["passed"][learning] += c[learning]
    if alarm.any():
        up, down = (np.log(stake[alarm]) + log_ratio[alarm] for stake, log_ratio in stakes)
        state[alarm] = _raise_alarm(rule, plan, state[alarm], (up, down))
    return state


def _raise_alarm(rule: Sequential, plan: Plan, state: State, log_r: tuple[Floats, Floats]) -> State:
    """`log_r`: (R, T, up bets) and (R, F, down bets) ln R, also where R is beyond MOST."""
    by_cut = np.full((len(state), len(plan.cuts), BETS), -np.inf)
    by_cut[:, :, : len(UP)] = log_r[0] + np.log(plan.weights[0])
    by_cut[:, plan.falling, len(UP) :] = log_r[1] + np.log(plan.weights[1])
    weighted = by_cut.reshape(len(state), -1)
    state["firing"] = True
    state["cause"] = weighted.argmax(axis=1)
    trust = np.exp(weighted - weighted.max(axis=1, keepdims=True))
    share = np.tile(np.concatenate([UP, 1 - DOWN]), len(plan.cuts))
    # the bets' own estimate: each assumes one share, weighted by its evidence
    state["alarm_share"] = (trust * share).sum(axis=1) / trust.sum(axis=1)
    ending.begin(rule, plan, state, log_r)
    state["up"], state["down"] = 0, 0
    state["since"], state["since_passed"] = 0, 0
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
        lower, upper = (special.betaincinv(a, b, risk) - pi) / (1 - pi), special.betaincinv(a, b, 1 - risk) / (1 - pi)
        # never beyond nominal: a stream cleaner than the calibration set must not alarm when it becomes like it
        bounds[0, t] = np.minimum(nominal, np.maximum(bounds[0, t], lower[of]))
        bounds[1, t] = np.maximum(nominal, np.minimum(bounds[1, t], upper[of]))
    state["lower"][rows], state["upper"][rows] = bounds[0].T, bounds[1].T
