"""Plays the story: sends the pictures in time, shows what the daemon makes of them, collects the alerts."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.demo.console import Screen, StreamView, View
from monitor.demo.process import DaemonProcess, DemoError
from monitor.demo.receiver import AlertReceiver
from monitor.demo.story import (
    CALM_S,
    DRIFT_S,
    INJECTED,
    SPEED,
    STREAMS,
    Act,
    act_at,
    shots,
    take,
    trouble_begins_s,
    troubled,
)
from monitor.demo.verdict import Ledger
from monitor.sources import Producer

LOOK_S = 0.4
"""Between two looks at the daemon."""
MAX_AHEAD = 300
"""Images sent but not yet counted: a slow machine makes the demo longer, never wrong."""
STALL_S = 60.0
RATE_OVER_LOOKS = 8

NARRATION = {
    Act.CALM: f"three lines run normally; one second here is {SPEED:.0f} on the lines",
    Act.DRIFT: "line-2: grease creeps over the lens. Soon after, wrong parts on line-3. line-1 stays as it is",
    Act.RECOVERY: "the lens is wiped, the wrong parts are gone: now the alerts have to resolve",
}


@dataclass(frozen=True)
class Stage:
    """What the play needs: where to send, whom to ask, who receives, who shows."""

    producer: Producer
    topic: str
    daemon: DaemonProcess
    receiver: AlertReceiver
    screen: Screen


class Play:
    """One performance. `ledger` then knows every alert.

    Args:
        start_ms: event time at which the story begins, on the edge of a bucket.
    """

    def __init__(self, stage: Stage, ledger: Ledger, start_ms: int, seed: int) -> None:
        self.ledger = ledger
        self.sent = dict.fromkeys(STREAMS, 0)
        self._stage, self._start_ms = stage, start_ms
        self._rng = np.random.default_rng(seed)
        self._rows: Mapping[str, Mapping[str, Any]] = {}
        self._act: Act | None = None
        self._time_s = 0.0
        self._looked_s = float("-inf")
        self._counts: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=RATE_OVER_LOOKS)
        self._moved_s = time.monotonic()

    def run(self) -> None:
        """Play until every alert has resolved or the story is over, and everything sent is counted.

        Raises:
            DemoError: the daemon ended, or counts nothing any more.
            SourceError: Redis is gone.
        """
        began_s = time.monotonic()
        for shot in shots(self._rng):
            self._wait_until(began_s + shot.time_s / SPEED)
            self._time_s = shot.time_s
            if act_at(shot.time_s) is Act.RECOVERY and self.ledger.complete():
                break
            self._stage.producer.send(
                self._stage.topic,
                take(self._rng, shot),
                shot.stream.encode(),
                timestamp_ms=self._start_ms + round(shot.time_s * 1000),
            )
            self.sent[shot.stream] += 1
        self._stage.producer.flush()
        while self._applied < sum(self.sent.values()):
            time.sleep(0.1)
            self._look()
        self._look()

    def problems(self) -> list[str]:
        """What went wrong, one line each: alerts missing or false, images not counted once, signatures that fail."""
        lines = self.ledger.problems()
        for stream, sent in self.sent.items():
            row = self._rows.get(stream, {})
            strange = {name: row.get(name, 0) for name in ("rejected", "late", "duplicates") if row.get(name)}
            if row.get("applied", 0) != sent or strange:
                lines.append(
                    f"miscounted: {stream}: {sent} images sent, {row.get('applied', 0)} counted {strange or ''}"
                )
        if refused := self._stage.receiver.refused:
            lines.append(f"refused: {refused} alerts came with a wrong signature")
        return lines

    def summary(self) -> list[str]:
        """What was seen, for the end."""
        total = sum(self.sent.values())
        lines = [f"{total:,} images sent, {self._applied:,} counted, {self._time_s / 60:.0f} minutes of production"]
        for episode in sorted(self.ledger.rightful(), key=lambda e: (e.stream, e.fired_s)):
            fired = (episode.fired_s or 0) - trouble_begins_s(episode.stream)
            line = f"{episode.stream} ({INJECTED[episode.stream]}): {episode.rule} fired {fired:.0f} s after it began"
            if episode.resolved_s is not None:
                line += f", resolved {episode.resolved_s - CALM_S - DRIFT_S:.0f} s after it was over"
            lines.append(line)
        alerted = {episode.stream for episode in self.ledger.episodes.values()}
        lines += [f"{stream}: quiet from beginning to end" for stream in STREAMS if stream not in alerted]
        return lines

    @property
    def _applied(self) -> int:
        return sum(row["applied"] for row in self._rows.values())

    def _wait_until(self, due_s: float) -> None:
        """Until it is time for the next picture and the daemon is not too far behind."""
        while True:
            if time.monotonic() - self._looked_s >= LOOK_S:
                self._look()
            wait_s = due_s - time.monotonic()
            behind = sum(self.sent.values()) - self._applied
            if wait_s <= 0 and behind < MAX_AHEAD:
                return
            self._stage.producer.flush()  # it gathers; what is due now must not wait for its batch to fill
            time.sleep(min(max(wait_s, 0.02), 0.1))

    def _look(self) -> None:
        """Take what the receiver got, ask the daemon where it stands, and show both."""
        self._narrate()
        self._take_alerts()
        before = self._applied
        self._rows = self._stage.daemon.streams()
        self._looked_s = now_s = time.monotonic()
        if self._applied > before or self._applied >= sum(self.sent.values()):
            self._moved_s = now_s
        elif now_s - self._moved_s > STALL_S:
            raise DemoError(
                f"the daemon has counted no image for {STALL_S:.0f} s; its log: {self._stage.daemon.log_tail()}"
            )
        self._counts.append((now_s, self._applied))
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        streams = [self._view(stream) for stream in STREAMS]
        rate = (last - first) / max(last_s - first_s, 1e-9)
        self._stage.screen.show(View(act_at(self._time_s), self._time_s, rate, streams))

    def _view(self, stream: str) -> StreamView:
        row = self._rows.get(stream, {"applied": 0, "ood_share": None, "alerts": []})
        trouble = INJECTED[stream] if troubled(stream, self._time_s) else ""
        return StreamView(stream, row["applied"], row["ood_share"], tuple(row["alerts"]), trouble)

    def _narrate(self) -> None:
        act = act_at(self._time_s)
        if act is not self._act:
            self._act = act
            self._stage.screen.say(NARRATION[act])

    def _take_alerts(self) -> None:
        while True:
            try:
                document = self._stage.receiver.alerts.get_nowait()
            except queue.Empty:
                return
            self.ledger.note(document)
            self._stage.screen.alert(document)
