"""What happens in the demo: three lines run normally, two of them drift in different ways, both recover.

Event time runs twelve times as fast as the clock and begins in the past, so that buckets of ten seconds and windows of
a minute behave as in production and no timestamp ever lies in the future.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from monitor.demo.scene import FOREIGN_KIND, KINDS, draw, jpeg, light_at

STREAMS = ("line-1", "line-2", "line-3")
INJECTED = {"line-2": "lens smear", "line-3": "foreign part"}
"""Which stream drifts, and how; line-1 stays as it is and must stay quiet."""

TOPIC = "inspection"
BUCKET_S = 10
WINDOW_S = 60
"""The longest window of the demo's rules: for that long after the drift an alert may still begin."""

SPEED = 12.0
"""Seconds of event time per second of the clock."""
IMAGE_EVERY_S = 0.5
"""Of event time, per line: 72 images per second of the clock over the three lines."""
CALM_S, DRIFT_S = 120, 150
RECOVERY_S = 600
"""At most: recovery lasts until every alert has resolved. The sequential rule takes a median of 140 s for it, and none
of 40 simulated runs took as long as this."""
LONGEST_S = CALM_S + DRIFT_S + RECOVERY_S

SMEAR_GROWS_S, SMEAR_TOP = 60, 0.7
FOREIGN_AFTER_S = 20
"""The second drift begins while the first one is under way."""
FOREIGN_SHARE = 0.35
"""Every third part: a wrong box at the loading station, not a changed product."""


class Act(StrEnum):
    """The three parts of the story."""

    CALM = "normal production"
    DRIFT = "drift"
    RECOVERY = "recovery"


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to be taken: everything that it depends on except the camera's own noise."""

    stream: str
    time_s: float
    """Since the story began, in event time."""
    kind: str
    smear: float


def act_at(time_s: float) -> Act:
    """The act at that time of the story."""
    if time_s < CALM_S:
        return Act.CALM
    return Act.DRIFT if time_s < CALM_S + DRIFT_S else Act.RECOVERY


def drift_begins_s(stream: str) -> float:
    """When the drift of that stream begins; all end together, with the act."""
    return CALM_S + (FOREIGN_AFTER_S if stream == "line-3" else 0)


def is_drifting(stream: str, time_s: float) -> bool:
    """Whether the fault of that line is there at that time."""
    return stream in INJECTED and drift_begins_s(stream) <= time_s < CALM_S + DRIFT_S


def shots(rng: np.random.Generator) -> Iterator[Shot]:
    """Every picture of the story in the order of its event time; the lines take turns."""
    for i in range(round(LONGEST_S / IMAGE_EVERY_S) * len(STREAMS)):
        stream = STREAMS[i % len(STREAMS)]
        time_s = i * IMAGE_EVERY_S / len(STREAMS)
        kind, smear = str(rng.choice(KINDS)), 0.0
        if is_drifting(stream, time_s) and stream == "line-2":
            smear = SMEAR_TOP * min(1.0, (time_s - CALM_S) / SMEAR_GROWS_S)
        elif is_drifting(stream, time_s) and rng.random() < FOREIGN_SHARE:
            kind = FOREIGN_KIND
        yield Shot(stream, time_s, kind, smear)


def take(rng: np.random.Generator, shot: Shot) -> bytes:
    """The picture as JPEG; each line has its own light."""
    phase = STREAMS.index(shot.stream) / len(STREAMS)
    return jpeg(draw(rng, shot.kind, light_at(shot.time_s, phase), shot.smear))


def reference(rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` named pictures of normal production, at all times of the light: what the profile is fitted on."""
    for i in range(count):
        light = light_at(rng.uniform(0, 1e5), rng.random())
        yield f"reference-{i}", jpeg(draw(rng, str(rng.choice(KINDS)), light))
