"""The verdicts of one rule on a closed bucket, by stream and by the condition of the images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, replace

from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import IMAGES
from monitor.core.conditions import OVERALL, breached_in
from monitor.core.types import Alert, Verdict
from monitor.evaluate.memory import Closed, Memory
from monitor.rules.rule import ClosedBucket, Rule

ConditionsOf = Callable[[str], Collection[str]]
"""Stream -> the conditions that it is configured to have."""


@dataclass(frozen=True, slots=True)
class Found:
    """The verdict on a stream by its images of one condition."""

    verdict: Verdict
    fingerprint: str = ""
    """Of the profile whose counts it judged; empty where it judged none."""
    row: bytes | None = None
    """The stream's packed state after the bucket."""
    images: int = 0
    """Of the stream in the bucket, that the profile judged."""


def verdicts_of(rule: Rule, memory: Memory, bucket_ms: int, sealed: Closed) -> Mapping[str, Mapping[str, Found]]:
    """{stream: {condition: verdict}} of the streams that are breached or under way; the rule's state moves on.

    Args:
        sealed: the counts of the bucket, which `memory` holds too.
    """
    found: dict[str, dict[str, Found]] = {}
    for fingerprint, (counts, under_way) in memory.watched(rule, sealed).items():
        layout = memory.layout_of(fingerprint)
        bucket = ClosedBucket(bucket_ms, memory.bucket_ms, fingerprint, layout, counts, memory.windows, under_way)
        rows = memory.rule_states.rows(rule, fingerprint, layout)
        judgement = rule.judge(bucket, rows)
        memory.rule_states.judged(rule, fingerprint, counts.streams)
        condition = layout.condition if rule.reads_images else OVERALL
        for stream, verdict in judgement.verdicts.items():
            known = found.setdefault(stream, {})
            # of two profiles in one bucket the breached one: the other has only begun to judge, or ends
            if condition not in known or verdict.breached:
                shown = fingerprint if rule.reads_images else memory.judging(stream, OVERALL)
                images = int(counts[stream][IMAGES]) if stream in counts else 0
                known[condition] = Found(verdict, shown, rows.get(stream), images)
    return found


def settling(rule: Rule, alert: Alert, found: Mapping[str, Found]) -> tuple[Alert, Mapping[str, Found]]:
    """An alert under way that another profile judges than raised it: calm by that one says nothing yet.

    What a rule knows of a stream begins at nothing under every profile. So a calm verdict counts only after
    `rule.settled_images`; a breach counts at once.

    Returns:
        The alert with the images that the other profile has judged by now, and the verdicts that count.
    """
    needed = rule.settled_images
    if not needed or alert.phase not in UNDER_WAY or not alert.breached_by:
        return alert, found
    fresh, counting = dict(alert.fresh), dict(found)
    for condition in breached_in(alert) & found.keys():
        one = found[condition]
        if one.verdict.breached or one.fingerprint in alert.breached_by:
            fresh.pop(one.fingerprint, None)
            continue
        judged = fresh[one.fingerprint] = fresh.get(one.fingerprint, 0) + one.images
        if judged < needed:
            summary = f"{judged} of {needed} images judged by another profile than raised the alert"
            counting[condition] = replace(one, verdict=replace(one.verdict, breached=None, summary=summary))
    return replace(alert, fresh=tuple(sorted(fresh.items()))), counting


def raised_by(rule: Rule, alert: Alert, found: Mapping[str, Found]) -> Alert:
    """An alert after a bucket, with the profiles by which it was breached."""
    if alert.phase not in UNDER_WAY or not rule.reads_images:
        return alert
    breached = {one.fingerprint for one in found.values() if one.verdict.breached} - {""}
    return replace(alert, breached_by=tuple(sorted(breached.union(alert.breached_by)))) if breached else alert


def held(alert: Alert, found: Set[str], memory: Memory, conditions_of: ConditionsOf | None) -> Set[str]:
    """The conditions that an alert waits for, as far as they can still show calm images.

    A named one while it is configured; the profile's own calibration while it has judged images of the stream lately.

    Args:
        found: the conditions with a verdict in this bucket.
        conditions_of: None takes every named condition for configured.
    """
    waits = breached_in(alert)
    if waits <= found:
        return waits
    named = waits if conditions_of is None else waits & set(conditions_of(alert.stream))
    lately = {OVERALL} if memory.fingerprint_in(alert.stream, OVERALL) else set()
    return {c for c in waits if c in found or c in (named - {OVERALL}) | lately}
