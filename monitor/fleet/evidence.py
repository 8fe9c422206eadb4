"""The evidence about one stream at one moment: one answer for all its alerts, in documents and on pages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from monitor.core.alert_document import MovedSignal, Triage
from monitor.core.buckets import IMAGES, Layout, empty, sum_vectors
from monitor.core.types import Alert, Vector
from monitor.rules.evidence import moved_signals, triage

REACH_MS = 3_600_000
"""Evidence of an alert reaches back to where it began, but no further than this."""


@dataclass(frozen=True, slots=True)
class StreamEvidence:
    """What a stream's images showed in a span, by the profile that judged them."""

    images: int
    moved: Sequence[MovedSignal]
    """Those that moved, and those that raised an alert under way."""
    causes: Sequence[str]
    """Signals that raised an alert under way at the end of the span."""
    triage: Triage | None


def under_way(alerts: Iterable[Alert], at_ms: int) -> list[Alert]:
    """The alerts of one stream that had fired by then and were not resolved before; `at_ms` is the end of a bucket."""
    return [a for a in alerts if a.fired_ms and a.fired_ms <= at_ms and (not a.resolved_ms or a.resolved_ms >= at_ms)]


def evidence_span(signals: Collection[str], alerts: Sequence[Alert], focus: Alert, end_ms: int) -> tuple[int, int]:
    """[since, until) of the evidence of an alert.

    It begins where the newest drift of the stream began: two rules that fire on one drift then look at the same images.
    An alert about something else has its own span only while the stream does not drift.

    Args:
        signals: of the profiles that judge the stream: an alert is about drift where one of them raised it.
        alerts: those of the stream, the focus among them.
        end_ms: end of the newest bucket; a resolved alert ends where it was resolved.
    """
    until_ms = focus.resolved_ms or max(end_ms, focus.fired_ms)
    drifting = [a for a in under_way(alerts, until_ms) if _cause(a) in signals]
    since_ms = max((a.since_ms for a in drifting), default=focus.since_ms)
    return max(min(since_ms, until_ms - 1), until_ms - REACH_MS), until_ms


def stream_evidence(
    layout: Layout, vectors: Iterable[Vector], alerts: Iterable[Alert], until_ms: int
) -> StreamEvidence:
    """The evidence in the counts of a span.

    Args:
        vectors: the stream's buckets of the span.
        alerts: those of the stream; the drift alerts among them that are under way prove that their signals moved.
        until_ms: end of the span.
    """
    held = list(vectors)
    window = sum_vectors(held) if held else empty(layout)
    causes = sorted({signal for alert in under_way(alerts, until_ms) if (signal := _cause(alert)) in layout.signals})
    moved = moved_signals(layout, window, causes)
    return StreamEvidence(int(window[IMAGES]), moved, causes, triage(moved, causes))


def _cause(alert: Alert) -> str:
    """The signal that its cause names ("noise: more images ..."); no signal where it names none."""
    return alert.verdict.cause.partition(":")[0] if alert.verdict else ""
