"""What is shown of one stream: its time line, what moved, and its most unusual images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from monitor.core.alert_document import rfc3339
from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import IMAGES, REJECTED, Layout, cut_index, exceedances, sum_vectors
from monitor.core.types import Alert, Exemplar, Partition, Vector
from monitor.fleet.counts import band
from monitor.fleet.history import LEVEL
from monitor.fleet.overview import Snapshot
from monitor.rules.evidence import MovedSignal, cause_is_learned, moved_signals, triage
from monitor.store import Store
from monitor.web.drawing import Point

EVIDENCE_MS = 300_000
"""What a calm stream's evidence looks back on."""
AROUND_MS = 600_000
"""Shown before an alert began and after it ended."""
LINE_MS, LONGEST_LINE_MS = 3_600_000, 3 * 3_600_000
"""One bucket is one small read; three hours of ten-second buckets are a thousand."""
POINTS = 90
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300)
SIGNALS = 8
EXEMPLARS, TYPICAL, AT_A_GLANCE = 12, 6, 4


@dataclass(frozen=True)
class StreamView:
    """One stream around one of its alerts, or over its last minutes."""

    focus: Alert | None
    """The alert that it is about: the one asked for, else the first under way."""
    since_ms: int
    until_ms: int
    """Of the evidence: [since, until)."""
    points: Sequence[Point]
    step_ms: int
    layout: Layout | None
    """Of the profile that judged the evidence; None where there is none."""
    images: int
    moved: Sequence[MovedSignal]
    triage: str | None
    exemplars: Sequence[Exemplar]
    """The most unusual first."""
    typical: Sequence[Exemplar]
    """What this stream usually shows, the latest first; from before the alert began, where such are kept."""

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        signals = self.layout.signals if self.layout else ()
        return {
            "evidence": {
                "since": rfc3339(self.since_ms),
                "until": rfc3339(self.until_ms),
                "images": self.images,
                "triage": self.triage,
                "signals": [_signal_json(moved) for moved in self.moved],
            },
            "exemplars": [_exemplar_json(exemplar, signals) for exemplar in self.exemplars],
            "typical": [_exemplar_json(exemplar, signals) for exemplar in self.typical],
            "step_s": self.step_ms / 1000,
            "history": [_point_json(point) for point in self.points],
        }


def view_stream(store: Store, snapshot: Snapshot, name: str, alert_id: str = "") -> StreamView:
    """Look at a stream of the snapshot.

    Raises:
        StoreError: Redis does not answer.
    """
    own = [alert for alert in snapshot.alerts if alert.stream == name]
    focus = next((alert for alert in own if alert.id == alert_id), None)
    # where several rules fire, the one that saw it first tells most of it
    under_way = [alert for alert in own if alert.phase in UNDER_WAY]
    focus = focus or min(under_way, key=lambda alert: (UNDER_WAY.index(alert.phase), alert.since_ms), default=None)
    last_ms = snapshot.rows[name].last_event_ms or snapshot.high_ms
    since_ms, until_ms = _evidence_span(focus, last_ms)
    line_until = last_ms + 1 if focus is None else max(until_ms, min(last_ms + 1, until_ms + AROUND_MS))
    line_since = line_until - LINE_MS
    if focus is not None:
        line_since = max(min(line_since, focus.since_ms - AROUND_MS), line_until - LONGEST_LINE_MS)
    layouts, read = _read(store, snapshot, name, min(line_since, since_ms), line_until)
    points, step_ms = _points(layouts, read, line_since)
    judged_by, window = _window(read, since_ms, until_ms)
    if judged_by is None or window is None:
        return StreamView(focus, since_ms, until_ms, points, step_ms, None, 0, (), None, (), ())
    layout = layouts[judged_by]
    moved = moved_signals(layout, window, limit=SIGNALS)
    cause = cause_is_learned(layout, focus.verdict.cause) if focus and focus.verdict else None
    places = _partitions(snapshot, name)
    worst = store.exemplars.unusual(places, judged_by, name, since_ms, until_ms, EXEMPLARS)
    kept = store.exemplars.typical(places, judged_by, name)
    before = [exemplar for exemplar in kept if focus is None or exemplar.event_time_ms < focus.since_ms]
    counted = int(window[IMAGES])
    return StreamView(
        focus,
        since_ms,
        until_ms,
        points,
        step_ms,
        layout,
        counted,
        moved,
        triage(moved, cause),
        worst,
        (before or kept)[:TYPICAL],
    )


@dataclass(frozen=True, slots=True)
class Glance:
    """What an alert under way looks like, in short."""

    triage: str | None = None
    exemplars: Sequence[Exemplar] = ()


def glance(store: Store, snapshot: Snapshot, alert: Alert) -> Glance:
    """Sensor or content, and a few of the worst images.

    Raises:
        StoreError: Redis does not answer.
    """
    row = snapshot.rows.get(alert.stream)
    if row is None:
        return Glance()
    since_ms, until_ms = _evidence_span(alert, row.last_event_ms)
    layouts, read = _read(store, snapshot, alert.stream, since_ms, until_ms)
    judged_by, window = _window(read, since_ms, until_ms)
    if judged_by is None or window is None:
        return Glance()
    cause = cause_is_learned(layouts[judged_by], alert.verdict.cause) if alert.verdict else None
    told = triage(moved_signals(layouts[judged_by], window, limit=SIGNALS), cause)
    places = _partitions(snapshot, alert.stream)
    return Glance(told, store.exemplars.unusual(places, judged_by, alert.stream, since_ms, until_ms, AT_A_GLANCE))


def _read(
    store: Store, snapshot: Snapshot, name: str, since_ms: int, until_ms: int
) -> tuple[dict[str, Layout], dict[str, dict[int, Vector]]]:
    """(layouts, {fingerprint: {bucket start ms: counts of the stream}})."""
    layouts = {
        fingerprint: layout for fingerprint, layout in store.catalog.layouts().items() if "ood" in layout.signals
    }
    places = _partitions(snapshot, name)
    return layouts, {f: store.counts.of_stream(places, f, name, since_ms, until_ms) for f in layouts}


def _partitions(snapshot: Snapshot, name: str) -> tuple[Partition, ...]:
    """Where a stream's images come from; every partition where that is not known."""
    row = snapshot.rows.get(name)
    return row.partitions if row is not None and row.partitions else tuple(snapshot.cursors)


def _evidence_span(focus: Alert | None, last_ms: int) -> tuple[int, int]:
    """From when to when to look for what moved: an alert's own time, the newest hour of it at most."""
    if focus is None:
        return last_ms + 1 - EVIDENCE_MS, last_ms + 1
    until_ms = focus.resolved_ms or last_ms + 1
    return max(min(focus.since_ms, until_ms - 1), until_ms - LINE_MS), until_ms


def _window(read: Mapping[str, Mapping[int, Vector]], since_ms: int, until_ms: int) -> tuple[str | None, Vector | None]:
    """(fingerprint, counts) of the profile that judged the newest bucket of the span."""
    newest: tuple[int, str] | None = None
    for fingerprint, buckets in read.items():
        inside = [start for start in buckets if since_ms <= start < until_ms]
        if inside and (newest is None or max(inside) > newest[0]):
            newest = max(inside), fingerprint
    if newest is None:
        return None, None
    buckets = read[newest[1]]
    return newest[1], sum_vectors([vector for start, vector in buckets.items() if since_ms <= start < until_ms])


def _points(
    layouts: Mapping[str, Layout], read: Mapping[str, Mapping[int, Vector]], since_ms: int
) -> tuple[list[Point], int]:
    """The time line in at most POINTS steps of a round length, and that length in ms."""
    starts = sorted({start for buckets in read.values() for start in buckets if start >= since_ms})
    if not starts:
        return [], STEPS_S[0] * 1000
    shortest = min((b - a for a, b in pairwise(starts)), default=0)
    wanted = max((starts[-1] - starts[0]) / POINTS, shortest)
    step_ms = next((s * 1000 for s in STEPS_S if s * 1000 >= wanted), -(-int(wanted) // 300_000) * 300_000)
    steps: dict[int, dict[str, list[Vector]]] = {}
    for fingerprint, buckets in read.items():
        for start, vector in buckets.items():
            if start >= since_ms:
                steps.setdefault(start // step_ms * step_ms, {}).setdefault(fingerprint, []).append(vector)
    return [_point(layouts, start, steps[start]) for start in sorted(steps)], step_ms


def _point(layouts: Mapping[str, Layout], start: int, held: Mapping[str, Sequence[Vector]]) -> Point:
    """Where the profile changed within a step, the band is that of the one with more images."""
    sums = {fingerprint: sum_vectors(list(vectors)) for fingerprint, vectors in held.items()}
    images = sum(int(vector[IMAGES]) for vector in sums.values())
    rejected = sum(int(vector[REJECTED]) for vector in sums.values())
    if images == 0:
        return Point(start, 0, 0.0, 0.0, 0.0, rejected)
    passed = sum(int(exceedances(layouts[f], vector, "ood")[cut_index(LEVEL)]) for f, vector in sums.items())
    main = max(sums, key=lambda fingerprint: int(sums[fingerprint][IMAGES]))
    return Point(start, images, passed / images, *band(layouts[main], LEVEL, images), rejected)


def picture_address(jpeg: bytes) -> str:
    """A thumbnail as a data: address; thumbnails are JPEGs that we made ourselves."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _signal_json(moved: MovedSignal) -> dict[str, Any]:
    return {
        "signal": moved.signal,
        "learned": moved.learned,
        "effect": round(moved.effect, 6),
        "bound": round(moved.bound, 6),
        "direction": moved.direction,
        "histogram": list(moved.histogram),
    }


def _exemplar_json(exemplar: Exemplar, signals: Sequence[str]) -> dict[str, Any]:
    return {
        "id": exemplar.id,
        "event_time": rfc3339(exemplar.event_time_ms),
        "p_value": exemplar.p_value,
        "p_values": dict(zip(signals, exemplar.p_values, strict=False)),
        "thumbnail": picture_address(exemplar.thumbnail) if exemplar.thumbnail else None,
    }


def _point_json(point: Point) -> dict[str, Any]:
    return {
        "start": rfc3339(point.start_ms),
        "images": point.images,
        "rejected": point.rejected,
        "share": round(point.share, 6) if point.images else None,
        "band": [round(point.lower, 6), round(point.upper, 6)] if point.images else None,
    }
