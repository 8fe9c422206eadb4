"""The kinds of rules, and how the configured ones are bound to their judges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.rules.frozen import FrozenRule
from monitor.rules.judge import Judge
from monitor.rules.rate import RateRule
from monitor.rules.rejected import RejectedRule
from monitor.rules.sequential.judge import SequentialRule
from monitor.rules.settings import RuleSettings
from monitor.rules.shift import ShiftRule
from monitor.rules.silence import SilenceRule

KINDS: tuple[type[RuleSettings], ...] = (
    RateRule,
    SequentialRule,
    ShiftRule,
    RejectedRule,
    FrozenRule,
    SilenceRule,
)
"""Every kind of rule that a configuration may name, in the order of the reference page."""


def any_rule(kinds: Iterable[type[RuleSettings]]) -> Any:
    """The type of one entry of the `rules` section, told apart by `kind`."""
    return Annotated[Union[tuple(kinds)], Field(discriminator="kind")]  # noqa: UP007 - made of a tuple


if TYPE_CHECKING:
    AnyRule = RuleSettings
else:
    AnyRule = any_rule(KINDS)


class RuleError(ValueError):
    """Rules are wrong; `lines` has one line per rule, each naming it."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class BoundRule:
    """A configured rule with what judges for it, and how verdicts move its alerts."""

    settings: RuleSettings
    judge: Judge
    policy: Policy

    @property
    def name(self) -> str:
        """The rule's name in the configuration."""
        return self.settings.name


def bind_rules(rules: Iterable[RuleSettings], monitor: str, bucket_s: int) -> tuple[BoundRule, ...]:
    """Every configured rule with its judge.

    Raises:
        RuleError: the numbers of a rule do not go together.
    """
    bound, wrong = [], []
    for i, rule in enumerate(rules):
        policy = Policy(
            monitor=monitor,
            bucket_len_ms=bucket_s * 1000,
            for_ms=round(rule.for_s * 1000),
            keep_firing_for_ms=round(rule.keep_firing_for_s * 1000),
        )
        try:
            bound.append(BoundRule(rule, rule.bind(bucket_s), policy))
        except ValueError as error:
            wrong.append(f"rules.{i} ({rule.name}): {error}")
    if wrong:
        raise RuleError(wrong)
    return tuple(bound)


def check_rules(rules: Iterable[BoundRule], layouts: Mapping[str, Layout]) -> list[str]:
    """One line per rule that a loaded profile cannot carry (unknown signal, too few calibration images)."""
    wrong = []
    for rule in rules:
        for fingerprint, layout in layouts.items():
            try:
                rule.judge.check(layout)
            except (KeyError, ValueError) as error:
                wrong.append(f"rules: {rule.name}: {error.args[0]} (profile {fingerprint})")
    return wrong
