"""What a closed bucket changes: the verdicts of a rule by stream and by condition, and the alerts that follow. Pure.

The evaluator does it on the state that it stores; a comparison on a state of its own, of which nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from monitor.core import conditions
from monitor.core.alert_state import UNDER_WAY, Policy
from monitor.core.buckets import IMAGES, Layout
from monitor.core.conditions import OVERALL, breached_in
from monitor.core.shadow import is_shadow
from monitor.core.table import Table
from monitor.core.types import Alert, AlertPhase, Verdict
from monitor.core.windows import EVERY, Windows, tails
from monitor.rules.rule import ClosedBucket, Rows, Rule

AlertKey = tuple[str, str]
"""(rule, stream)."""
Closed = Mapping[str, Table]
"""{fingerprint: counts} of one closed bucket."""


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


@dataclass(frozen=True, slots=True)
class Step:
    """What a bucket changes of an alert."""

    before: Alert
    after: Alert
    by: Found
    """The verdict that changed it."""


class RowsByRule(Protocol):
    """What the rules that keep state remember."""

    def rows(self, rule: Rule, fingerprint: str, layout: Layout) -> Rows:
        """What one rule remembers under one profile; `judge` changes it."""

    def judged(self, rule: Rule, fingerprint: str, streams: Collection[str], bucket_ms: int) -> None:
        """Note that the rows of these streams have moved in that bucket."""


class PassingRows:
    """Rows of a state that nobody stores."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Rows] = {}

    def rows(self, rule: Rule, fingerprint: str, layout: Layout) -> Rows:
        """As `RowsByRule`."""
        key = (rule.name, fingerprint)
        return self._rows[key] if key in self._rows else self._rows.setdefault(key, rule.rows(layout))

    def judged(self, rule: Rule, fingerprint: str, streams: Collection[str], bucket_ms: int) -> None:
        """As `RowsByRule`."""


class JudgingState:
    """What the judgement of the next closed bucket depends on: layouts, latest buckets, the rules' rows, alerts.

    Args:
        layouts: {fingerprint: layout} of the profiles that judge.
        bucket_ms: length of a bucket.
    """

    def __init__(
        self, rules: Sequence[Rule], layouts: Mapping[str, Layout], bucket_ms: int, rule_states: RowsByRule
    ) -> None:
        self.bucket_ms, self.layouts, self.rule_states = bucket_ms, dict(layouts), rule_states
        self.reach_ms = max([rule.evidence_ms for rule in rules], default=bucket_ms)
        self.windows = Windows(self.reach_ms)
        self.alerts: dict[AlertKey, Alert] = {}
        self.conditions_of: ConditionsOf | None = None
        """The conditions that a stream is configured to have; None takes whichever an alert names. An alert waits for
        calm images of its conditions only while they are configured."""
        self._watches: dict[str, dict[str, bool]] = {}
        """By rule and stream."""

    def put(self, changed: Mapping[AlertKey, Alert]) -> None:
        """Take up the alerts as they are after a bucket; an inactive one is forgotten."""
        self.alerts.update(changed)
        for key, alert in changed.items():
            if alert.phase is AlertPhase.INACTIVE:
                del self.alerts[key]

    def counted(self, rule: Rule, sealed: Closed) -> dict[str, Table]:
        """The counts that the rule judges by, under each fingerprint.

        A rule about the stream itself judges all of its counts together, under EVERY: a record that could not be read
        has no condition.
        """
        judging = [(name, table) for name, table in sealed.items() if not is_shadow(name)]
        known = [(name, table) for name, table in judging if name in self.layouts or not rule.reads_images]
        chosen = {name: self._watched(rule, table) for name, table in known}
        chosen = {name: table for name, table in chosen.items() if table}
        if rule.reads_images or not chosen:
            return chosen
        return {EVERY: tails(list(chosen.values()))} if self.layouts else {}

    def _watched(self, rule: Rule, table: Table) -> Table:
        if rule.streams == "*" and not rule.except_streams:
            return table
        known = self._watches.setdefault(rule.name, {})
        for stream in table.streams:
            if stream not in known:
                known[stream] = rule.watches(stream)
        return table.chosen(np.array([known[stream] for stream in table.streams], dtype=bool))

    def watched(self, rule: Rule, sealed: Closed) -> dict[str, tuple[Table, Set[str]]]:
        """{fingerprint: (counts in this bucket, streams under way)}: what the rule judges now.

        These are the streams with counts in the bucket, and those with an active alert: their window moves on too, in
        each condition in which the alert is breached.
        """
        counted = self.counted(rule, sealed)
        active = {
            key[1]: alert for key, alert in self.alerts.items() if key[0] == rule.name and alert.phase in UNDER_WAY
        }
        under_way: dict[str, set[str]] = {name: {s for s in active if s in table} for name, table in counted.items()}
        for stream, alert in active.items():
            if not rule.reads_images:
                if self.layouts and self.windows.fingerprints_of(stream):
                    under_way.setdefault(EVERY, set()).add(stream)
                continue
            present = {self.layouts[f].condition for f, table in counted.items() if stream in table}
            for condition in (breached_in(alert) or {alert.condition}) - present:
                if fingerprint := self.fingerprint_in(stream, condition):
                    under_way.setdefault(fingerprint, set()).add(stream)
        none = np.zeros((0, 0), dtype=np.uint32)
        return {name: (counted.get(name, Table((), none)), streams) for name, streams in under_way.items()}

    def any_layout(self) -> dict[str, Layout]:
        return {EVERY: self.layout_of(EVERY)} if self.layouts else {}

    def fingerprint_in(self, stream: str, condition: str) -> str:
        """The profile that judged the stream last in that condition, within reach; empty where none did."""
        found = [f for f in self.windows.fingerprints_of(stream) if f in self.layouts]
        return next((f for f in reversed(found) if self.layouts[f].condition == condition), "")

    def judging(self, stream: str, condition: str) -> str:
        """As `fingerprint_in`, or, where none judged it in that condition lately, the profile that judged it last."""
        known = [f for f in self.windows.fingerprints_of(stream) if f in self.layouts]
        return self.fingerprint_in(stream, condition) or (known[-1] if known else "")

    def layout_of(self, fingerprint: str) -> Layout:
        """The layout of a profile; of EVERY that of any: the tail is the same in all."""
        return next(iter(self.layouts.values())) if fingerprint == EVERY else self.layouts[fingerprint]


def verdicts_of(rule: Rule, state: JudgingState, bucket_ms: int, sealed: Closed) -> Mapping[str, Mapping[str, Found]]:
    """{stream: {condition: verdict}} of the streams that are breached or under way; the rule's state moves on.

    Args:
        sealed: the counts of the bucket, which `state` holds too.
    """
    found: dict[str, dict[str, Found]] = {}
    for fingerprint, (counts, under_way) in state.watched(rule, sealed).items():
        layout = state.layout_of(fingerprint)
        bucket = ClosedBucket(bucket_ms, state.bucket_ms, fingerprint, layout, counts, state.windows, under_way)
        rows = state.rule_states.rows(rule, fingerprint, layout)
        judgement = rule.judge(bucket, rows)
        state.rule_states.judged(rule, fingerprint, counts.streams, bucket_ms)
        condition = layout.condition if rule.reads_images else OVERALL
        for stream, verdict in judgement.verdicts.items():
            known = found.setdefault(stream, {})
            # of two profiles in one bucket the breached one: the other has only begun to judge, or ends
            if condition not in known or verdict.breached:
                shown = fingerprint if rule.reads_images else state.judging(stream, OVERALL)
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


def held(alert: Alert, found: Set[str], state: JudgingState) -> Set[str]:
    """The conditions that an alert waits for, as far as they can still show calm images.

    A named one while it is configured; the profile's own calibration while it has judged images of the stream lately.

    Args:
        found: the conditions with a verdict in this bucket.
    """
    waits = breached_in(alert)
    if waits <= found:
        return waits
    named = waits if state.conditions_of is None else waits & set(state.conditions_of(alert.stream))
    lately = {OVERALL} if state.fingerprint_in(alert.stream, OVERALL) else set()
    return {c for c in waits if c in found or c in (named - {OVERALL}) | lately}


def step(
    rule: Rule, stream: str, found: Mapping[str, Found], state: JudgingState, bucket_ms: int, policy: Policy
) -> Step | None:
    """Advance the alert of a rule about a stream by one bucket; None where nothing changes.

    Args:
        found: the verdicts by condition.
    """
    known = state.alerts.get((rule.name, stream), Alert(rule.name, stream))
    before, found = settling(rule, known, found)
    joint = conditions.joint(before, {c: one.verdict for c, one in found.items()}, held(before, found.keys(), state))
    after = raised_by(rule, conditions.step(before, joint, bucket_ms, policy), found)
    if after == known:
        return None
    # calm may have been shown earlier than in this bucket
    by = found.get(joint.condition) or Found(joint.verdict, state.judging(stream, joint.condition))
    return Step(before, after, by)
