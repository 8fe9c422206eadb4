"""The sequential rule of the configuration, and how it judges closed buckets with the state of their streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from monitor.core.buckets import Layout
from monitor.core.settings import Names, Share
from monitor.core.types import Vector
from monitor.rules.judge import ClosedBucket, Judge, Judgement
from monitor.rules.sequential.detector import advance
from monitor.rules.sequential.onset import drift_start
from monitor.rules.sequential.rule import DAY_S, Sequential, fleet_budget_s
from monitor.rules.sequential.state import pack, unpack
from monitor.rules.settings import RuleSettings


@dataclass(frozen=True)
class SequentialJudge(Judge):
    """One row of state per stream, advanced by each bucket in which the stream has images."""

    rule: Sequential
    keeps_state: ClassVar[bool] = True

    def check(self, layout: Layout) -> None:
        """Raise where this profile cannot carry the rule; errors as `Sequential.check`."""
        self.rule.check(layout)

    def judge(self, bucket: ClosedBucket, rows: Mapping[str, bytes]) -> Judgement:
        """Verdicts of the streams with images, and their rows after the bucket."""
        counted = {stream: vector for stream, vector in bucket.counts.items() if vector is not None}
        if not counted:
            return Judgement({})
        state = unpack(self.rule, bucket.layout, [rows.get(stream) for stream in counted])
        vectors = np.stack(list(counted.values()))
        state, verdicts = advance(self.rule, bucket.layout, state, bucket.start_ms, vectors)
        return Judgement(
            verdicts=dict(zip(counted, verdicts, strict=True)), rows=dict(zip(counted, pack(state), strict=True))
        )

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:
        """Start of the bucket in which the drift most likely began."""
        if row is None or not buckets:
            return None
        state = unpack(self.rule, layout, [row])
        if not state["firing"][0]:
            return None
        return buckets[drift_start(self.rule, layout, state, np.stack([vector for _, vector in buckets]))][0]


class SequentialRule(RuleSettings):
    """Drift alarms with a proven bound on false ones, looked at after every bucket."""

    kind: Literal["sequential"]
    signals: Names = ("ood",)
    false_alarm_days: PositiveFloat | None = None
    """At most one false alarm in that many days over all streams; None: 7 for a fleet, 30 for one stream."""
    expected_streams: PositiveInt = 1
    delta: Share = 0.01
    benign_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reference: Literal["tightening", "fixed"] = "tightening"
    dependence: Annotated[float, Field(ge=1)] | None = None
    """Frames that count as one (video); None takes what the profile measured at fit."""

    def bind(self, bucket_s: int) -> SequentialJudge:
        """The judge for buckets of that length; ValueError as `Sequential`."""
        budget_s = (
            self.expected_streams * self.false_alarm_days * DAY_S
            if self.false_alarm_days
            else fleet_budget_s(self.expected_streams)
        )
        rule = Sequential(
            signals=self.signals,
            bucket_s=bucket_s,
            seconds_per_false_alarm=budget_s,
            delta=self.delta,
            pi_min=self.benign_share,
            reference=self.reference,
            dependence=self.dependence,
        )
        return SequentialJudge(rule)
