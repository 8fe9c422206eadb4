"""What the demo shows: an alert in plain words, and the plain screen for logs, pipes and CI."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from monitor.demo.story import Act

PLAIN_EVERY_S = 5.0
"""Between two lines of state on the plain screen."""
WHAT_IT_LOOKS_LIKE = {
    "sensor": "the sensor: lens, light or focus, for the picture itself has changed",
    "content": "the content: the pictures are fine, what they show is new",
    None: "not clear yet: no signal has surely moved",
}


@dataclass(frozen=True, slots=True)
class LineStatus:
    """One production line as the daemon reports it, and the fault that the demo injects now (empty: none)."""

    name: str
    applied: int
    ood_share: float | None
    """Of the last minute of event time."""
    alerts: tuple[str, ...]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class DemoStatus:
    """One moment of the demo."""

    act: Act
    time_s: float
    """Event time since the story began."""
    images_per_s: float
    lines: Sequence[LineStatus]


class Screen(Protocol):
    """Where the demo shows what it does."""

    def say(self, text: str) -> None:
        """One line of narration."""

    def step(self, name: str, share: float) -> None:
        """Progress of a long step, 0 to 1; a new name begins a new step."""

    def show(self, status: DemoStatus) -> None:
        """The state now."""

    def alert(self, document: Mapping[str, Any]) -> None:
        """An alert that the receiver got."""

    def end(self, lines: Sequence[str], good: bool) -> None:
        """The summary; nothing else is shown after it."""

    def close(self) -> None:
        """Leave the terminal as it was; never raises, may be called twice."""


class PlainScreen:
    """Lines without colour or movement, each with the seconds since the start."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._started = time.monotonic()
        self._shown_s = float("-inf")
        self._quarter = ("", -1)

    def say(self, text: str) -> None:
        self._out.write(f"[{time.monotonic() - self._started:6.1f} s] {text}\n")
        self._out.flush()

    def step(self, name: str, share: float) -> None:
        quarter = (name, int(share * 4))
        if quarter != self._quarter:
            self._quarter = quarter
            self.say(f"{name}: {quarter[1] * 25} %")

    def show(self, status: DemoStatus) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < PLAIN_EVERY_S:
            return
        self._shown_s = now_s
        lines = "; ".join(
            f"{line.name} {line.applied} images, OOD {percent(line.ood_share)}{' ALERT' if line.alerts else ''}"
            for line in status.lines
        )
        self.say(f"{status.act} at {minutes(status.time_s)}, {status.images_per_s:.0f} images/s: {lines}")

    def alert(self, document: Mapping[str, Any]) -> None:
        self.say(headline(document))
        for label, text in details(document):
            self.say(f"    {label:<10} {text}")

    def end(self, lines: Sequence[str], good: bool) -> None:
        for line in lines:
            self.say(line)
        self.say("demo passed" if good else "demo FAILED")

    def close(self) -> None:
        """Nothing to restore."""


def headline(document: Mapping[str, Any]) -> str:
    """`FIRING line-2 by rule drift (08:20:10)`."""
    facts = document["data"]
    return f"{facts['phase'].upper()} {facts['stream']} by rule {facts['rule']} ({document['timestamp'][11:19]})"


def details(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An alert as (label, text): what happened, how sure that is, what moved, what it looks like."""
    facts = document["data"]
    if document["type"] == "alert.resolved":
        return [("calm again", facts["summary"])]
    lines = [("what", facts["summary"]), ("how sure", _how_sure(facts))]
    if facts["signals"]:
        lines.append(("what moved", ", ".join(f"{s['signal']} {s['effect']:.2f}" for s in facts["signals"][:6])))
    lines.append(("looks like", WHAT_IT_LOOKS_LIKE[facts["triage"]]))
    return lines


def _how_sure(facts: Mapping[str, Any]) -> str:
    """The bound on false alarms where the rule has one over time, and the share of drifted images with its interval."""
    parts = ["at most one false alarm a week over all lines"] if facts["kind"] == "sequential" else []
    if severity := facts["severity"]:
        lower, estimate, upper = (percent(severity[name]) for name in ("lower", "estimate", "upper"))
        # at the moment of a sequential alarm nothing has been counted since, and the interval is all of 0 to 1
        interval = f" (interval {lower} to {upper})" if severity["lower"] > 0 or severity["upper"] < 1 else ""
        parts.append(f"about {estimate} of the images drifted{interval}")
    return "; ".join(parts)


def percent(share: float | None) -> str:
    """`12 %`; a dash where there is nothing to count."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def minutes(time_s: float) -> str:
    """`2:05`."""
    return "{}:{:02d}".format(*divmod(int(time_s), 60))
