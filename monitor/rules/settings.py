"""The entries of the `rules` section of the configuration, one class per kind."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from monitor.core.settings import Glob, Names, Section, Share


class RuleSettings(Section):
    """What every rule has: a name, the streams it watches, and how long a breach must last."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    streams: Glob = "*"
    except_streams: Names = Field(default=(), alias="except")
    for_s: NonNegativeFloat = Field(default=0.0, alias="for")
    keep_firing_for_s: NonNegativeFloat = Field(default=0.0, alias="keep_firing_for")
    labels: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def watches(self, stream: str) -> bool:
        """Whether `streams` matches (case-sensitive; without wildcards: equality) and none of the exceptions does."""
        left_out = any(fnmatchcase(stream, glob) for glob in self.except_streams)
        return fnmatchcase(stream, self.streams) and not left_out


class RateRule(RuleSettings):
    kind: Literal["rate"]
    signal: str = "ood"
    level: float = 0.05
    window_s: PositiveFloat = 300.0
    threshold: Share = 0.10
    min_images: PositiveInt = 100
    confidence: Share = 0.99


class SequentialRule(RuleSettings):
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


class ShiftRule(RuleSettings):
    kind: Literal["shift"]
    signals: Names = ("ood",)
    window_s: PositiveFloat = 3600.0
    effect: Share = 0.15
    min_images: PositiveInt = 500
    confidence: Share = 0.99


class RejectedRule(RuleSettings):
    kind: Literal["rejected"]
    window_s: PositiveFloat = 300.0
    threshold: Share = 0.05
    min_images: PositiveInt = 20
    confidence: Share = 0.99


class FrozenRule(RuleSettings):
    kind: Literal["frozen"]
    run: PositiveInt = 10
    """Identical consecutive images from which a stream counts as frozen."""


class SilenceRule(RuleSettings):
    kind: Literal["silence"]
    after_s: PositiveFloat = 300.0


AnyRule = Annotated[
    RateRule | SequentialRule | ShiftRule | RejectedRule | FrozenRule | SilenceRule,
    Field(discriminator="kind"),
]
