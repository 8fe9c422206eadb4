"""The story of a wanted change: a new product, a profile that is renewed with care, and a fault that it still sees.

An hour of production passes in a second or two. One hour is poisoned by a smeared lens: the renewal must not learn it.
What a person would type is run as commands, and shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monitor.demo.process import DaemonProcess, layerwatch
from monitor.demo.receiver import AlertReceiver
from monitor.demo.scene import FOREIGN_KIND, KINDS, draw, jpeg, light_at
from monitor.demo.screens import Screen
from monitor.demo.story import RATE, SMEAR_TOP, TOPIC
from monitor.sources import Producer
from monitor.store.child_process import ChildError

LINES = ("line-1", "line-2")
HOUR_S = 3600
BUCKET_S = 600
IMAGE_EVERY_S = 120
"""Of event time, per line: thirty images an hour."""
POISONED_H = 7
"""In this hour the lens of line-2 is smeared."""
PRODUCT_H, RENEWED_H, FAULT_H, END_H = 16, 24, 28, 31
"""A new product; the profile is renewed; the lens of line-1 is smeared; the end."""
PRODUCT_SHARE = 0.35
MAX_AHEAD = 200
PATIENCE_S = 120.0
RENEW = ("--since", "2d", "--expected", "--max-images", "800")


def renewal_settings(settings: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """The configuration of the demo's daemon for this story.

    False alarms: a window of 60 images fires with 17 beyond the 5 % cut, as in the other story, which has more windows.
    """
    rate = {
        "name": RATE,
        "kind": "rate",
        "level": 0.05,
        "threshold": 0.10,
        "window_s": 2 * HOUR_S,
        "min_images": 40,
        "labels": {"severity": "ticket"},
    }
    return {
        **settings,
        "scoring": {"profile": str(store), "shadow": [{"version": f"{store}@shadow"}]},
        "buckets": {"seconds": BUCKET_S, "lateness_s": 1.0, "idle_timeout_s": 1.0},
        "rules": [rate],
    }


class RenewalRun:
    """Plays the story once against a running daemon.

    Args:
        store: of profiles; its first version is active.
    """

    def __init__(
        self, daemon: DaemonProcess, receiver: AlertReceiver, producer: Producer, screen: Screen, store: Path
    ) -> None:
        self._daemon, self._receiver, self._producer, self._screen = daemon, receiver, producer, screen
        self._store = str(store)
        # so far back that no event time lies in the future
        self._start_ms = (int(time.time()) // HOUR_S - END_H - 1) * HOUR_S * 1000
        self._sent = 0
        self._alerts: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self._summary: list[str] = []

    def play(self, seed: int) -> None:
        """From normal production to a fault that the renewed version sees.

        Raises:
            ChildError: the daemon or a command has failed, or does not answer.
            SourceError: Redis is gone.
        """
        pictures = shots(np.random.default_rng(seed))
        self._screen.say(f"two lines run normally; in hour {POISONED_H} grease is on the lens of line-2")
        self._send(pictures, PRODUCT_H)
        self._await("the alert about the grease to end", lambda: self._phases("line-2")[:2] == ["firing", "resolved"])

        self._screen.say(f"from now on both lines make a sixth part, the {FOREIGN_KIND}: a change that is wanted")
        self._send(pictures, RENEWED_H)
        self._await("alerts about it", lambda: all(self._phases(line)[-1:] == ["firing"] for line in LINES))
        for alert_id in [self._alert_of(line)["alert_id"] for line in LINES]:
            self._run("feedback", "give", alert_id, "expected", "--comment", "new product")
        self._renew()

        self._run("profile", "shadow", self._store, "2", "--reason", "new product", config=False)
        self._await("the shadow", lambda: bool(self._versions()["shadow"]))
        self._send(pictures, RENEWED_H + 1)
        self._run("profile", "promote", self._store, "2", "--reason", "quiet in shadow", config=False)
        self._await("the daemon to switch", lambda: self._versions()["active"] == ["2"])
        self._send(pictures, FAULT_H)
        self._await("alerts to end", lambda: all(self._phases(line)[-1:] == ["resolved"] for line in LINES))
        self._summary.append("version 2 was promoted: the daemon switched without a restart, and the alerts ended")

        before = len(self._phases("line-1"))
        self._screen.say("later, grease on the lens of line-1: a real fault")
        self._send(pictures, END_H)
        self._await("an alert about the grease", lambda: self._phases("line-1")[before:] == ["firing"])
        self._summary.append("line-1 (lens smear): the renewed version still sees it")
        self._check_counts()

    def problems(self) -> list[str]:
        """What went wrong, one line each."""
        return self._problems

    def summary(self) -> list[str]:
        """What happened, one line each."""
        return [f"{self._sent:,} images sent and counted, {END_H} hours of production", *self._summary]

    # ---------------------------------------------------------------- acts

    def _renew(self) -> None:
        renew = ("profile", "renew", self._store, *RENEW, "--json")
        self._screen.say("a renewal takes images of calm times, and those that a person called expected")
        refused = json.loads(self._run(*renew, expected=1))
        self._screen.say(f"refused: {refused['reason']} since a person made version 1")
        accepted = json.loads(self._run(*renew, "--accept-shift", "new product"))
        self._screen.say(
            f"version {accepted['version']}: {accepted['images']} images of {accepted['hours']} calm hours; left out: "
            + "; ".join(f"{count} {why}" for why, count in accepted["left_out"].items() if count)
        )
        if (refused["outcome"], accepted["outcome"]) != ("refused", "accepted"):
            self._problems.append(f"renewal: {refused['outcome']}, then {accepted['outcome']}")
        if not accepted["left_out"].get("during an alert, or near one"):
            self._problems.append("renewal: the images of the smeared lens were not left out")
        self._summary.append(
            f"a renewal was refused, as normal had moved by {refused['moved']:.0%}; a person accepted it for a reason"
        )

    def _check_counts(self) -> None:
        self._await("all images to be counted", lambda: self._applied() == self._sent)
        for name, stream in self._daemon.streams().items():
            for count in ("rejected", "late", "duplicates"):
                if stream[count]:
                    self._problems.append(f"miscounted: {name}: {stream[count]} {count}")

    # ---------------------------------------------------------------- parts

    def _send(self, pictures: Iterator[tuple[str, float, bytes]], until_h: float) -> None:
        """Until that hour of the story; never far ahead of what is counted."""
        last = round(until_h * HOUR_S / IMAGE_EVERY_S) * len(LINES)
        first = self._sent
        while self._sent < last:
            stream, time_s, picture = next(pictures)
            at_ms = self._start_ms + round(1000 * time_s)
            self._producer.send(TOPIC, picture, stream.encode(), timestamp_ms=at_ms)
            self._sent += 1
            if self._sent % 50 == 0:
                self._producer.flush()
                self._screen.step("production", (self._sent - first) / (last - first))
                self._await("the daemon to keep up", lambda: self._sent - self._applied() < MAX_AHEAD)
        self._producer.flush()
        self._screen.step("production", 1.0)
        self._await("all images to be counted", lambda: self._applied() == self._sent)

    def _run(self, *words: str, expected: int = 0, config: bool = True) -> str:
        """One command; returns what it printed."""
        self._screen.say(f"$ layerwatch {' '.join(words)}".replace(self._store, "STORE"))
        config_option = ("-c", str(self._daemon.config)) if config else ()
        done = layerwatch(*words, *config_option)
        if done.returncode != expected:
            raise ChildError(f"layerwatch {words[0]} {words[1]} ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout

    def _await(self, what: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            if time.monotonic() > deadline:
                raise ChildError(f"waited {PATIENCE_S:.0f} s in vain for {what}{self._daemon.log_tail()}")
            time.sleep(0.1)

    def _applied(self) -> int:
        while self._receiver.alerts:
            document = self._receiver.alerts.popleft()
            self._alerts.append(document)
            self._screen.alert(document)
        return sum(stream["applied"] for stream in self._daemon.streams().values())

    def _phases(self, stream: str) -> list[str]:
        self._applied()
        return [d["data"]["phase"] for d in self._alerts if d["data"]["stream"] == stream]

    def _alert_of(self, stream: str) -> dict[str, Any]:
        found: dict[str, Any] = [d["data"] for d in self._alerts if d["data"]["stream"] == stream][-1]
        return found

    def _versions(self) -> dict[str, list[str]]:
        """Versions by what the daemon does with them."""
        profiles = self._daemon.profiles()
        return {
            "active": [name.rpartition("@")[2] for key, name in profiles.items() if "@" not in key],
            "shadow": [name for key, name in profiles.items() if key.endswith("@shadow") and name],
        }


def shots(rng: np.random.Generator) -> Iterator[tuple[str, float, bytes]]:
    """(line, second of the story, JPEG) of every picture, in order; the lines take turns."""
    for i in range(END_H * HOUR_S // IMAGE_EVERY_S * len(LINES)):
        line, time_s = LINES[i % len(LINES)], IMAGE_EVERY_S * i / len(LINES)
        hour = time_s / HOUR_S
        kind = FOREIGN_KIND if hour >= PRODUCT_H and rng.random() < PRODUCT_SHARE else str(rng.choice(KINDS))
        smeared = POISONED_H <= hour < POISONED_H + 1 if line == "line-2" else hour >= FAULT_H
        light = light_at(rng.uniform(0, 1e5), rng.random())
        yield line, time_s, jpeg(draw(rng, kind, light, SMEAR_TOP * smeared))
