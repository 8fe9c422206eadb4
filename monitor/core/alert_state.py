"""Life of an alert: inactive -> pending (`for`) -> firing -> (`keep firing for`) -> resolved, in event time.

The same as Prometheus, with the closing of a bucket in the place of an evaluation: a breach must still hold in a bucket
that starts `for_ms` after the first breached one, and a firing alert resolves in a calm bucket that starts
`keep_firing_for_ms` after the first calm one. Nothing here looks at a clock, so a replay gives the same alerts with
the same ids. `step` with the same bucket twice changes nothing the second time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from hashlib import blake2b
from typing import Any

from monitor.core.types import Alert, AlertPhase, Verdict

UNDER_WAY = (AlertPhase.FIRING, AlertPhase.PENDING)
"""Phases of an active alert, the more urgent first."""
OWN_RULES = "layerwatch-"
"""How the names of all rules about the monitor itself begin; configured rules must not."""
_VERSION = 1
_SUPPRESSED_KEY = "untold"
"""The stored name of `Alert.suppressed`, from version 1 on."""
_ALERT_FIELDS = tuple(field.name for field in fields_of(Alert))
_VERDICT_FIELDS = tuple(field.name for field in fields_of(Verdict))


@dataclass(frozen=True, slots=True)
class Policy:
    """Parameters of `step`, the same for all streams of a rule."""

    monitor: str
    bucket_len_ms: int
    for_ms: int = 0
    keep_firing_for_ms: int = 0


def alert_id(monitor: str, rule: str, stream: str, bucket_ms: int) -> str:
    """16 hex digits: a pure function of the rule, the stream and the bucket it began in."""
    # JSON separates the parts: ("a", "bc") and ("ab", "c") must give different ids
    text = json.dumps([monitor, rule, stream, bucket_ms])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def step(alert: Alert, verdict: Verdict, bucket_ms: int, policy: Policy) -> Alert:
    """State after the bucket starting at `bucket_ms` has closed with this verdict.

    A verdict of None (too few images to judge) changes nothing. The result equals the argument where there is nothing
    to store. An alert id passes through each phase at most once.
    """
    if verdict.breached is None:
        return alert
    return (_breached if verdict.breached else _calm)(alert, verdict, bucket_ms, policy)


def _breached(alert: Alert, verdict: Verdict, bucket_ms: int, policy: Policy) -> Alert:
    if alert.phase is AlertPhase.FIRING:
        return replace(alert, verdict=verdict, clear_since_ms=0)
    if alert.phase is not AlertPhase.PENDING:
        new_id = alert_id(policy.monitor, alert.rule, alert.stream, bucket_ms)
        calm_ms = calm_since_ms(alert)
        alert = Alert(alert.rule, alert.stream, AlertPhase.PENDING, new_id, since_ms=bucket_ms, clear_since_ms=calm_ms)
    alert = replace(alert, verdict=verdict)
    if bucket_ms - alert.since_ms >= policy.for_ms:
        return replace(alert, phase=AlertPhase.FIRING, fired_ms=bucket_ms + policy.bucket_len_ms, clear_since_ms=0)
    return alert


def _calm(alert: Alert, verdict: Verdict, bucket_ms: int, policy: Policy) -> Alert:
    if alert.phase is AlertPhase.PENDING:
        return Alert(alert.rule, alert.stream)
    if alert.phase is not AlertPhase.FIRING:
        return alert
    if alert.verdict and not verdict.cause:  # what raised it still says what it was about
        verdict = replace(verdict, cause=alert.verdict.cause)
    clear_since = alert.clear_since_ms or bucket_ms
    alert = replace(alert, verdict=verdict, clear_since_ms=clear_since)
    if bucket_ms - clear_since >= policy.keep_firing_for_ms:
        return replace(alert, phase=AlertPhase.RESOLVED, resolved_ms=bucket_ms + policy.bucket_len_ms)
    return alert


def calm_since_ms(alert: Alert) -> int:
    """Of an alert that does not fire: since when the one that fired before is calm; 0 where none is known."""
    return alert.clear_since_ms or alert.resolved_ms


def withdraw(alert: Alert, at_ms: int) -> Alert:
    """The alert when no rule watches its stream any more: firing it resolves at once, pending it is forgotten."""
    if alert.phase is not AlertPhase.FIRING:
        return Alert(alert.rule, alert.stream)
    verdict = alert.verdict and replace(alert.verdict, breached=False, summary="no rule watches this any more")
    return replace(
        alert, phase=AlertPhase.RESOLVED, verdict=verdict, resolved_ms=at_ms, suppressed=False,
        breached_in=(), breached_by=(), fresh=(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ storage


def to_json(alert: Alert) -> str:
    """The alert as one line of JSON with a version; equal alerts give equal text."""
    # by hand: `asdict` copies all the way down, and a thousand alerts under way are written with every bucket
    fields = {name: getattr(alert, name) for name in _ALERT_FIELDS}
    if alert.verdict is not None:
        fields["verdict"] = {name: getattr(alert.verdict, name) for name in _VERDICT_FIELDS}
    fields[_SUPPRESSED_KEY] = fields.pop("suppressed")
    for name in ("condition", "breached_in", "breached_by", "fresh"):  # readable by versions that do not know them
        if not fields[name]:
            del fields[name]
    return json.dumps({"version": _VERSION, **fields}, sort_keys=True, allow_nan=False)


def from_json(text: str | bytes) -> Alert:
    """Inverse of `to_json`.

    Raises:
        ValueError: not such a document, or of a version that this program does not know.
    """
    fields: dict[str, Any] = json.loads(text)
    version = fields.pop("version", None)
    if version != _VERSION:
        raise ValueError(f"stored alert has version {version!r}; this program reads version {_VERSION}")
    verdict = fields.pop("verdict")
    if verdict is not None:
        severity = verdict.pop("severity")
        verdict = Verdict(**verdict, severity=None if severity is None else tuple(severity))
    fields["suppressed"] = fields.pop(_SUPPRESSED_KEY, False)
    for name in ("breached_in", "breached_by"):
        fields[name] = tuple(fields.get(name, ()))
    fields["fresh"] = tuple((fingerprint, images) for fingerprint, images in fields.get("fresh", ()))
    return Alert(**{**fields, "phase": AlertPhase(fields["phase"]), "verdict": verdict})
