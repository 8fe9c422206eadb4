"""The sequential rule of the configuration: judges closed buckets with the stored state of their streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from monitor.core.buckets import Layout
from monitor.core.settings import Names, Share
from monitor.core.types import Vector, Verdict
from monitor.rules.rule import ClosedBucket, Judgement, Rule
from monitor.rules.sequential.detector import drift_start
from monitor.rules.sequential.plan import DAY_S, Sequential, fleet_budget_s, plan_of
from monitor.rules.sequential.rows import unpack
from monitor.rules.sequential.table import RowTable
from monitor.rules.sequential.verdicts import at_the_alarm

SETTLED_IMAGES = 1000
"""Its statistic begins at nothing under another profile, and calm from the first image would say nothing."""


class SequentialRule(Rule):
    """Drift alarms with a proven bound on false alarms, evaluated after every bucket."""

    keeps_state: ClassVar[bool] = True

    kind: Literal["sequential"]
    signals: Names = ("ood",)
    false_alarm_days: PositiveFloat | None = None
    """At most one false alarm in that many days over all streams; null: 7 for a fleet, 30 for one stream."""
    expected_streams: PositiveInt = 1
    delta: Share = 0.01
    benign_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    reference: Literal["tightening", "fixed"] = "tightening"
    dependence: Annotated[float, Field(ge=1)] | None = None
    """Frames that count as one (video); null takes what the profile measured at fit."""

    def statistic(self, bucket_s: float = 1.0) -> Sequential:
        """The parameters of the statistic for buckets of that length; rows and plans do not depend on it.

        Raises:
            ValueError: as `Sequential`.
        """
        days = self.false_alarm_days
        return Sequential(
            signals=self.signals,
            bucket_s=bucket_s,
            seconds_per_false_alarm=(
                self.expected_streams * days * DAY_S if days else fleet_budget_s(self.expected_streams)
            ),
            delta=self.delta,
            pi_min=self.benign_share,
            reference=self.reference,
            dependence=self.dependence,
        )

    @property
    def least_images(self) -> int:
        """Before them no evidence raises an alarm."""
        return self.statistic().min_images

    @property
    def settled_images(self) -> int:
        """By so many a drift of 10 % of the images that goes on raises an alarm (docs/explanation/statistics.md)."""
        return SETTLED_IMAGES

    def check_numbers(self, bucket_s: int) -> None:
        """Raise ValueError as `Sequential`."""
        self.statistic(bucket_s)

    def check(self, layout: Layout) -> None:
        """Raise as `plan_of`."""
        plan_of(self.statistic(), layout)

    @property
    def promise(self) -> str:
        """Over all expected streams together."""
        days = self.statistic().seconds_per_false_alarm / DAY_S / self.expected_streams
        risk = f"unless the calibration images are an unlucky sample ({100 * self.delta:.2g} in 100)"
        return f"at most one false alarm in {days:.3g} days, {risk}"

    def smallest_fault(self, layout: Layout) -> float:
        """By the first signal's cuts, before the stream's own images have tightened the reference."""
        plan = plan_of(self.statistic(), layout)
        first = np.array([signal == plan.cuts[0][0] for signal, _ in plan.cuts])
        highest = plan.start[1] + (1 - plan.start[1]) * self.benign_share
        return float(((highest - plan.nominal) / (1 - plan.nominal))[first].min())

    def rows(self, layout: Layout) -> RowTable:
        """See `RowTable`."""
        return RowTable(self.statistic(), layout)

    def judge(self, bucket: ClosedBucket, rows: RowTable) -> Judgement:
        """Verdicts of the streams with counts that fire or are under way; all rows are advanced."""
        if not bucket.counts:
            return Judgement({})
        rule = self.statistic(bucket.length_ms / 1000)
        return Judgement(rows.advance(rule, bucket.start_ms, bucket.counts, bucket.under_way))

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:
        """Start of the bucket in which the drift most likely began."""
        if row is None or not buckets:
            return None
        rule = self.statistic()
        state = unpack(rule, layout, [row])
        if not state["firing"][0]:
            return None
        return buckets[drift_start(rule, layout, state, np.stack([vector for _, vector in buckets]))][0]

    def verdict_since_onset(self, layout: Layout, row: bytes | None, verdict: Verdict, window: Vector) -> Verdict:
        """The share of drifted images among those since the drift began."""
        rule = self.statistic()
        state = unpack(rule, layout, [row])
        return at_the_alarm(rule, layout, state, window) if state["firing"][0] else verdict
