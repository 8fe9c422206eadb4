"""Counts of profiles in shadow: they score the same images, and nothing but a comparison looks at them. Pure.

They stand beside the other counts, under a fingerprint that begins with PREFIX: no rule judges them, and totals leave
them out (apply.lua knows the prefix too).
"""

from __future__ import annotations

import math

PREFIX = "shadow-"


def shadow_of(fingerprint: str) -> str:
    """What the counts of a profile carry while it is in shadow: made active later, it begins with counts of its own."""
    return PREFIX + fingerprint


def is_shadow(fingerprint: str) -> bool:
    """Whether counts under that fingerprint are those of a profile in shadow."""
    return fingerprint.startswith(PREFIX)


def disagreement(p_value: float, shadow: float) -> float:
    """How far two profiles disagree on an image, by its p-values: |ln p - ln q|; 0 where they agree."""
    return abs(math.log(p_value) - math.log(shadow))
