"""Parameters of the sequential statistic, and what follows from them and the profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detectors.deferred import Deferred
from monitor.core.buckets import LEVELS, Layout, cut_index, reference_counts, usable_cuts
from monitor.rules.bounds import Floats

special = Deferred("scipy.special")

# Shares of drifted images that upward bets assume, doubling: for every true share some bet is within a factor of
# sqrt(2) of it, which costs a few per cent of the growth rate. Downward: the share that is left beyond the cut. From
# a rate of .5 they reach .5025 .505 .51 .52 .54 and .475 .45: a mean that moves by .05 sd or more is close to one.
UP = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64])
DOWN = np.array([0.95, 0.9, 0.8, 0.6, 0.3])
BETS = len(UP) + len(DOWN)

MIX_CUTS = (0, 1, 2)
"""Cuts of a mix signal that are bet on: 50, 20 and 10 %. Neither end of it is unusual, so its tails tell nothing."""
SEEN = "seen"
"""The signal that says how much an image resembles one of the reference: a fact, not a kind of drift."""
_SEEN_LEVEL = 0.01
"""Of textures of the reference, encoded anew as JPEG of quality 75, 83 % lie beyond it, but 6 % beyond the .2 % cut."""

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
        signals: by name or group (`Layout.select`); the bound holds for all of them together. How the weight is shared
            out: `_signal_weights`. A group or "*" leaves `seen` out.
        bucket_s: length of a bucket.
        seconds_per_false_alarm: A; see `fleet_budget_s`.
        delta: probability, over calibration sets, that the bound does not hold with the one at hand.
        pi_min: share of drifted images that must never alarm (day and night, weather).
        level: the user's cut; half of a signal's weight bets on more images beyond it.
        reference: "tightening" learns each stream's own rates from its clean past; "fixed" uses only calibration
            (for streams whose normal state changes).
        min_images: images after a start or an alarm before it may alarm.
        dependence: D, how many consecutive images count as one (video); None takes what the profile measured.
        clear_images: images between false all-clears while the drift goes on at half of the strength of its alarm.

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
    clear_images: float = 3_000

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
    columns: NDArray[np.intp]
    """(T,) where each cut stands in the (signals x LEVELS) exceedances of a layout."""
    first: NDArray[np.intp]
    """(T,) position of the first cut of its signal."""
    falling: NDArray[np.intp]
    """(F,) cuts on which bets on fewer images are placed, too: all but those of learned signals."""
    mix: NDArray[np.bool_]
    """(T,) whether it is a cut of a mix signal."""
    k: Floats
    n: Floats
    dependence: Floats
    weights: tuple[Floats, Floats]
    """(T, up bets) and (F, down bets); their sum is 1."""
    risk: float
    """delta_l: per cut and direction that is bet on; half is spent at the start, half over all tightenings."""
    start: tuple[Floats, Floats]
    """(lower, upper) (T,) bounds of the ID rates that calibration alone gives."""
    seen: int | None
    """The cut of `seen` beyond which images count as the reference's own; None: no such signal, or it is bet on."""
    digest: int
    """Of everything that stored rows depend on; A, D and the weights may change between buckets."""

    @property
    def nominal(self) -> Floats:
        """(T,) ID rates of the cuts, on average over calibration sets."""
        return self.k / (self.n + 1)

    @property
    def bets(self) -> int:
        """Number of bets of a stream."""
        return self.weights[0].size + self.weights[1].size

    @cached_property
    def in_a_row(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(bets,) log likelihood ratio of an image that adds no evidence, over D, and weight; the upward bets first.

        That is an image not beyond the cut for an upward bet, one beyond it for a downward bet.
        """
        d, falling = self.dependence[:, None], self.dependence[self.falling, None]
        against = np.concatenate([(np.log1p(-UP) / d).ravel(), (np.log(DOWN) / falling).ravel()])
        weights = np.concatenate([weights.ravel() for weights in self.weights])
        return against.astype(np.float32), weights.astype(np.float32)


@lru_cache(maxsize=256)
def plan_of(rule: Sequential, layout: Layout) -> Plan:
    """What the rule does with this profile.

    Raises:
        KeyError: the profile has no such signal.
        ValueError: it has none of a group, or too few calibration images for any cut of a signal.
    """
    signals = watched(rule, layout)
    cuts: list[tuple[str, int]] = []
    up: list[Floats] = []
    down: list[Floats] = []
    falling: list[int] = []
    for signal, share in zip(signals, _signal_weights(rule, layout, signals), strict=True):
        kind = _kind(layout, signal)
        usable = [int(cut) for cut in usable_cuts(layout, signal) if kind != "mix" or cut in MIX_CUTS]
        if not usable:
            size = layout.calibration_sizes[layout.index(signal)]
            raise ValueError(f"sequential: {size} calibration images of {signal!r} are too few; use 100 or more")
        by_side = share * _side_weights(usable, cut_index(rule.level), kind)
        up.append(np.repeat(by_side[:, :1] / len(UP), len(UP), axis=1))
        if kind != "learned":
            down.append(np.repeat(by_side[:, 1:] / len(DOWN), len(DOWN), axis=1))
            falling += range(len(cuts), len(cuts) + len(usable))
        cuts += [(signal, cut) for cut in usable]
    names = [signal for signal, _ in cuts]
    index = [layout.index(signal) for signal in names]
    k = np.array([reference_counts(layout, signal)[cut] for signal, cut in cuts], dtype=np.float64)
    n = np.array([layout.calibration_sizes[i] for i in index], dtype=np.float64)
    risk = rule.delta / (len(cuts) + len(falling))
    identity = repr((cuts, k.tolist(), n.tolist(), rule.delta, rule.pi_min, rule.reference))
    return Plan(
        cuts=tuple(cuts),
        columns=np.array([layout.index(signal) * len(LEVELS) + cut for signal, cut in cuts], dtype=np.intp),
        first=np.array([names.index(signal) for signal in names], dtype=np.intp),
        falling=np.array(falling, dtype=np.intp),
        mix=np.array([signal in layout.mix for signal in names]),
        k=k,
        n=n,
        dependence=np.array([rule.dependence or layout.dependence[i] for i in index]),
        weights=(np.concatenate(up), np.concatenate([np.empty((0, len(DOWN))), *down])),
        risk=risk,
        start=(special.betaincinv(k, n + 1 - k, risk / 2), special.betaincinv(k, n + 1 - k, 1 - risk / 2)),
        seen=_seen_cut(layout, signals),
        digest=int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little"),
    )


def watched(rule: Sequential, layout: Layout) -> tuple[str, ...]:
    """The signals that are bet on.

    Raises:
        KeyError: the profile has no such signal.
        ValueError: it has none of a group that is asked for by name.
    """
    chosen: dict[str, None] = {}
    for name in rule.signals:
        found = layout.select((name,))
        found = tuple(signal for signal in found if signal == name or signal != SEEN)
        if not found:
            raise ValueError(
                f"sequential: the profile has no {name} signals; fit it again with this version, or take {name!r} "
                "out of the rule's signals"
            )
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _seen_cut(layout: Layout, signals: tuple[str, ...]) -> int | None:
    if SEEN not in layout.signals or SEEN in signals:
        return None
    smallest = int(np.flatnonzero(reference_counts(layout, SEEN))[-1])  # that a calibration image lies beyond
    return min(cut_index(_SEEN_LEVEL), smallest)


def _kind(layout: Layout, signal: str) -> Literal["learned", "property", "mix"]:
    if signal in layout.mix:
        return "mix"
    return "learned" if layout.learned[layout.index(signal)] else "property"


def _signal_weights(rule: Sequential, layout: Layout, signals: tuple[str, ...]) -> list[float]:
    """Sum 1: half on the first signal, the rest even over the kinds of the others, and even within each kind.

    A kind that has many signals is so not louder than one with few: sixteen properties leave the layers what they
    would have beside two. Properties and mix have no first among them: a rule that begins with such a group gives
    none of them the half.
    """
    led = rule.signals[0] not in ("properties", "mix")
    if len(signals) == 1:
        return [1.0]
    kinds = [_kind(layout, signal) for signal in signals]
    rest = kinds[1:] if led else kinds
    even = [(0.5 if led else 1.0) / (len(set(rest)) * rest.count(kind)) for kind in rest]
    return [0.5, *even] if led else even


def _side_weights(usable: list[int], user_cut: int, kind: str) -> Floats:
    """(cuts, directions), sum 1: half on the user's cut upward, the rest even over the other cuts and directions.

    Even over all of them for a mix signal: its mean moves either way, and at no cut more than at another. Learned
    signals have one direction: images that are more normal than normal are not a drift.
    """
    by_side = np.ones((len(usable), 1 if kind == "learned" else 2))
    if user_cut in usable and kind != "mix":
        by_side[usable.index(user_cut), 0] = by_side.size - 1
    weights: Floats = by_side / by_side.sum()
    return weights
