"""One alert about a stream whose images are judged under several conditions, such as day and night. Pure.

Each condition has a calibration of its own, and a rule judges its images apart. A breach in any of them raises the
alert; it is calm when every condition in which it was breached has shown calm images since. Images by day say nothing
of a fault that shows at night, however many of them are normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from monitor.core import alert_state as alerts
from monitor.core.alert_state import Policy
from monitor.core.types import Alert, AlertPhase, Verdict

OVERALL = ""
"""The condition of images that the profile's own calibration judges: those of streams without conditions, too."""


@dataclass(frozen=True, slots=True)
class Joint:
    """What the conditions of one bucket say together."""

    verdict: Verdict
    condition: str
    """Whose verdict it is."""
    breached_in: frozenset[str]
    """The conditions in which the alert is breached after it."""


def breached_in(alert: Alert) -> frozenset[str]:
    """The conditions in which an alert is breached and has not been calm since.

    An alert that names none is one of the profile's own calibration: it is breached until it is calm.
    """
    if alert.phase not in alerts.UNDER_WAY:
        return frozenset()
    is_calm = alert.phase is AlertPhase.FIRING and alert.clear_since_ms
    return frozenset(alert.breached_in or (() if is_calm else (OVERALL,)))


def joint(alert: Alert, verdicts: Mapping[str, Verdict], held: Set[str]) -> Joint:
    """The verdict on a stream by the verdicts of one bucket.

    Args:
        verdicts: {condition: verdict}, at least one; a condition without images may be left out.
        held: those of `breached_in(alert)` that can still be judged.
    """
    breached = {condition for condition, verdict in verdicts.items() if verdict.breached}
    calm = {condition for condition, verdict in verdicts.items() if verdict.breached is False}
    still = frozenset((held - calm) | breached)
    chosen = _first(breached or calm or verdicts.keys(), alert.condition, verdicts)
    verdict = verdicts[chosen]
    if breached or not calm:
        return Joint(verdict, chosen, still)
    if still:
        return Joint(replace(verdict, breached=None), chosen, still)
    if alert.verdict and alert.phase is AlertPhase.FIRING and chosen != alert.condition:
        # the last word on an alert is that of the images it was about
        return Joint(replace(alert.verdict, breached=False), alert.condition, still)
    return Joint(verdict, chosen, still)


def step(alert: Alert, found: Joint, bucket_ms: int, policy: Policy) -> Alert:
    """State after the bucket; as `alert_state.step`, and the alert knows in which conditions it is breached."""
    after = alerts.step(alert, found.verdict, bucket_ms, policy)
    if after.phase not in alerts.UNDER_WAY:
        return replace(after, breached_in=(), breached_by=(), fresh=())
    if after == alert and found.breached_in == breached_in(alert):
        return alert
    condition = alert.condition if after.id == alert.id else found.condition
    named = () if found.breached_in == {OVERALL} else tuple(sorted(found.breached_in))
    return replace(after, condition=condition, breached_in=named)


def _first(conditions: Set[str], own: str, verdicts: Mapping[str, Verdict]) -> str:
    """The alert's own condition where it is among them, else the one with the largest share of drifted images."""
    if own in conditions:
        return own

    def share(condition: str) -> float:
        severity = verdicts[condition].severity
        return severity[1] if severity else 0.0

    return max(sorted(conditions), key=share)
