"""What is shown of one stream: its time line, what moved, and its most unusual images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from monitor.core.alert_document import MovedSignal, Triage
from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import IMAGES, REJECTED, Layout, cut_index, exceedances, sum_vectors
from monitor.core.types import Alert, Exemplar, Vector
from monitor.fleet.counts import band
from monitor.fleet.history import LEVEL
from monitor.fleet.overview import Snapshot
from monitor.rules.evidence import cause_is_learned, moved_signals, triage
from monitor.store import Store

EVIDENCE_MS = 300_000
"""Length of the evidence of a stream without an alert."""
MARGIN_MS = 600_000
"""Shown before an alert began and after it ended."""
LINE_MS, LONGEST_LINE_MS = 3_600_000, 3 * 3_600_000
"""One bucket is one small read; three hours of ten-second buckets are a thousand."""
POINTS = 90
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300)
SIGNALS = 8
EXEMPLARS, TYPICAL, EXEMPLARS_IN_SHORT = 12, 6, 4

Buckets = Mapping[str, Mapping[int, Vector]]
"""{fingerprint: {bucket start ms: counts of the stream}}."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a stream's time line."""

    start_ms: int
    images: int
    share: float
    """Of images with p <= .05."""
    lower: float
    upper: float
    """Band in which `share` lies in distribution, at 99 %."""
    rejected: int


@dataclass(frozen=True, slots=True)
class StreamEvidence:
    """What the images of one stream show in a span of time."""

    since_ms: int
    until_ms: int
    """[since, until)."""
    fingerprint: str = ""
    """Of the profile that judged the newest images; empty where there were none."""
    layout: Layout | None = None
    """Of that profile."""
    images: int = 0
    moved: Sequence[MovedSignal] = ()
    triage: Triage | None = None
    exemplars: Sequence[Exemplar] = ()
    """The most unusual first."""


@dataclass(frozen=True, slots=True)
class StreamView:
    """One stream during one of its alerts, or over its last minutes."""

    focus: Alert | None
    """The alert that it is about: the one asked for, else the first active one."""
    evidence: StreamEvidence
    points: Sequence[Point]
    step_ms: int
    typical: Sequence[Exemplar] = ()
    """What this stream usually shows, the latest first; from before the alert began, where such are kept."""


def view_stream(store: Store, snapshot: Snapshot, name: str, alert_id: str = "") -> StreamView:
    """Look at a stream of the snapshot, at the time of that alert where there is one.

    Raises:
        StoreError: Redis does not answer.
    """
    mine = [alert for alert in snapshot.state.alerts if alert.stream == name]
    focus = next((alert for alert in mine if alert.id == alert_id), None)
    # where several rules fire, the one that saw it first explains most of it
    active = [alert for alert in mine if alert.phase in UNDER_WAY]
    focus = focus or min(active, key=lambda alert: (UNDER_WAY.index(alert.phase), alert.since_ms), default=None)
    last_ms = _last_ms(snapshot, name)
    since_ms, until_ms = _evidence_span(focus, last_ms)
    line_until = last_ms + 1 if focus is None else max(until_ms, min(last_ms + 1, until_ms + MARGIN_MS))
    line_since = line_until - LINE_MS
    if focus is not None:
        line_since = max(min(line_since, focus.since_ms - MARGIN_MS), line_until - LONGEST_LINE_MS)
    buckets = _read(store, snapshot, name, min(line_since, since_ms), line_until)
    points, step_ms = _points(snapshot.state.layouts, buckets, line_since)
    evidence = _evidence(store, snapshot, name, focus, buckets, EXEMPLARS)
    if not evidence.fingerprint:
        return StreamView(focus, evidence, points, step_ms)
    kept = store.exemplars.typical(snapshot.partitions_of(name), evidence.fingerprint, name)
    before = [exemplar for exemplar in kept if focus is None or exemplar.event_time_ms < focus.since_ms]
    return StreamView(focus, evidence, points, step_ms, (before or kept)[:TYPICAL])


def evidence_in_short(store: Store, snapshot: Snapshot, alert: Alert) -> StreamEvidence:
    """The evidence of an active alert, with a few of its most unusual images.

    Raises:
        StoreError: Redis does not answer.
    """
    since_ms, until_ms = _evidence_span(alert, _last_ms(snapshot, alert.stream))
    buckets = _read(store, snapshot, alert.stream, since_ms, until_ms)
    return _evidence(store, snapshot, alert.stream, alert, buckets, EXEMPLARS_IN_SHORT)


def _evidence(
    store: Store, snapshot: Snapshot, name: str, focus: Alert | None, buckets: Buckets, exemplars: int
) -> StreamEvidence:
    since_ms, until_ms = _evidence_span(focus, _last_ms(snapshot, name))
    inside = {
        fingerprint: {start: vector for start, vector in held.items() if since_ms <= start < until_ms}
        for fingerprint, held in buckets.items()
    }
    judged = {fingerprint: max(held) for fingerprint, held in inside.items() if held}
    if not judged:
        return StreamEvidence(since_ms, until_ms)
    newest = max(judged, key=judged.__getitem__)
    layout, window = snapshot.state.layouts[newest], sum_vectors(inside[newest].values())
    moved = moved_signals(layout, window, limit=SIGNALS)
    cause = cause_is_learned(layout, focus.verdict.cause) if focus and focus.verdict else None
    worst = store.exemplars.unusual(snapshot.partitions_of(name), newest, name, since_ms, until_ms, exemplars)
    return StreamEvidence(since_ms, until_ms, newest, layout, int(window[IMAGES]), moved, triage(moved, cause), worst)


def _read(store: Store, snapshot: Snapshot, name: str, since_ms: int, until_ms: int) -> Buckets:
    partitions, layouts = snapshot.partitions_of(name), snapshot.state.layouts
    return {f: store.counts.of_stream(partitions, f, name, since_ms, until_ms) for f in layouts}


def _last_ms(snapshot: Snapshot, name: str) -> int:
    """The newest event time of the stream; of all streams where its own is not known."""
    row = snapshot.rows.get(name)
    return (row.last_event_ms if row else 0) or snapshot.state.high_ms


def _evidence_span(focus: Alert | None, last_ms: int) -> tuple[int, int]:
    """[since, until) of the evidence: the time of the alert, the newest hour of it at most."""
    if focus is None:
        return last_ms + 1 - EVIDENCE_MS, last_ms + 1
    until_ms = focus.resolved_ms or last_ms + 1
    return max(min(focus.since_ms, until_ms - 1), until_ms - LINE_MS), until_ms


def _points(layouts: Mapping[str, Layout], buckets: Buckets, since_ms: int) -> tuple[list[Point], int]:
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


def _point(layouts: Mapping[str, Layout], start: int, held: Mapping[str, Sequence[Vector]]) -> Point:
    """Where the profile changed within a step, the band is that of the one with more images."""
    sums = {fingerprint: sum_vectors(vectors) for fingerprint, vectors in held.items()}
    images = sum(int(vector[IMAGES]) for vector in sums.values())
    rejected = sum(int(vector[REJECTED]) for vector in sums.values())
    if images == 0:
        return Point(start, 0, 0.0, 0.0, 0.0, rejected)
    passed = sum(int(exceedances(layouts[f], vector, "ood")[cut_index(LEVEL)]) for f, vector in sums.items())
    main = max(sums, key=lambda fingerprint: int(sums[fingerprint][IMAGES]))
    return Point(start, images, passed / images, *band(layouts[main], LEVEL, images), rejected)
