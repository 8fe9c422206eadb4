"""The verdicts of one rule on a closed bucket, by stream and by the condition of the images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass

from monitor.core.conditions import OVERALL, breached_in
from monitor.core.types import Alert, Verdict
from monitor.evaluate.memory import Memory, Sealed
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


def verdicts_of(rule: Rule, memory: Memory, bucket_ms: int, sealed: Sealed) -> Mapping[str, Mapping[str, Found]]:
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
                known[condition] = Found(verdict, shown, rows.get(stream))
    return found


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
