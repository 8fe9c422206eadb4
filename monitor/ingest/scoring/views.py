"""The views of profiles that are in use: which conditions the streams of each may have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from monitor.ingest.by_stream import ByStream
from monitor.ingest.conditions import ConditionRule

if TYPE_CHECKING:  # loads torch
    from detectors import Profile

_PLAIN = re.compile(r"[^*?\[\]]*")


class ConditionsError(ValueError):
    """A profile is not calibrated for conditions that the configuration names; `lines` has one per key."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def views_in_use(by_stream: ByStream[Profile], conditions: ByStream[ConditionRule | None]) -> list[Profile]:
    """The views of the profiles by every condition that the streams they judge may have.

    Raises:
        ConditionsError: a profile has no such condition.
    """
    found, wrong = [], []
    for i, (streams, rule) in enumerate(conditions.overrides):
        for glob, profile in (*by_stream.overrides, ("*", by_stream.default)):
            if rule is None or not may_overlap(streams, glob):
                continue
            names = rule.names or tuple(profile.conditions)
            known = ", ".join(sorted(profile.conditions)) or "none"
            lacking = [f"condition {name!r} (it has {known})" for name in names if name not in profile.conditions]
            wrong += [
                f"scoring.conditions.{i}.{rule.key}: profile {profile.fingerprint} has no {what}; "
                "`layerwatch calibrate --condition` adds one"
                for what in (lacking if names else ["conditions"])
            ]
            found += [profile.conditions[name] for name in names if name in profile.conditions]
            if fnmatchcase(streams, glob):  # all streams of the entry are judged by this profile
                break
    if wrong:
        raise ConditionsError(wrong)
    return found


def may_overlap(a: str, b: str) -> bool:
    """False where no name can match both globs: what stands before their first wildcard or after their last differs."""
    heads, tails = zip(*((_PLAIN.match(g), _PLAIN.match(g[::-1])) for g in (a, b)), strict=True)
    both = ([found[0] if found else "" for found in ends] for ends in (heads, tails))
    return all(one.startswith(other) or other.startswith(one) for one, other in both)
