"""The alert document: one line of JSON per transition, the same for every receiver. Pure; schema in docs/.

The same transition always gives the same text, so a repeated or replayed document is equal byte for byte; but for
the boxes of its images, which are there if they were known in time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote, urlencode

from detectors.images.regions import Region
from monitor.core.alert_state import alert_id
from monitor.core.types import Alert, AlertPhase, Exemplar, Verdict

Direction = Literal["low", "high"]
Triage = Literal["sensor", "content", "mix", "replay"]

SCHEMA = "layerwatch.alert/1"
MAX_SIGNALS = 8
MAX_EXEMPLARS = 12


@dataclass(frozen=True)
class About:
    """The rule of an alert, and the links to its stream. URLs may be empty."""

    monitor: str
    rule: str
    kind: str
    labels: Mapping[str, str] = field(default_factory=dict)
    status_url: str = ""
    dashboard_url: str = ""


@dataclass(frozen=True, slots=True)
class MovedSignal:
    """One signal whose p-values are not distributed as they are in distribution; an entry of `signals` in the document.

    effect: estimated share of images that must have changed to give this histogram (`distance_from_uniform`).
    bound: lower confidence bound of the effect; the error is shared out over the signals of the profile. direction:
    "low" where more p-values are small than normal (unusual images), "high" where fewer are (images too alike).
    histogram: nine counts, p > .5 first, p <= .002 last. mix: it places images within the reference, and neither end
    of it is unusual.
    """

    signal: str
    learned: bool
    effect: float
    bound: float
    direction: Direction
    histogram: tuple[int, ...]
    mix: bool = False


@dataclass(frozen=True)
class Evidence:
    """What explains the alert; each part may be missing."""

    moved: Sequence[MovedSignal] = ()
    triage: Triage | None = None
    exemplars: Sequence[Exemplar] = ()
    regions: Mapping[str, Sequence[Region]] = field(default_factory=dict)
    """`Exemplar.name` -> where that image is unusual, the hottest first; of those whose heat map is known."""


def alert_document(about: About, alert: Alert, evidence: Evidence = Evidence()) -> str:
    """The document of an alert that has just begun to fire or resolved, as one line of JSON.

    Args:
        evidence: exemplars in any order; the worst MAX_EXEMPLARS of them are listed, worst first.

    Raises:
        ValueError: the alert is in another phase, or a number is not finite.
    """
    if alert.phase not in {AlertPhase.FIRING, AlertPhase.RESOLVED}:
        raise ValueError(f"only firing and resolved alerts have a document (got {alert.phase})")
    return _document(f"alert.{alert.phase}", about, alert, evidence)


def test_document(monitor: str, now_ms: int) -> str:
    """A document of type alert.test, to try receivers with; it has every field of a real one."""
    rule, stream = "test", "test"
    name = alert_id(monitor, rule, stream, now_ms)
    summary = "this is a test: nothing has drifted"
    verdict = Verdict(True, 0.0, 0.0, 0.0, 0, summary, (0.0, 0.0, 0.0), "a person asked for a test alert")
    alert = Alert(rule, stream, AlertPhase.FIRING, name, since_ms=now_ms, fired_ms=now_ms, verdict=verdict)
    return _document("alert.test", About(monitor, rule, "test"), alert, Evidence())


# a test runner that imports it must not take it for a test
test_document.__test__ = False  # type: ignore[attr-defined]


def stream_url(external_url: str, stream: str, alert: str = "") -> str:
    """Status page of a stream, at one of its alerts where an id is given; empty where the monitor has no such page."""
    return external_url.rstrip("/") + stream_path(stream, alert) if external_url else ""


def stream_path(stream: str, alert: str = "", span: str = "") -> str:
    """Path of a stream's page; "." and ".." are a parameter, since browsers resolve them even when they are quoted."""
    name = "" if stream.strip(".") else stream
    query = urlencode({key: value for key, value in (("name", name), ("alert", alert), ("span", span)) if value})
    return f"/streams/{'' if name else quote(stream, safe='')}{'?' if query else ''}{query}"


def dashboard_url(template: str, stream: str) -> str:
    """The configured address with `{stream}` replaced by the percent-quoted stream; other braces stay."""
    return template.replace("{stream}", quote(stream, safe=""))


def rfc3339(time_ms: int) -> str:
    """Milliseconds since the epoch in RFC 3339, UTC, with three decimals."""
    seconds, ms = divmod(time_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"


def _document(kind: str, about: About, alert: Alert, evidence: Evidence) -> str:
    verdict = alert.verdict or Verdict(None, 0.0, 0.0, 0.0, 0, "")
    severity = verdict.severity and dict(
        zip(("lower", "estimate", "upper"), map(_short, verdict.severity), strict=True)
    )
    resolved = alert.phase is AlertPhase.RESOLVED
    data = {
        "alert_id": alert.id,
        "monitor": about.monitor,
        "rule": about.rule,
        "kind": about.kind,
        "stream": alert.stream,
        "phase": str(alert.phase),
        "since": rfc3339(alert.since_ms),
        "fired_at": rfc3339(alert.fired_ms) if alert.fired_ms else None,
        "resolved_at": rfc3339(alert.resolved_ms) if resolved else None,
        "labels": dict(sorted(about.labels.items())),
        "summary": verdict.summary,
        "cause": verdict.cause,
        "value": _short(verdict.value),
        "bound": _short(verdict.bound),
        "threshold": _short(verdict.threshold),
        "images": verdict.images,
        **({"condition": alert.condition} if alert.condition else {}),
        "severity": severity,
        "triage": evidence.triage,
        "signals": [
            asdict(moved) | {"effect": _short(moved.effect), "bound": _short(moved.bound)}
            for moved in evidence.moved[:MAX_SIGNALS]
        ],
        "exemplars": [
            {"id": e.id, "event_time": rfc3339(e.event_time_ms), "p_value": _short(e.p_value)} | _boxes(evidence, e)
            for e in sorted(evidence.exemplars, key=lambda e: (e.p_value, e.event_time_ms, e.id))[:MAX_EXEMPLARS]
        ],
        "links": {"status": about.status_url, "dashboard": about.dashboard_url},
    }
    document = {
        "schema": SCHEMA,
        "type": kind,
        "id": f"{alert.id}-{alert.phase}",
        "timestamp": rfc3339(alert.resolved_ms if resolved else alert.fired_ms),
        "data": data,
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _boxes(evidence: Evidence, image: Exemplar) -> dict[str, list[dict[str, float]]]:
    regions = evidence.regions.get(image.name)
    if regions is None:
        return {}
    return {"boxes": [{side: _short(getattr(r, side)) for side in ("x", "y", "width", "height")} for r in regions]}


def _short(number: float) -> float:
    """Six significant digits: more than these numbers' precision, and free of rounding noise."""
    return float(f"{float(number):.6g}")
