"""The sections `evaluation` and `renewal` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from monitor.core.settings import Duration, Glob, Section, Share

MOST_SHARDS = 64
"""A thread for each shard and receiver polls the outbox: more would keep the processes busy with that."""


class EvaluationSettings(Section):
    """How the streams are divided among the processes that judge them."""

    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)] = 1


SINCE_S, MARGIN_S = 7 * 86_400.0, 3600.0
MAX_SHIFT = 0.03
"""Less than would be lost unseen: with 1,000 calibration images a move of .025 can be told from chance."""


class RenewalSettings(Section):
    """When a store of profiles gets a new version from images of calm times; off unless `every` is given."""

    every: Annotated[Duration, Field(gt=0)] | None = None
    profile: str = ""
    """A store of profiles; that of `scoring.profile` by default."""
    streams: Glob = "*"
    since: Duration = SINCE_S
    margin: Duration = MARGIN_S
    """How long before and after an alert, and before the newest bucket, images are not calm."""
    calibrate_only: bool = False
    """Keep the detector: calibrate it anew."""
    expected: bool = False
    """Whether images that people called an expected change count as calm."""
    max_shift: Share = MAX_SHIFT
    """A candidate whose normal has moved by more is refused."""
    shadow: Duration = 86_400.0
    """How long a candidate scores beside the active version."""
    then: Literal["ask", "promote"] = "ask"
    """What becomes of one that was quiet in shadow; ask: an alert says that it waits for a person."""
