"""Parameters of the sequential statistic, what follows from them and the profile, and the row stored per stream.

The types of a row are those it is stored in, so it does not matter between which buckets it was stored. lr_j = ln R_j
is kept in float32: every row travels to Redis and back with every bucket, and with its 104 bets per signal it would be
nearly twice the size in float64. The rounding (6e-8 of a number near 15) could, if it always went one way, change R by
6 % over a week of 10 s buckets; the bound has more slack than that. The reference bounds decide what is bet and stay in
float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from monitor.core.buckets import Layout, cut_index, reference_counts, usable_cuts
from monitor.rules.bounds import Floats

State = NDArray[np.void]
"""(K,) rows; make them with `initial` or `unpack`."""

VERSION = 1

# Shares of drifted images that upward bets assume, doubling: for every true share some bet is within a factor of
# sqrt(2) of it, which costs a few per cent of the growth rate. Downward: the share that is left beyond the cut.
UP = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64])
DOWN = np.array([0.95, 0.9, 0.8, 0.6, 0.3])
CLEAR_BETS = np.array([0.9, 0.8, 0.6, 0.4])
BETS = len(UP) + len(DOWN)
CLEAR_SHARE = 0.01
"""An alert clears when a smaller share of drifted images is left."""

DAY_S = 86400.0


def fleet_budget_s(streams: int, period_s: float = 7 * DAY_S) -> float:
    """A for each of `streams` streams so that the fleet expects at most one false alarm per period; at least 30 days.

    Expected false alarms add up over streams, dependent or not: K streams with A = K x period give period x K / A = 1.
    For a single stream that would be one a week; 30 days cost it only ln(30/7) = 1.5 of evidence.
    """
    return max(streams * period_s, 30 * DAY_S)


@dataclass(frozen=True)
class Sequential:
    """Parameters; hashable. Times in seconds of event time.

    Attributes:
        signals: by name or group (`Layout.select`); the bound holds for all of them together. The first has half of
            the weight, the others share the rest: twenty more signals delay the alarm on the first by one doubling of
            the evidence.
        bucket_s: length of a bucket.
        seconds_per_false_alarm: A; see `fleet_budget_s`.
        delta: probability, over calibration sets, that the bound does not hold with the one at hand.
        pi_min: share of drifted images that must never alarm (day and night, weather).
        level: the user's cut; half of a signal's weight bets on more images beyond it.
        reference: "tightening" learns each stream's own rates from its clean past; "fixed" uses only calibration
            (for streams whose normal state changes).
        min_images: images after a start or an alarm before it may alarm.
        dependence: D, how many consecutive images count as one (video); None takes what the profile measured.
        clear_images: images between false all-clears while at least 1 % of the images still drift.

    Raises:
        ValueError: a number outside its range.
    """

    signals: tuple[str, ...] = ("ood",)
    bucket_s: float = 10.0
    seconds_per_false_alarm: float = 30 * DAY_S
    delta: float = 0.01
    pi_min: float = 0.0
    level: float = 0.05
    reference: Literal["tightening", "fixed"] = "tightening"
    dependence: float | None = None
    min_images: int = 50
    clear_images: float = 10_000

    def __post_init__(self) -> None:
        cut_index(self.level)
        if not self.signals or len(set(self.signals)) != len(self.signals):
            raise ValueError(f"sequential: signals must be given, each once (got {self.signals})")
        if not (0 < self.bucket_s < self.seconds_per_false_alarm):
            raise ValueError("sequential: seconds_per_false_alarm must exceed one bucket")
        if not (0 < self.delta < 1 and 0 <= self.pi_min < 0.5 and self.clear_images > 1):
            raise ValueError("sequential: needs 0 < delta < 1, 0 <= pi_min < 0.5, clear_images > 1")
        if self.dependence is not None and not self.dependence >= 1:
            raise ValueError(f"sequential: dependence must be at least 1 (got {self.dependence})")


@dataclass(frozen=True)
class Plan:
    """Everything that is the same for all streams. T cuts, signal after signal."""

    cuts: tuple[tuple[str, int], ...]
    """(signal, index in LEVELS) of each cut."""
    k: Floats
    n: Floats
    dependence: Floats
    log_weights: Floats
    """(T, bets)."""
    risk: float
    """delta_l: per cut and direction; half is spent at the start, half over all tightenings."""
    start: tuple[Floats, Floats]
    """(lower, upper) (T,) bounds of the ID rates that calibration alone gives."""
    digest: int
    """Of everything that stored rows depend on; A, D and the weights may change between buckets."""

    @property
    def nominal(self) -> Floats:
        """(T,) ID rates of the cuts, on average over calibration sets."""
        return self.k / (self.n + 1)


@lru_cache(maxsize=256)
def plan_of(rule: Sequential, layout: Layout) -> Plan:
    """What the rule does with this profile.

    Raises:
        KeyError: the profile has no such signal.
        ValueError: too few calibration images for any cut of a signal.
    """
    cuts: list[tuple[str, int]] = []
    weights: list[Floats] = []
    signals = layout.select(rule.signals)
    for signal, share in zip(signals, _signal_weights(len(signals)), strict=True):
        usable = [int(cut) for cut in usable_cuts(layout, signal)]
        if not usable:
            size = layout.calibration_sizes[layout.index(signal)]
            raise ValueError(f"sequential: {size} calibration images of {signal!r} are too few; use 100 or more")
        cuts += [(signal, cut) for cut in usable]
        weights.append(_weights(usable, cut_index(rule.level)) * share)
    index = [layout.index(signal) for signal, _ in cuts]
    k = np.array([reference_counts(layout, signal)[cut] for signal, cut in cuts], dtype=np.float64)
    n = np.array([layout.calibration_sizes[i] for i in index], dtype=np.float64)
    risk = rule.delta / (2 * len(cuts))
    identity = repr((cuts, k.tolist(), n.tolist(), rule.delta, rule.pi_min, rule.reference))
    return Plan(
        cuts=tuple(cuts),
        k=k,
        n=n,
        dependence=np.array([rule.dependence or layout.dependence[i] for i in index]),
        log_weights=np.log(np.concatenate(weights)),
        risk=risk,
        start=(betaincinv(k, n + 1 - k, risk / 2), betaincinv(k, n + 1 - k, 1 - risk / 2)),
        digest=int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little"),
    )


def _signal_weights(count: int) -> list[float]:
    """Sum 1: half on the first, the rest even over the others."""
    return [1.0] if count == 1 else [0.5] + [0.5 / (count - 1)] * (count - 1)


def _weights(usable: list[int], user_cut: int) -> Floats:
    """(cuts, bets), sum 1: half on the user's cut upward, the rest even over the other cuts and directions."""
    by_side = np.ones((len(usable), 2))
    if user_cut in usable:
        by_side[usable.index(user_cut), 0] = by_side.size - 1
    by_side /= by_side.sum()
    bets = (len(UP), len(DOWN))
    return np.repeat(by_side / bets, bets, axis=1)


@lru_cache(maxsize=64)
def row_dtype(cuts: int) -> np.dtype[np.void]:
    """One stream's row: 598 bytes for one signal with eight cuts."""
    return np.dtype(
        [
            ("version", "<u2"),
            ("cause", "<u2"),  # cut * bets + bet, of the last alarm
            ("epoch", "u1"),  # tightenings done
            ("firing", "?"),
            ("digest", "<u8"),
            ("bucket_ms", "<i8"),  # last bucket advanced
            ("images", "<i8"),  # M: of the clean past
            ("passed", "<i8", (cuts,)),  # C
            ("lower", "<f8", (cuts,)),
            ("upper", "<f8", (cuts,)),
            ("since", "<i8"),  # images since the last reset or alarm
            ("since_passed", "<i8"),  # of these, beyond the cut of the cause; counted while firing
            ("alarm_share", "<f4"),  # estimated share of drifted images at the alarm
            ("lr", "<f4", (cuts, BETS)),
            ("clear_lr", "<f4", (len(CLEAR_BETS),)),
        ]
    )


def initial(rule: Sequential, layout: Layout, streams: int = 1) -> State:
    """(K,) rows of new streams."""
    plan = plan_of(rule, layout)
    state = np.zeros(streams, dtype=row_dtype(len(plan.cuts)))
    state["version"] = VERSION
    state["digest"] = plan.digest
    state["bucket_ms"] = np.iinfo(np.int64).min
    state["lower"], state["upper"] = plan.start
    state["lr"] = -np.inf
    state["clear_lr"] = -np.inf
    return state


def pack(state: State) -> list[bytes]:
    """One row of bytes per stream (little-endian, fixed length)."""
    packed, size = state.tobytes(), state.dtype.itemsize
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def unpack(rule: Sequential, layout: Layout, rows: Sequence[bytes | None]) -> State:
    """Inverse of `pack`. A stream without a row starts with `initial`, and so does one whose row was written by another
    version, for other signals or for another calibration.
    """
    plan, first = plan_of(rule, layout), initial(rule, layout)
    blank = first.tobytes()
    known = [row if row is not None and len(row) == len(blank) else blank for row in rows]
    state: State = np.frombuffer(b"".join(known), dtype=first.dtype).copy()
    state[(state["version"] != VERSION) | (state["digest"] != plan.digest)] = first
    return state
