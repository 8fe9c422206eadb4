"""The kinds of rules that a configuration may name, and the checks of the configured ones. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from monitor.core.buckets import Layout
from monitor.rules.rate import RateRule
from monitor.rules.rule import Rule
from monitor.rules.sequential.rule import SequentialRule
from monitor.rules.shift import ShiftRule
from monitor.rules.stream_health import FrozenRule, RejectedRule, SilenceRule

KINDS: tuple[type[Rule], ...] = (RateRule, SequentialRule, ShiftRule, RejectedRule, FrozenRule, SilenceRule)
"""Every kind of rule that a configuration may name, in the order of the reference page."""

STANDARD_RULES: tuple[Rule, ...] = (
    SequentialRule(name="drift", kind="sequential", signals=("*",)),
    RateRule(name="many-unusual", kind="rate", threshold=0.2, keep_firing_for=60),
)
"""The rules about images of the commented default, config.yaml: what is spoken of where no configuration is at hand."""


def any_rule(kinds: Iterable[type[Rule]]) -> Any:
    """The type of one entry of the `rules` section, selected by `kind`."""
    return Annotated[Union[tuple(kinds)], Field(discriminator="kind")]  # noqa: UP007 - made of a tuple


if TYPE_CHECKING:
    AnyRule = Rule
else:
    AnyRule = any_rule(KINDS)


def wrong_numbers(rules: Iterable[Rule], bucket_s: int) -> list[str]:
    """One line per rule whose numbers are not consistent."""
    wrong = []
    for i, rule in enumerate(rules):
        try:
            rule.check_numbers(bucket_s)
        except ValueError as error:
            wrong.append(f"rules.{i} ({rule.name}): {error}")
    return wrong


def unsuited_rules(rules: Iterable[Rule], layouts: Mapping[str, Layout]) -> list[str]:
    """One line per rule that cannot judge by a loaded profile (unknown signal, too few calibration images)."""
    wrong = []
    for rule in rules:
        for fingerprint, layout in layouts.items():
            try:
                rule.check(layout)
            except (KeyError, ValueError) as error:
                of = f"profile {fingerprint}{layout.condition and f', condition {layout.condition}'}"
                wrong.append(f"rules: {rule.name}: {error.args[0]} ({of})")
    return wrong
