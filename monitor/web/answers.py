"""The answers of the JSON API, each described once: these types make both the JSON and its OpenAPI schema.

In the schema a type is called as here without `Json`; the text below a field is its description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from monitor.core.alert_document import rfc3339
from monitor.core.silences import Silence
from monitor.fleet.overview import Snapshot
from monitor.store import Store
from monitor.web.presenter import AlertView

Count: TypeAlias = Annotated[int, Field(ge=0)]
_ROUND = AfterValidator(lambda number: round(number, 6))
Rounded: TypeAlias = Annotated[float, _ROUND]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1), _ROUND]
Time: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        json_schema_extra={"format": "date-time"},
        description="RFC 3339, UTC, milliseconds.",
    ),
]


class Answer(BaseModel):
    """What all answers have in common: their fields are fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class ErrorJson(Answer):
    error: str


class SeverityJson(Answer):
    """Share of drifted images with its interval."""

    lower: float
    estimate: float
    upper: float


class AlertJson(Answer):
    alert_id: str
    rule: str
    kind: str
    """Kind of the rule."""
    stream: str
    phase: Literal["pending", "firing", "resolved"]
    since: Time | None
    fired_at: Time | None
    resolved_at: Time | None
    summary: str
    cause: str
    value: float | None
    bound: float | None
    threshold: float | None
    images: int | None
    severity: SeverityJson | None
    silenced_by: str | None
    """Id of the silence in force."""

    @classmethod
    def of(cls, view: AlertView) -> AlertJson:
        """The answer about one alert."""
        alert, verdict = view.alert, view.alert.verdict
        severity = verdict.severity if verdict else None
        return cls.model_validate(
            {
                "alert_id": alert.id,
                "rule": alert.rule,
                "kind": view.kind,
                "stream": alert.stream,
                "phase": str(alert.phase),
                "since": optional_time(alert.since_ms),
                "fired_at": optional_time(alert.fired_ms),
                "resolved_at": optional_time(alert.resolved_ms),
                "summary": verdict.summary if verdict else "",
                "cause": verdict.cause if verdict else "",
                **{name: getattr(verdict, name, None) for name in ("value", "bound", "threshold", "images")},
                "severity": dict(zip(SeverityJson.model_fields, severity, strict=True)) if severity else None,
                "silenced_by": view.silence.id if view.silence else None,
            }
        )


class AlertsJson(Answer):
    alerts: list[AlertJson]


class SilenceJson(Answer):
    id: str
    matchers: dict[str, str]
    """Name (stream, rule or a label) -> glob."""
    starts: Time
    ends: Time
    author: str
    comment: str
    active: bool

    @classmethod
    def of(cls, silence: Silence, now_ms: int) -> SilenceJson:
        """The answer about one silence."""
        return cls(
            id=silence.id,
            matchers=dict(silence.matchers),
            starts=rfc3339(silence.starts_ms),
            ends=rfc3339(silence.ends_ms),
            author=silence.author,
            comment=silence.comment,
            active=silence.active(now_ms),
        )


class SilencesJson(Answer):
    silences: list[SilenceJson]


class LayoutJson(Answer):
    signals: list[str]
    calibration_sizes: list[Count]
    two_sided: list[bool]
    learned: list[bool]
    dependence: list[float]


class ProfileJson(Answer):
    layout: LayoutJson
    manifest: dict[str, Any] | None
    """As `layerwatch fit` wrote it; null where it was not published."""
    streams: list[str]
    """Those whose newest images of the last hour it judged."""


class ProfilesJson(Answer):
    profiles: dict[str, ProfileJson]

    @classmethod
    def of(cls, snapshot: Snapshot, store: Store, judged_by: Mapping[str, list[str]]) -> ProfilesJson:
        """The answer about the profiles that counted here lately; reads their manifests.

        Args:
            judged_by: {fingerprint: streams}.
        """
        manifests = {fingerprint: json.loads(text) for fingerprint, text in store.catalog.profiles().items()}
        profiles = {
            fingerprint: ProfileJson(
                layout=LayoutJson.model_validate(asdict(layout)),
                manifest=manifests.get(fingerprint),
                streams=judged_by.get(fingerprint, []),
            )
            for fingerprint, layout in sorted(snapshot.state.layouts.items())
        }
        return cls(profiles=profiles)


def optional_time(time_ms: int) -> str | None:
    """RFC 3339; None for 0, which stands for never."""
    return rfc3339(time_ms) if time_ms else None
