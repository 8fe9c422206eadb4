"""What is shown of one stream: its time line, what moved, and its most unusual images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import Field

from monitor.core.alert_document import Direction, Triage
from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import IMAGES, REJECTED, Layout, cut_index, exceedances, sum_vectors
from monitor.core.steps import DAY_MS, HOUR_MS
from monitor.core.types import Alert, Exemplar, Partition, Vector
from monitor.fleet.answers import Answer, Count, Rounded, Time
from monitor.fleet.counts import bands
from monitor.fleet.evidence import REACH_MS, evidence_span, stream_evidence
from monitor.fleet.history import LEVEL
from monitor.fleet.images import ExemplarJson, MixJson, shift_of_the_mix, shown
from monitor.fleet.overview import Snapshot
from monitor.fleet.spread import Spread, widest
from monitor.fleet.warming import WarmingJson, warming
from monitor.rules.rule import Rule
from monitor.store import Store

EVIDENCE_MS = 300_000
"""Length of the evidence of a stream without an alert."""
MARGIN_MS = 600_000
"""Shown before an alert began and after it ended."""
LINE_MS, LONGEST_LINE_MS = 3_600_000, 3 * 3_600_000
"""One bucket is one small read; three hours of ten-second buckets are a thousand."""
SPANS_MS = MappingProxyType(
    {"1h": LINE_MS, "6h": 6 * HOUR_MS, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS, "90d": 90 * DAY_MS}
)
"""Lengths that a time line may be asked for in; the first is what a stream without an alert shows."""
POINTS = 90
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600, 7200, 14_400, 28_800, 86_400)
EXEMPLARS, EXEMPLARS_IN_SHORT, TYPICAL = 12, 4, 6

Buckets = Mapping[str, Mapping[int, Vector]]
"""{fingerprint: {bucket start ms: counts of the stream}}."""


class PointJson(Answer):
    start: Time
    images: Count
    rejected: Count
    share: Rounded | None
    band: Annotated[list[Rounded], Field(min_length=2, max_length=2)] | None
    """Where the share of normal images lies, at 99 %."""


class SignalJson(Answer):
    signal: str
    learned: bool
    effect: Rounded
    """Share of images that must have changed."""
    bound: Rounded
    """What it surely is at least; 0: not sure."""
    direction: Direction
    """low: more unusual than normal."""
    histogram: Annotated[list[Count], Field(min_length=9, max_length=9)]
    """Images per range of p-values: above .5, then down to .2, .1, .05, .02, .01, .005, .002, and below."""
    mix: bool
    """It places images within the reference: neither end is unusual."""


class EvidenceJson(Answer):
    since: Time
    until: Time
    images: Count
    triage: Triage | None
    signals: list[SignalJson]
    causes: list[str]
    """Signals that raised an alert under way: they have moved, whatever their bound."""
    layout: Layout | None = Field(exclude=True)
    """Of the profile that judged the newest images; None where there were none."""


@dataclass(frozen=True, slots=True)
class StreamView:
    """One stream during one of its alerts, or over its last minutes."""

    focus: Alert | None
    """The alert that it is about: the one asked for, else the first active one."""
    evidence: EvidenceJson
    exemplars: Sequence[ExemplarJson]
    """The most unusual first."""
    typical: Sequence[ExemplarJson]
    """What this stream usually shows, the latest first; from before the alert began, where such are kept."""
    points: Sequence[PointJson]
    step_ms: int
    by_condition: Mapping[str, int] = field(default_factory=dict)
    """Images of the time line by their condition, "" without one; empty where the stream has no conditions."""
    spread: Spread | None = None
    """The signal whose counts vary most for what the profile assumes, in the calm part of the time line."""
    mix: MixJson | None = None
    """How the mix of images moved, where that is what the evidence says."""
    warming: Sequence[WarmingJson] = ()
    """Rules that have too few images to judge now."""
    worst: Sequence[Exemplar] = ()
    """`exemplars` as they are kept."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a stream."""

    alert_id: str = ""
    """The alert that the view is about; without one the most urgent."""
    span: str = ""
    """Key of SPANS_MS: the time line is that long and ends now; "" for what suits the alert."""
    in_short: bool = False
    """Read the evidence and a few images; leave the rest empty."""
    rules: Sequence[Rule] = ()
    """Those that watch it, for what they still wait for."""


def view_stream(store: Store, snapshot: Snapshot, name: str, asked: Asked = Asked()) -> StreamView:
    """Look at a stream of the snapshot, at the time of an alert where there is one.

    Raises:
        StoreError: Redis does not answer.
    """
    alert_id, span, in_short = asked.alert_id, asked.span, asked.in_short
    stream, layouts = snapshot.streams.get(name), snapshot.layouts
    partitions = (stream.partitions if stream else ()) or snapshot.partitions
    last_ms = (stream.last_event if stream else None) or snapshot.high_ms
    alerts = [alert for alert in snapshot.alerts if alert.stream == name]
    focus = _focus(alerts, alert_id)
    since_ms, until_ms = last_ms + 1 - EVIDENCE_MS, last_ms + 1
    if focus is not None:
        signals = {signal for layout in layouts.values() for signal in layout.signals}
        since_ms, until_ms = evidence_span(signals, alerts, focus, until_ms)
    line_since, line_until = (until_ms, until_ms) if in_short else _line_span(focus, last_ms, until_ms)
    if span:
        line_since, line_until = last_ms + 1 - SPANS_MS[span], last_ms + 1
    first_ms = min(line_since, since_ms)
    buckets = {f: store.counts.of_stream(partitions, f, name, (first_ms, line_until)) for f in layouts}
    points, step_ms = _points(layouts, buckets, line_since)
    by_condition = _by_condition(layouts, buckets, line_since)
    inside = {
        f: {start: vector for start, vector in held.items() if since_ms <= start < until_ms}
        for f, held in buckets.items()
    }
    own = [f for f, layout in layouts.items() if focus and focus.condition and layout.condition == focus.condition]
    if own and focus and not any(inside[f] for f in own):  # its condition is not in force: how it began
        since_ms, until_ms = focus.since_ms, min(focus.since_ms + REACH_MS, until_ms)
        inside |= {f: dict(store.counts.of_stream(partitions, f, name, (since_ms, until_ms))) for f in own}
    judged = {f: max(held) for f, held in inside.items() if held and (f in own or not own)}
    judged = {f: last for f, last in judged.items() if any(v[IMAGES] for v in inside[f].values())} or judged
    if not judged:
        evidence = EvidenceJson(
            since=since_ms, until=until_ms, images=0, triage=None, signals=[], causes=[], layout=None
        )
        return StreamView(focus, evidence, (), (), points, step_ms, by_condition)
    newest = max(judged, key=judged.__getitem__)
    layout = layouts[newest]
    found = stream_evidence(layout, inside[newest].values(), alerts, until_ms)
    evidence = EvidenceJson(
        since=since_ms,
        until=until_ms,
        images=found.images,
        triage=found.triage,
        signals=[SignalJson.model_validate(signal) for signal in found.moved],
        causes=list(found.causes),
        layout=layout,
    )
    limit = EXEMPLARS_IN_SHORT if in_short else EXEMPLARS
    worst = store.exemplars.unusual(partitions, newest, name, since_ms, until_ms, limit)
    kept = [] if in_short else store.exemplars.typical(partitions, newest, name)
    before = [exemplar for exemplar in kept if focus is None or exemplar.event_time_ms < focus.since_ms]
    typical = (before or kept)[:TYPICAL]
    large = frozenset() if in_short else store.pictures.names(partitions, worst)
    heat = {} if in_short else store.pictures.heat(partitions, worst)
    sample = [] if in_short else store.exemplars.sample(partitions, newest, name, (since_ms, until_ms))
    return StreamView(
        focus=focus,
        evidence=evidence,
        exemplars=shown(worst, layout, large, heat),
        typical=shown(typical, layout),
        points=points,
        step_ms=step_ms,
        by_condition=by_condition,
        spread=None if in_short or focus or span else widest(layout, _calm(buckets[newest], line_since, alerts)),
        warming=_warming(store, partitions, name, asked.rules, last_ms + 1),
        worst=worst,
        mix=None if in_short else shift_of_the_mix(store, found, sample, layout, newest),
    )


def _focus(alerts: Sequence[Alert], alert_id: str) -> Alert | None:
    asked = next((alert for alert in alerts if alert.id == alert_id), None)
    # where several rules fire, the one that saw it first explains most of it
    active = [alert for alert in alerts if alert.phase in UNDER_WAY]
    return asked or min(active, key=lambda alert: (UNDER_WAY.index(alert.phase), alert.since_ms), default=None)


def _warming(
    store: Store, partitions: Sequence[Partition], name: str, rules: Sequence[Rule], until_ms: int
) -> list[WarmingJson]:
    """Now, whatever time the view is about."""
    if not rules:
        return []
    hour = until_ms - LINE_MS, until_ms
    held = {f: store.counts.of_stream(partitions, f, name, hour) for f in store.catalog.layouts()}
    return list(warming(store, partitions, rules, name, (held, until_ms)))


def _line_span(focus: Alert | None, last_ms: int, evidence_until_ms: int) -> tuple[int, int]:
    """[since, until) of the time line: the last hour, or the time of the alert with a margin on both sides."""
    if focus is None:
        return last_ms + 1 - LINE_MS, last_ms + 1
    until_ms = max(evidence_until_ms, min(last_ms + 1, evidence_until_ms + MARGIN_MS))
    return max(min(until_ms - LINE_MS, focus.since_ms - MARGIN_MS), until_ms - LONGEST_LINE_MS), until_ms


def _points(layouts: Mapping[str, Layout], buckets: Buckets, since_ms: int) -> tuple[list[PointJson], int]:
    """The time line in at most POINTS steps of a round length, and that length in ms."""
    starts = sorted({start for held in buckets.values() for start in held if start >= since_ms})
    if not starts:
        return [], STEPS_S[0] * 1000
    shortest = min((b - a for a, b in pairwise(starts)), default=0)
    wanted = max((starts[-1] - starts[0]) / POINTS, shortest)
    step_ms = next((s * 1000 for s in STEPS_S if s * 1000 >= wanted), -(-int(wanted) // 300_000) * 300_000)
    steps: dict[int, dict[str, list[Vector]]] = {}
    for fingerprint, held in buckets.items():
        for start, vector in held.items():
            if start >= since_ms:
                steps.setdefault(start // step_ms * step_ms, {}).setdefault(fingerprint, []).append(vector)
    return [_point(layouts, start, steps[start]) for start in sorted(steps)], step_ms


def _calm(held: Mapping[int, Vector], since_ms: int, alerts: Sequence[Alert]) -> dict[int, Vector]:
    """Buckets of the time line in which no alert was under way: the begin and the end of one vary the counts, too."""
    over = [(alert.since_ms, alert.resolved_ms) for alert in alerts if alert.resolved_ms]
    calm = (start for start in held if start >= since_ms and not any(a <= start < b for a, b in over))
    return {start: held[start] for start in calm}


def _by_condition(layouts: Mapping[str, Layout], buckets: Buckets, since_ms: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for fingerprint, held in buckets.items():
        found[layouts[fingerprint].condition] += sum(int(v[IMAGES]) for start, v in held.items() if start >= since_ms)
    images = {condition: count for condition, count in sorted(found.items()) if count}
    return images if any(images) else {}


def _point(layouts: Mapping[str, Layout], start: int, held: Mapping[str, Sequence[Vector]]) -> PointJson:
    """Where the profile changed within a step, the band is that of the one with more images."""
    sums = {fingerprint: sum_vectors(vectors) for fingerprint, vectors in held.items()}
    images = sum(int(vector[IMAGES]) for vector in sums.values())
    rejected = sum(int(vector[REJECTED]) for vector in sums.values())
    if images == 0:
        return PointJson(start=start, images=0, rejected=rejected, share=None, band=None)
    passed = sum(int(exceedances(layouts[f], vector, "ood")[cut_index(LEVEL)]) for f, vector in sums.items())
    main = max(sums, key=lambda fingerprint: int(sums[fingerprint][IMAGES]))
    (lower,), (upper,) = bands(layouts[main], LEVEL, np.array([images]))
    return PointJson(start=start, images=images, rejected=rejected, share=passed / images, band=[lower, upper])
