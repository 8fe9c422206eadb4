"""What happens in the demo: four lines run normally, three of them drift in different ways, all recover.

Event time runs twelve times as fast as the clock and begins in the past, so that buckets of ten seconds and windows of
a minute behave as in production and no timestamp ever lies in the future.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np

from monitor.demo.scene import FOREIGN_KIND, KINDS, draw, jpeg, light_at

TOPIC = "inspection"
BUCKET_S = 10
WINDOW_S = 60
"""The longest window of the demo's rules: for that long after the drift an alert may still begin."""

SPEED = 12.0
"""Seconds of event time per second of the clock."""
IMAGE_EVERY_S = 0.5
"""Of event time, per line: 96 images per second of the clock over the four lines."""
CALM_S, DRIFT_S = 120, 150
DRIFT_ENDS_S = CALM_S + DRIFT_S
LONGEST_S = DRIFT_ENDS_S + 600
"""Recovery lasts until every alert has resolved, and at most until then. The drift rule takes 10 to 40 s for it, the
rate rule some 70 s, since its window has to pass."""

DRIFT, RATE = "drift", "rate"
"""The rules of the demo."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens on a line, from when, what it must be told as, and which rules must alert on it."""

    what: str
    begins_s: int
    triage: str
    rules: tuple[str, ...] = (DRIFT, RATE)


STREAMS = ("line-1", "line-2", "line-3", "line-4")
SMEAR = Fault("lens smear", CALM_S, "sensor")
FOREIGN = Fault("foreign part", CALM_S + 20, "content")
MISSING = Fault("missing part", CALM_S, "mix", (DRIFT,))
"""One of the five parts is no longer made. Every picture is as normal as ever: no rule about single images sees it."""
FAULTS = {"line-2": SMEAR, "line-3": FOREIGN, "line-4": MISSING}
"""By stream; line-1 stays as it is and must raise no alert. All end with the act."""
SMEAR_GROWS_S, SMEAR_TOP = 60, 0.7
FOREIGN_SHARE = 0.35
"""Every third part: a wrong box at the loading station, not a changed product."""
MISSING_KIND = KINDS[0]


class Act(StrEnum):
    """The three parts of the story."""

    CALM = "normal production"
    DRIFT = "drift"
    RECOVERY = "recovery"


def act_at(time_s: float) -> Act:
    """The act at that time of the story."""
    if time_s < CALM_S:
        return Act.CALM
    return Act.DRIFT if time_s < DRIFT_ENDS_S else Act.RECOVERY


def fault_at(stream: str, time_s: float) -> Fault | None:
    """The fault that the stream shows at that time of the story."""
    fault = FAULTS.get(stream)
    return fault if fault and fault.begins_s <= time_s < DRIFT_ENDS_S else None


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to be taken: everything that it depends on except the camera's own noise."""

    stream: str
    time_s: float
    """Since the story began, in event time."""
    kind: str
    smear: float


def shots(rng: np.random.Generator) -> Iterator[Shot]:
    """Every picture of the story in the order of its event time; the lines take turns."""
    for i in range(round(LONGEST_S / IMAGE_EVERY_S) * len(STREAMS)):
        stream = STREAMS[i % len(STREAMS)]
        time_s = i * IMAGE_EVERY_S / len(STREAMS)
        fault, smear = fault_at(stream, time_s), 0.0
        kind = str(rng.choice([kind for kind in KINDS if fault is not MISSING or kind != MISSING_KIND]))
        if fault is SMEAR:
            smear = SMEAR_TOP * min(1.0, (time_s - CALM_S) / SMEAR_GROWS_S)
        elif fault is FOREIGN and rng.random() < FOREIGN_SHARE:
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


@dataclass(slots=True)
class Episode:
    """One alert from firing to resolved, in seconds of the story."""

    rule: str
    stream: str
    since_s: float
    fired_s: float
    resolved_s: float | None = None
    triage: str | None = None

    @property
    def expected(self) -> bool:
        """It began on a stream that drifts, while the drift lasted or one window after it."""
        return self.stream in FAULTS and CALM_S <= self.since_s < DRIFT_ENDS_S + WINDOW_S


@dataclass(slots=True)
class AlertLedger:
    """Records the alerts that arrived and reports which are missing, false, or told as what they are not.

    Args:
        start_ms: event time at which the story began.
    """

    start_ms: int
    episodes: dict[str, Episode] = field(default_factory=dict)

    def note(self, document: Mapping[str, Any]) -> None:
        """Enter one alert document (parsed); the same one twice changes nothing."""
        facts = document["data"]
        at_s, since_s = (
            datetime.fromisoformat(text).timestamp() - self.start_ms / 1000
            for text in (document["timestamp"], facts["since"])
        )
        episode = self.episodes.setdefault(
            facts["alert_id"], Episode(facts["rule"], facts["stream"], since_s, fired_s=at_s, triage=facts["triage"])
        )
        if document["type"] == "alert.resolved":
            episode.resolved_s = at_s

    def expected(self) -> list[Episode]:
        """Episodes that the injected drifts explain, by stream and time."""
        return sorted((e for e in self.episodes.values() if e.expected), key=lambda e: (e.stream, e.fired_s))

    def missing(self) -> list[str]:
        """Alerts that have not fired or not resolved yet, one line each; empty when the story may end."""
        fired = {(e.rule, e.stream) for e in self.expected()}
        wanted = [(rule, stream) for stream, fault in FAULTS.items() for rule in fault.rules]
        lines = [f"missing: {r} did not alert on {s} ({FAULTS[s].what})" for r, s in wanted if (r, s) not in fired]
        unresolved = (e for e in self.episodes.values() if e.resolved_s is None)
        return lines + [f"missing: {e.rule} on {e.stream} did not resolve" for e in unresolved]

    def problems(self) -> list[str]:
        """Alerts that are missing or false or told wrongly, one line each; empty when all went as it should."""
        lines = self.missing()
        for e in self.episodes.values():
            if not e.expected:
                lines.append(f"false alarm: {e.rule} on {e.stream} at {e.since_s:.0f} s")
            elif e.triage not in {None, FAULTS[e.stream].triage}:  # None: not clear yet
                lines.append(f"told wrongly: {e.rule} on {e.stream} as {e.triage}, not as {FAULTS[e.stream].triage}")
        return lines
