"""One run of the demo: sends the pictures on time, shows what the daemon reports, collects the alerts."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from monitor.demo import story
from monitor.demo.process import DaemonProcess, StreamJson
from monitor.demo.receiver import AlertReceiver
from monitor.demo.screens import DemoStatus, Screen
from monitor.demo.story import FAULTS, STREAMS, Act, AlertLedger, act_at
from monitor.sources import Producer
from monitor.store.child_process import ChildError

POLL_S = 0.4
"""Between two queries of the daemon."""
MAX_AHEAD = 300
"""Images sent but not yet counted: a slow machine makes the demo longer, never wrong."""
STALL_S = 60.0
RATE_OVER_POLLS = 8

NARRATION = {
    Act.CALM: f"four lines run normally; one second here is {story.SPEED:.0f} on the lines",
    Act.DRIFT: "line-2: grease creeps over the lens; line-4: one of the five parts is no longer made. Soon after, "
    "wrong parts on line-3. line-1 stays as it is",
    Act.RECOVERY: "the lens is wiped, the wrong parts are gone, all five are made: now the alerts have to resolve",
}
NOT_SEEN = StreamJson(applied=0, rejected=0, late=0, duplicates=0, ood_share=None, alerts=[])


class DemoRun:
    """Plays the story once against a running daemon.

    Args:
        producer: writes to the topic that the daemon reads.
        receiver: what the daemon sends its alerts to.
    """

    def __init__(
        self,
        daemon: DaemonProcess,
        receiver: AlertReceiver,
        producer: Producer,
        screen: Screen,
    ) -> None:
        self._daemon, self._receiver, self._producer, self._screen = daemon, receiver, producer, screen
        # on the edge of a bucket, and so far back that no event time lies in the future
        self._start_ms = int(time.time() - story.LONGEST_S) // story.BUCKET_S * story.BUCKET_S * 1000
        self._ledger = AlertLedger(self._start_ms)
        self._sent = dict.fromkeys(STREAMS, 0)
        self._reported = dict.fromkeys(STREAMS, NOT_SEEN)
        self._act: Act | None = None
        self._time_s = 0.0
        self._polled_s = float("-inf")
        self._progress_s = time.monotonic()
        self._counts = deque([(self._progress_s, 0)], maxlen=RATE_OVER_POLLS)

    def play(self, seed: int) -> None:
        """Send until every alert has resolved or the story is over, then wait until everything sent is counted.

        Raises:
            ChildError: the daemon has ended, does not answer, or no longer counts anything.
            SourceError: Redis is gone.
        """
        rng = np.random.default_rng(seed)
        began_s = time.monotonic()
        for shot in story.shots(rng):
            self._wait_until(began_s + shot.time_s / story.SPEED)
            self._time_s = shot.time_s
            if act_at(shot.time_s) is Act.RECOVERY and not self._ledger.missing():
                break
            timestamp_ms = self._start_ms + round(shot.time_s * 1000)
            self._producer.send(story.TOPIC, story.take(rng, shot), shot.stream.encode(), timestamp_ms=timestamp_ms)
            self._sent[shot.stream] += 1
        self._producer.flush()
        while self._uncounted:
            time.sleep(0.1)
            self._poll()
        self._poll()

    def problems(self) -> list[str]:
        """What went wrong, one line each: alerts missing or false, images not counted once, signatures that fail."""
        lines = self._ledger.problems()
        for stream, sent in self._sent.items():
            reported = self._reported[stream]
            counts = {name: reported[name] for name in ("rejected", "late", "duplicates")}
            wrong = {name: count for name, count in counts.items() if count}
            if reported["applied"] != sent or wrong:
                lines.append(f"miscounted: {stream}: {sent} images sent, {reported['applied']} counted {wrong or ''}")
        if refused := self._receiver.refused:
            lines.append(f"refused: {refused} alerts came with a wrong signature")
        return lines

    def summary(self) -> list[str]:
        """What was sent, counted and alerted on, one line each."""
        total = sum(self._sent.values())
        lines = [f"{total:,} images sent, {self._applied:,} counted, {self._time_s / 60:.0f} minutes of production"]
        for episode in self._ledger.expected():
            stream, rule = episode.stream, episode.rule
            fired = episode.fired_s - FAULTS[stream].begins_s
            line = f"{stream} ({FAULTS[stream].what}): {rule} fired {fired:.0f} s after it began"
            if episode.resolved_s is not None:
                line += f", resolved {episode.resolved_s - story.DRIFT_ENDS_S:.0f} s after it was over"
            lines.append(line)
        alerted = {episode.stream for episode in self._ledger.episodes.values()}
        return lines + [f"{stream}: quiet from beginning to end" for stream in STREAMS if stream not in alerted]

    @property
    def _applied(self) -> int:
        return sum(stream["applied"] for stream in self._reported.values())

    @property
    def _uncounted(self) -> int:
        return sum(self._sent.values()) - self._applied

    def _wait_until(self, due_s: float) -> None:
        """Until the next picture is due and the daemon is not too far behind."""
        while True:
            if time.monotonic() - self._polled_s >= POLL_S:
                self._poll()
            wait_s = due_s - time.monotonic()
            if wait_s <= 0 and self._uncounted < MAX_AHEAD:
                return
            self._producer.flush()  # it batches; what is due now must not wait for a full batch
            time.sleep(min(max(wait_s, 0.02), 0.1))

    def _poll(self) -> None:
        """Collect the alerts received, query the daemon, and show both."""
        if (act := act_at(self._time_s)) is not self._act:
            self._act = act
            self._screen.say(NARRATION[act])
        while self._receiver.alerts:
            document = self._receiver.alerts.popleft()
            self._ledger.note(document)
            self._screen.alert(document)
        before = self._applied
        self._reported |= self._daemon.streams()
        self._polled_s = now_s = time.monotonic()
        if self._applied > before or not self._uncounted:
            self._progress_s = now_s
        elif now_s - self._progress_s > STALL_S:
            raise ChildError(f"the daemon has counted no image for {STALL_S:.0f} s; its log: {self._daemon.log_tail()}")
        self._counts.append((now_s, self._applied))
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        rate = (last - first) / max(last_s - first_s, 1e-9)
        self._screen.show(DemoStatus(self._time_s, rate, self._reported))
