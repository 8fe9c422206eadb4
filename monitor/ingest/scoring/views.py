"""The views of profiles that are in use: which conditions the streams of each may have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from detectors.profile.outline import Outline
from monitor.ingest.by_stream import ByStream
from monitor.ingest.conditions import ConditionRule, PropertyCondition

if TYPE_CHECKING:  # loads torch
    from detectors import Profile

AnyProfile = TypeVar("AnyProfile", "Profile", Outline)
_PLAIN = re.compile(r"[^*?\[\]]*")


class ConditionsError(ValueError):
    """A profile does not fit the conditions or the other profiles of the configuration; `lines` has one per key."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def views_in_use(by_stream: ByStream[AnyProfile], conditions: ByStream[ConditionRule | None]) -> list[AnyProfile]:
    """The views of the profiles by every condition that the streams they judge may have.

    Raises:
        ConditionsError: a profile has no such condition.
    """
    found, wrong = [], []
    for i, rule, profile in _judging(by_stream, conditions):
        names = rule.names or tuple(profile.conditions)
        known = ", ".join(sorted(profile.conditions)) or "none"
        lacking = [f"condition {name!r} (it has {known})" for name in names if name not in profile.conditions]
        wrong += [
            f"scoring.conditions.{i}.{rule.key}: profile {profile.fingerprint} has no {what}; "
            "`layerwatch calibrate --condition` adds one"
            for what in (lacking if names else ["conditions"])
        ]
        found += [profile.conditions[name] for name in names if name in profile.conditions]
    if wrong:
        raise ConditionsError(wrong)
    return found


def unlike(by_stream: ByStream[Profile], shadow: ByStream[Profile | None]) -> Iterator[str]:
    """One line per profile in shadow that prepares images otherwise than a profile whose streams it may score.

    Images are decoded and prepared once.
    """
    for i, (streams, profile) in enumerate(shadow.overrides):
        for glob, judging in by_stream.entries():
            if profile is None or not may_overlap(streams, glob):
                continue
            if replace(profile.preparer, limits=judging.preparer.limits) != judging.preparer:
                yield (
                    f"scoring.shadow.{i}.version: profile {profile.fingerprint} prepares images otherwise than "
                    f"{judging.fingerprint} (size, resizing, tones or decoding), so it cannot score the same ones"
                )
            if fnmatchcase(streams, glob):  # all its streams are judged by this profile
                break


def misfits(by_stream: ByStream[AnyProfile], conditions: ByStream[ConditionRule | None]) -> Iterator[str]:
    """One line per condition by a property that was calibrated on images which the daemon would give to another one.

    Its p-values are those of other images than it judges. Of a hundred calibration images one may lie outside.
    """
    for i, rule, profile in _judging(by_stream, conditions):
        if not isinstance(rule, PropertyCondition):
            continue
        for name, (low, high) in rule.ranges.items():
            found = profile.conditions[name].quantiles()[rule.name]
            if (low is not None and found["p1"] < low) or (high is not None and found["p99"] >= high):
                yield (
                    f"scoring.conditions.{i}.ranges: {name} of profile {profile.fingerprint} was calibrated on images "
                    f"outside its range, with {rule.name} from {found['p1']:g} to {found['p99']:g}"
                )


def _judging(
    by_stream: ByStream[AnyProfile], conditions: ByStream[ConditionRule | None]
) -> Iterator[tuple[int, ConditionRule, AnyProfile]]:
    """(number of the entry, entry, profile) of each profile that may judge streams of the entry."""
    for i, (streams, rule) in enumerate(conditions.overrides):
        for glob, profile in by_stream.entries():
            if rule is None or not may_overlap(streams, glob):
                continue
            yield i, rule, profile
            if fnmatchcase(streams, glob):  # all streams of the entry are judged by this profile
                break


def may_overlap(a: str, b: str) -> bool:
    """False where no name can match both globs: what stands before their first wildcard or after their last differs."""
    heads, tails = zip(*((_PLAIN.match(g), _PLAIN.match(g[::-1])) for g in (a, b)), strict=True)
    both = ([found[0] if found else "" for found in ends] for ends in (heads, tails))
    return all(one.startswith(other) or other.startswith(one) for one, other in both)
