"""The answers of the JSON API about streams; see `monitor.web.answers`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from monitor.core.alert_document import rfc3339
from monitor.core.types import Exemplar
from monitor.fleet.overview import Snapshot, StreamRow
from monitor.fleet.stream_view import Point, StreamView
from monitor.web.answers import AlertJson, Answer, Count, Rounded, Share, Time, optional_time
from monitor.web.presenter import AlertView


class StreamJson(Answer):
    applied: Count
    """Images counted since the state began."""
    rejected: Count
    """Records that could not be used."""
    rejected_by_reason: dict[str, Count]
    """Reason code -> records."""
    late: Count
    """Images that counted in a later bucket than their own."""
    duplicates: Count
    """Images identical to the one before."""
    changes: Count
    """Images whose size or mode differs from the one before."""
    ood_share: Share | None
    """Share of the last minute's images (event time) with p <= .05; null where there were none."""
    last_event: Time | None
    """Newest event time."""
    watermark: Time | None
    """Newest event time less the lateness."""
    alerts: list[str]
    """Rules that are pending or firing."""

    @classmethod
    def of(cls, row: StreamRow, **more: Any) -> Self:
        """The answer about one stream; `more` are the fields of a subclass."""
        return cls(
            applied=row.totals.applied,
            rejected=row.totals.rejected,
            late=row.totals.late,
            duplicates=row.totals.duplicates,
            changes=row.totals.changes,
            rejected_by_reason=dict(sorted(row.reasons.items())),
            ood_share=row.ood_share,
            last_event=optional_time(row.last_event_ms),
            watermark=optional_time(row.watermark_ms) if row.last_event_ms else None,
            alerts=list(row.alerts),
            **more,
        )


class StreamsJson(Answer):
    watermark: Time | None
    """Event time up to which every partition has been read."""
    streams: dict[str, StreamJson]

    @classmethod
    def of(cls, snapshot: Snapshot) -> StreamsJson:
        """The answer about all streams."""
        streams = {stream: StreamJson.of(row) for stream, row in snapshot.rows.items()}
        watermark_ms = snapshot.state.watermark_ms
        return cls(watermark=None if watermark_ms is None else rfc3339(watermark_ms), streams=streams)


class SignalJson(Answer):
    signal: str
    learned: bool
    effect: Rounded
    """Share of images that must have changed."""
    bound: Rounded
    """What it surely is at least; 0: not sure."""
    direction: Literal["low", "high"]
    """low: more unusual than normal."""
    histogram: Annotated[list[Count], Field(min_length=9, max_length=9)]
    """Images per range of p-values: above .5, then down to .2, .1, .05, .02, .01, .005, .002, and below."""


class EvidenceJson(Answer):
    since: Time
    until: Time
    images: Count
    triage: Literal["sensor", "content"] | None
    signals: list[SignalJson]


class ExemplarJson(Answer):
    id: str
    event_time: Time
    p_value: float
    p_values: dict[str, float]
    thumbnail: str | None
    """JPEG as a data: address, re-encoded by Layerwatch."""

    @classmethod
    def of(cls, exemplar: Exemplar, signals: Sequence[str]) -> ExemplarJson:
        """The answer about one image."""
        return cls(
            id=exemplar.id,
            event_time=rfc3339(exemplar.event_time_ms),
            p_value=exemplar.p_value,
            p_values=dict(zip(signals, exemplar.p_values, strict=False)),
            thumbnail=data_address(exemplar.thumbnail) if exemplar.thumbnail else None,
        )


class PointJson(Answer):
    start: Time
    images: Count
    rejected: Count
    share: Rounded | None
    band: Annotated[list[Rounded], Field(min_length=2, max_length=2)] | None
    """Where the share of normal images lies, at 99 %."""

    @classmethod
    def of(cls, point: Point) -> PointJson:
        """The answer about one step."""
        return cls(
            start=rfc3339(point.start_ms),
            images=point.images,
            rejected=point.rejected,
            share=point.share if point.images else None,
            band=[point.lower, point.upper] if point.images else None,
        )


class StreamViewJson(StreamJson):
    stream: str
    known_alerts: list[AlertJson]
    evidence: EvidenceJson
    exemplars: list[ExemplarJson]
    """The most unusual first."""
    typical: list[ExemplarJson]
    """What the stream usually shows (p >= .3), the latest first; from before the alert began where such are kept."""
    step_s: float
    """Length of a step of `history`."""
    history: list[PointJson]

    @classmethod
    def of_view(cls, name: str, row: StreamRow, alerts: Sequence[AlertView], view: StreamView) -> Self:
        """The answer about one stream with its time line and evidence."""
        evidence = view.evidence
        signals = evidence.layout.signals if evidence.layout else ()
        return cls.of(
            row,
            stream=name,
            known_alerts=[AlertJson.of(alert) for alert in alerts],
            evidence=EvidenceJson(
                since=rfc3339(evidence.since_ms),
                until=rfc3339(evidence.until_ms),
                images=evidence.images,
                triage=evidence.triage,
                signals=[SignalJson.model_validate(moved) for moved in evidence.moved],
            ),
            exemplars=[ExemplarJson.of(exemplar, signals) for exemplar in evidence.exemplars],
            typical=[ExemplarJson.of(exemplar, signals) for exemplar in view.typical],
            step_s=view.step_ms / 1000,
            history=[PointJson.of(point) for point in view.points],
        )


def data_address(jpeg: bytes) -> str:
    """A thumbnail as a data: address; Layerwatch encodes every thumbnail itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
