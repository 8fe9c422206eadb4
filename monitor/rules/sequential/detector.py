"""The statistic itself: advances many streams by one bucket, and finds the bucket in which a drift began."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred
from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout, exceedances
from monitor.core.types import Verdict
from monitor.rules.bounds import Floats
from monitor.rules.sequential import ending
from monitor.rules.sequential.plan import BETS, DOWN, SEEN, UP, Plan, Sequential, plan_of
from monitor.rules.sequential.rows import MOST, State, bets_of
from monitor.rules.sequential.verdicts import BLOCK, blocks, cleared, of_the_reference, verdicts

special = Deferred("scipy.special")

Gains = NDArray[np.float32]
_FIRST_EPOCH = 1000  # images before the first tightening: with fewer, the calibration set (n >= 500) is more precise


@dataclass(frozen=True, slots=True)
class Moved:
    """What a bucket did to K rows, beside their new state."""

    fired: NDArray[np.bool_]
    """(K,) whether they were firing before it."""
    since: NDArray[np.int64]
    """(K,) images since their alarm, the bucket's among them."""
    again: NDArray[np.bool_]
    """(K,) whether it showed the reference again, so that they stay as they were."""


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
    if vectors.shape != (len(state), layout.size):
        raise ValueError(f"vectors must be ({len(state)}, {layout.size}), got {vectors.shape}")
    state = state.copy()
    moved = move(rule, layout, state, bucket_ms, vectors)
    return state, told(rule, layout, state, moved, np.arange(len(state)))


def move(
    rule: Sequential,
    layout: Layout,
    state: State,
    bucket_ms: int,
    vectors: NDArray[np.uint32],
    known: Gains | None = None,
) -> Moved:
    """As `advance`, in place and without the verdicts.

    Args:
        known: (K, bets) the `gains` of the rows, kept up to date; None computes them.
    """
    plan = plan_of(rule, layout)
    m = vectors[:, IMAGES].astype(np.int64)
    fresh = (m > 0) & (state["bucket_ms"] < bucket_ms)
    passed = _passed(plan, layout, vectors)
    firing, since = state["firing"].copy(), state["since"] + m
    again = _played_again(plan, layout, vectors) & ~firing
    watching = fresh & ~firing & ~again
    size = max(1, BLOCK // plan.bets)
    for start in range(0, len(state), size):
        block = slice(start, start + size)
        if watching[block].all():  # a view: to copy the rows there and back costs as much again
            known_ = gains(rule, plan, state[block]) if known is None else known[block]
            _watch(rule, plan, state[block], known_, m[block], passed[block])
        elif watching[block].any():
            rows = start + np.flatnonzero(watching[block])
            copied = state[rows]
            known_ = gains(rule, plan, copied) if known is None else known[rows]
            _watch(rule, plan, copied, known_, m[rows], passed[rows])
            state[rows] = copied
    for rows in blocks(plan, np.flatnonzero(fresh & firing)):
        state[rows] = ending.wait(rule, plan, state[rows], m[rows], passed[rows])
    if rule.reference == "tightening":
        learned = watching & ~state["firing"]
        due = np.flatnonzero(learned & (state["images"] >= _FIRST_EPOCH * 2.0 ** state["epoch"]))
        if len(due):
            _tighten(rule, plan, state, due)
            if known is not None:
                known[due] = gains(rule, plan, state[due])
    state["bucket_ms"][fresh] = bucket_ms
    return Moved(firing, since, again)


def told(rule: Sequential, layout: Layout, state: State, moved: Moved, rows: NDArray[np.intp]) -> list[Verdict]:
    """The verdicts of some rows after `move`."""
    found = verdicts(rule, layout, state[rows])
    for i, row in enumerate(rows.tolist()):
        if moved.fired[row] and not state["firing"][row]:
            found[i] = cleared(plan_of(rule, layout), state[row : row + 1], images=int(moved.since[row]))
        elif moved.again[row]:
            found[i] = of_the_reference(found[i])
    return found


def _passed(plan: Plan, layout: Layout, vectors: NDArray[np.uint32]) -> NDArray[np.int64]:
    """(K, T) images beyond each cut."""
    bins = vectors[:, : len(layout.signals) * BINS].reshape(len(vectors), -1, BINS)
    beyond = np.zeros((len(LEVELS), *bins.shape[:2]), dtype=np.int64)
    total = np.zeros(bins.shape[:2], dtype=np.int64)
    for level in reversed(range(len(LEVELS))):  # eight sums over all streams: four times as fast as `exceedances`
        total += bins[:, :, level + 1]
        beyond[level] = total
    return beyond.transpose(1, 2, 0).reshape(len(vectors), -1)[:, plan.columns]


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


def gains(rule: Sequential, plan: Plan, state: State) -> Gains:
    """(K, bets) what an image adds to ln R by being beyond the cut, over D; the upward bets first.

    In float32: an image then adds 3e-8 of it too much or too little, 1e-9 in ln R at most on average.
    """
    alpha, beta = up_ratios(rule, state["upper"], plan.dependence)
    falling_alpha, falling_beta = down_ratios(rule, state["lower"][:, plan.falling], plan.dependence[plan.falling])
    parts = (alpha - beta, falling_alpha - falling_beta)
    return np.concatenate([part.reshape(len(state), -1) for part in parts], axis=1, dtype=np.float32)


def _watch(
    rule: Sequential, plan: Plan, state: State, known: Gains, m: NDArray[np.int64], c: NDArray[np.int64]
) -> None:
    """One bucket of streams that are not firing: bet, then raise an alarm or count the images as normal. In place.

    Args:
        state: (R,) rows.
        known: (R, bets) their `gains`.
        m: (R,) images.
        c: (R, T) of them, beyond each cut.
    """
    bets, ups = bets_of(state), plan.weights[0].size
    against, weights = plan.in_a_row
    images, beyond, within = (n.astype(np.float32) for n in (m, c, m[:, None] - c[:, plan.falling]))
    log_ratio, part = images[:, None] * against, np.empty(bets.shape, dtype=np.float32)
    np.multiply(known[:, :ups], np.repeat(beyond, len(UP), axis=1), out=part[:, :ups])
    np.multiply(known[:, ups:], np.repeat(within, len(DOWN), axis=1), out=part[:, ups:])
    log_ratio[:, :ups] += part[:, :ups]
    log_ratio[:, ups:] -= part[:, ups:]
    stake = bets + np.float32(rule.bucket_s)
    with np.errstate(over="ignore"):  # then it is MOST
        np.exp(log_ratio, out=part)
        part *= stake
        np.minimum(part, np.float32(MOST), out=bets)
        # in float32: one part in a million of the evidence
        found = np.multiply(bets, weights, out=part).sum(axis=1).astype(np.float64)
    state["since"] += m
    alarm = (found >= rule.seconds_per_false_alarm) & (state["since"] >= rule.min_images)
    any_alarm = alarm.any()
    state["images"] += m * ~alarm
    state["passed"] += np.where(alarm[:, None], 0, c) if any_alarm else c
    if any_alarm:
        log_r = np.log(stake[alarm].astype(np.float64)) + log_ratio[alarm]
        up, down = log_r[:, :ups].reshape(len(log_r), -1, len(UP)), log_r[:, ups:].reshape(len(log_r), -1, len(DOWN))
        state[alarm] = _raise_alarm(rule, plan, state[alarm], (up, down))


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
