"""When drift alerts end: images from the end of a drift to the all-clear, and all-clears while the drift goes on.

    PYTHONPATH=. python benchmarks/alarm_ends.py [--data FOLDER] [--cache FILE] [--streams 100] [-o FILE]

Simulated scores first, and on them every idea that was tried: each judges the same images after the same alarms. Then,
with --data (as for `faults_and_drift.py`) or a --cache of it, a profile's own scores of real images and all signals:
other content and inverted images at 100, 30 and 10 %, a drift that weakens from 30 to 5 %, and a clip of the reference
that is played again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_scores import CLIP, SMALL, Played, scored
from benchmarks.streams import BUCKET, Counts, Floats, draw, id_shares, layout_of, ood_shares
from monitor.core import buckets
from monitor.core.buckets import Layout
from monitor.rules.bounds import anytime_interval
from monitor.rules.sequential import ending
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.plan import BETS, DAY_S, UP, Sequential, plan_of
from monitor.rules.sequential.rows import State, initial

CLEAN, LATEST, WATCHED = 4000, 6000, 4000
"""Images before the drift; by which it must have alarmed; and after the alarm or the end of the drift."""


@dataclass(frozen=True)
class Alarmed:
    """Streams at their alarms, and (B, R, T) counts of the buckets after them: of normal images, and of drifting."""

    state: State
    log_r: Floats
    """(R, T, up bets)."""
    normal: NDArray[np.int64]
    drifting: NDArray[np.int64]
    nominal: Floats


def alarmed(kind: str | float, share: float, streams: int, rng: np.random.Generator) -> Alarmed:
    """Streams of one score in which that share of the images drifts until they alarm."""
    layout, rule = layout_of(2000), Sequential(bucket_s=BUCKET)
    plan, shares, state = plan_of(rule, layout), id_shares(rng, 2000, streams), initial(rule, layout, streams)
    drifting = (1 - share) * shares + share * ood_shares(shares, kind)
    for bucket in range(CLEAN // BUCKET):
        state, _ = advance(rule, layout, state, bucket, draw(rng, layout, shares))
    waiting = np.flatnonzero(~state["firing"])
    found = np.zeros((streams, len(plan.cuts), len(UP)))
    log_r: list[Floats] = []
    begin = ending.begin

    def keep(*arguments: Any) -> None:
        log_r.append(arguments[-1][0])
        begin(*arguments)

    with patch.object(ending, "begin", keep):
        for bucket in range(CLEAN // BUCKET, (CLEAN + LATEST) // BUCKET):
            log_r.clear()
            state[waiting], _ = advance(rule, layout, state[waiting], bucket, draw(rng, layout, drifting[waiting]))
            now = waiting[state["firing"][waiting]]
            if len(now):
                found[now] = np.concatenate(log_r)
            waiting = waiting[~state["firing"][waiting]]
    rows = np.flatnonzero(state["firing"] & (found != 0).any(axis=(1, 2)))

    def after(of: Floats) -> NDArray[np.int64]:
        counts = [buckets.exceedances(layout, draw(rng, layout, of[rows]), "ood") for _ in range(WATCHED // BUCKET)]
        return np.stack(counts)[..., : len(plan.cuts)]

    return Alarmed(state[rows], found[rows], after(shares), after(drifting), plan.nominal)


# ------------------------------------------------------------------------------------------------ ideas


def reverse(judged: Alarmed, counts: NDArray[np.int64], left: Floats, enough: float) -> Floats:
    """(R,) images to the all-clear by reverse statistics against `left` (R, T; 0: not judged by that cut)."""
    normal = judged.state["upper"]
    drifting = normal + (1 - normal) * left
    a, b = np.log(normal / drifting), np.log1p(-normal) - np.log1p(-drifting)
    evidence, took = np.zeros_like(a), np.full(len(a), np.inf)
    for i, beyond in enumerate(counts):
        evidence = np.minimum((evidence + BUCKET) * np.exp(beyond * a + (BUCKET - beyond) * b), 1e100)
        clear = (evidence * (left > 0)).sum(axis=1) >= enough * (left > 0).sum(axis=1)
        took[clear & np.isinf(took)] = (i + 1) * BUCKET
    return took


def of_the_bets(judged: Alarmed, fraction: float, sds: float, cause_only: bool = False) -> Floats:
    """(R, T) that fraction of the share of the bets that won, less some standard deviations; at least 1 %."""
    cut = judged.state["cause"] // BETS
    best = judged.log_r.max(axis=2)
    trust = np.exp(judged.log_r - best[..., None])
    trust /= trust.sum(axis=2, keepdims=True)
    share = (trust * UP).sum(axis=2)
    sd = np.sqrt((trust * (UP - share[..., None]) ** 2).sum(axis=2))
    row = np.arange(len(cut))
    tells = best >= best[row, cut][:, None] - 6
    if cause_only:
        tells = np.arange(best.shape[1]) == cut[:, None]
    return np.where(tells, np.maximum(fraction * (share - sds * sd), 0.01), 0)


def one_percent(judged: Alarmed, counts: NDArray[np.int64]) -> Floats:
    """What it was: less than 1 % by the cut of the cause."""
    return reverse(judged, counts, np.where(of_the_bets(judged, 1, 0, cause_only=True) > 0, 0.01, 0), 10_000)


def proven(judged: Alarmed, counts: NDArray[np.int64]) -> Floats:
    """Half of the share that images since the alarm have proven: its lower bound, at its largest; cause's cut."""
    cut, row = judged.state["cause"] // BETS, np.arange(len(judged.state))
    normal = judged.state["upper"][row, cut]
    share, evidence, took = np.full(len(row), 0.01), np.zeros(len(row)), np.full(len(row), np.inf)
    passed = np.zeros(len(row))
    for i, beyond in enumerate(counts[:, row, cut]):
        drifting = normal + (1 - normal) * share
        llr = beyond * np.log(normal / drifting) + (BUCKET - beyond) * (np.log1p(-normal) - np.log1p(-drifting))
        evidence = np.minimum((evidence + BUCKET) * np.exp(llr), 1e100)
        took[(evidence >= 10_000) & np.isinf(took)] = (i + 1) * BUCKET
        passed += beyond
        low, _ = anytime_interval(passed, np.full(len(row), (i + 1.0) * BUCKET), 0.025)
        share = np.maximum(share, (low - normal) / (1 - normal) / 2)
    return took


def window(judged: Alarmed, counts: NDArray[np.int64], images: int = 300) -> Floats:
    """No more than normal (its upper bound) beyond the cut of the cause in the last so many images."""
    cut, row = judged.state["cause"] // BETS, np.arange(len(judged.state))
    total = np.cumsum(counts[:, row, cut], axis=0)
    size = images // BUCKET
    inside = np.concatenate([total[size - 1 : size], total[size:] - total[:-size]])
    calm = inside <= judged.state["upper"][row, cut] * images
    return np.where(calm.any(axis=0), (calm.argmax(axis=0) + size) * BUCKET, np.inf)


IDEAS: dict[str, Callable[[Alarmed, NDArray[np.int64]], Floats]] = {
    "1 % on the cause's cut (as before)": one_percent,
    "window of 300 images not above normal": window,
    "half of what is proven since the alarm": proven,
    "half, cause's cut, 1e4": lambda j, c: reverse(j, c, of_the_bets(j, 0.5, 0, cause_only=True), 10_000),
    "half, all cuts, 1e4": lambda j, c: reverse(j, c, of_the_bets(j, 0.5, 0), 10_000),
    "half, all cuts, 1e3": lambda j, c: reverse(j, c, of_the_bets(j, 0.5, 0), 1000),
    "third, all cuts, 1e3": lambda j, c: reverse(j, c, of_the_bets(j, 1 / 3, 0), 1000),
    "half less one sd, all cuts, 1e4": lambda j, c: reverse(j, c, of_the_bets(j, 0.5, 1), 10_000),
    "half less one sd, all cuts, 3e3 (chosen)": lambda j, c: reverse(j, c, of_the_bets(j, 0.5, 1), 3000),
}


def compare(streams: int, rng: np.random.Generator) -> dict[str, Any]:
    """Every idea, on every kind and share of drift."""
    found: dict[str, Any] = {}
    print("Images to the all-clear, median / 95 %, and in brackets all-clears per 10^4 images while the drift goes on")
    for kind in ("shift", "spread", 1.5):
        cases = {share: alarmed(kind, share, streams, rng) for share in (1.0, 0.3, 0.1)}
        name = f"moved by {kind} sd" if isinstance(kind, float) else str(kind)
        print(f"\n{name:42}" + "".join(f"{f'{share:.0%}':>22}" for share in cases))
        for idea, judge in IDEAS.items():
            row = {}
            for share, judged in cases.items():
                took, wrong = judge(judged, judged.normal), judge(judged, judged.drifting)
                row[f"{share:.0%}"] = {
                    "median": quantile(took, 0.5),
                    "q95": quantile(took, 0.95),
                    "wrong": float(np.isfinite(wrong).sum() * 1e4 / np.minimum(wrong, WATCHED).sum()),
                }
            cells = (f"{r['median']:6.0f} /{r['q95']:6.0f} ({r['wrong']:.2f})" for r in row.values())
            print(f"{idea:42}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
            found.setdefault(name, {})[idea] = row
    return found


def quantile(took: Floats, share: float) -> float:
    """The least number within which that share of the streams cleared."""
    return float(np.quantile(took, share, method="higher")) if len(took) else float("nan")


# ------------------------------------------------------------------------------------------------ real scores


class Streams:
    """Streams of real scores under one rule."""

    def __init__(self, played: Played, rule: Sequential, streams: int) -> None:
        self.played, self.rule, self.streams, self.bucket = played, rule, streams, 0
        self.state = initial(rule, played.layout, streams)

    def feed(self, name: str, share: float = 1.0) -> NDArray[np.bool_]:
        """(K,) which fired before a bucket of which that share is of the set `name`, the others normal."""
        return self.advance(self.played.bucket(name, share, self.streams))

    def advance(self, vectors: Counts) -> NDArray[np.bool_]:
        before: NDArray[np.bool_] = self.state["firing"].copy()
        self.bucket += 1
        self.state, _ = advance(self.rule, self.played.layout, self.state, self.bucket, vectors)
        return before


def real(played: Played, streams: int) -> dict[str, Any]:
    """Every set at every share: alarm, go on for 600 images, end."""
    source = Streams(played, Sequential(signals=("*",), bucket_s=BUCKET, seconds_per_false_alarm=30 * DAY_S), streams)
    for _ in range(CLEAN // BUCKET):
        source.feed("normal")
    start, found = source.state, dict[str, Any]()
    print(f"\nReal scores, all signals: {len(played.layout.signals)}; {streams} streams, drift for 2,000 images")
    print(f"{'':18}{'fired':>8}{'median':>8}{'95 %':>8}   all-clears per 10^4 images of drift")
    for name in played.drifts:
        for share in (1.0, 0.3, 0.1):
            source.state, wrong, fired = start, 0, 0
            for _ in range(200):
                before = source.feed(name, share)
                wrong, fired = wrong + int((before & ~source.state["firing"]).sum()), fired + BUCKET * int(before.sum())
            rows = source.state["firing"].copy()
            took = np.full(streams, np.inf)
            for i in range(300):
                source.feed("normal")
                took[~source.state["firing"] & np.isinf(took)] = (i + 1) * BUCKET
            took = took[rows]
            row = {
                "fired": float(rows.mean()),
                "median": quantile(took, 0.5),
                "q95": quantile(took, 0.95),
                "wrong": wrong * 1e4 / max(fired, 1),
            }
            shown = f"{row['fired']:8.0%}{row['median']:8.0f}{row['q95']:8.0f}{row['wrong']:10.2f}"
            print(f"{f'{name} {share:.0%}':18}{shown}", flush=True)
            found[f"{name} {share:.0%}"] = row
    found["weakens"] = weakens(source, start)
    return found


def weakens(source: Streams, start: State) -> dict[str, float]:
    """30 % of another set for 1,000 images, then 5 %: the share of streams that fire 3,000 images later."""
    source.state, name, resolved = start, "dtd10", np.zeros(source.streams, dtype=bool)
    for _ in range(100):
        source.feed(name, 0.3)
    for _ in range(300):
        before = source.feed(name, 0.05)
        resolved |= before & ~source.state["firing"]
    row = {"fires": float(source.state["firing"].mean()), "resolved between": float(resolved.mean())}
    shown = f"after 3,000 images {row['fires']:.0%} fire; {row['resolved between']:.0%} had resolved between"
    print(f"{name}: from 30 to 5 %: {shown}", flush=True)
    return row


def again(played: Played, repeats: int) -> dict[str, int]:
    """Clips of a small reference: how many of them alarm, by the bets as they were and by the new ones."""
    found: dict[str, int] = {}
    signals = tuple(s for s in played.layout.signals if s != "seen")
    print(f"\nA clip of {CLIP} images of a reference of {SMALL}, played again: alarms in {repeats} repetitions")
    for clip in ("at random", "stretch"):
        counts = [played.clip(clip) for _ in range(repeats)]
        for name, layout in (
            ("bets in both directions", both_ways(without_seen(played.small))),
            ("without `seen`", without_seen(played.small)),
            ("with `seen`", played.small),
        ):
            rule = Sequential(signals=signals, bucket_s=BUCKET)
            state, alarms = initial(rule, layout, repeats), np.zeros(repeats, dtype=bool)
            for bucket in range(len(counts[0])):
                vectors = np.stack([clip_counts[bucket] for clip_counts in counts])
                state, _ = advance(rule, layout, state, bucket, vectors)
                alarms |= state["firing"]
            found[f"{clip}, {name}"] = int(alarms.sum())
            print(f"  {clip:10} {name:40} {int(alarms.sum()):4}", flush=True)
    return found


def both_ways(layout: Layout) -> Layout:
    """All signals as if they were properties: bets in both directions."""
    return replace(layout, learned=(False,) * len(layout.signals), mix=())


def without_seen(layout: Layout) -> Layout:
    """The signal under another name, which tells the rule nothing."""
    return replace(layout, signals=tuple("other" if s == "seen" else s for s in layout.signals))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of tar files of images")
    parser.add_argument(
        "--cache", type=Path, default=Path("results/real_scores.npz"), help="scores, made where missing"
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/alarm_ends.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"ideas": compare(options.streams, np.random.default_rng(0))}
    if options.data or options.cache.exists():
        played = Played(scored(options.cache, options.data), np.random.default_rng(1))
        found["real"] = real(played, min(options.streams, 40))
        found["again"] = again(played, options.streams)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
