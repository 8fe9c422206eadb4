"""The newest state of the fleet and of every stream, kept in memory for pages and scripts that ask often."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from pydantic import Field

from monitor.core.event_time import watermark_ms
from monitor.core.types import Cursor, Partition, Totals
from monitor.fleet.answers import Answer, Count, Share, Time
from monitor.fleet.history import REACH_MS, History
from monitor.fleet.state import FleetState, newest_event_ms, read_state
from monitor.store import Store, StoreError

log = structlog.get_logger(__name__)

FRESH_S = 1.5
"""Age up to which a snapshot is reused: reloading a page must not read Redis each time."""
REFRESH_SHARE, OLDEST_S = 0.1, 10.0
"""A snapshot that takes long is reused for longer, so that a tenth of the time at most goes into making them: of
10,000 streams it takes nearly a second. But no longer than for a default bucket."""
CATCHING_UP_FRESH_S = 10.0
"""The same while the last hour is being read: doing both at once would make the first visitors wait."""
LOOK_EVERY_S = 1.0
"""Between two checks for changes while a page is open; less than FRESH_S, so that open pages read nothing twice."""
FOLLOW_EVERY_S = 5.0
"""Between two checks for sealed buckets while no page is open."""
CATCH_UP_S, CATCH_UP_PAUSE_S = 0.05, 0.1
"""Catching up takes a third of the time: the daemon has other work, and pages wait for one piece at most."""


class StreamJson(Answer):
    applied: Count
    """Images counted since the state began."""
    rejected: Count
    """Records that could not be used."""
    rejected_by_reason: dict[str, Count]
    """Reason code -> records."""
    late: Count
    """Images that counted in a later bucket than their own."""
    duplicates: Count
    """Images identical to the one before."""
    changes: Count
    """Images whose size or mode differs from the one before."""
    ood_share: Share | None
    """Share of the last minute's images (event time) with p <= .05; null where there were none."""
    last_event: Time | None
    """Newest event time."""
    watermark: Time | None
    """Newest event time less the lateness."""
    alerts: tuple[str, ...]
    """Rules that are pending or firing."""
    conditions: tuple[str, ...]
    """In force: of the newest images; empty where the stream has none, or the profile's own calibration judged them."""
    partitions: tuple[Partition, ...] = Field(exclude=True)
    """Where its images come from; empty where that is not known ("(other)")."""


@dataclass(frozen=True)
class Snapshot(FleetState):
    """The state of the fleet with what is known of every stream, read at about the same time."""

    streams: Mapping[str, StreamJson] = field(default_factory=dict)
    """By name, in order."""
    number: int = 0
    """Grows with every change."""


class Overview:
    """Keeps a snapshot of the fleet. Safe to share between threads.

    Between `start` and `stop` a thread reads sealed buckets as they come, and new snapshots while a page is open.
    Without the thread everything is read on request.

    Args:
        reach_ms: how far back `lines` and `judged_by` look; no less than `history.WINDOW_MS`.
    """

    def __init__(self, store: Store, lateness_ms: int, reach_ms: int = REACH_MS) -> None:
        self._store, self._lateness_ms = store, lateness_ms
        self._history = History(store, reach_ms)
        self._reading = threading.Lock()
        self.newest, self._stamp = Snapshot(), ""
        self._taken_s = self._began_s = self._changed_s = -math.inf
        self._took_s = 0.0
        """What the newest snapshot cost, in seconds of this thread's processor time."""
        self.watchers = 0
        """Open connections of pages that wait for a change; see `watch`."""
        self.behind = 1
        """Sealed buckets that are still to be read."""
        self.stopping = threading.Event()
        """Watchers must disconnect."""
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take a first snapshot and start the thread."""
        self._thread = threading.Thread(target=self._run, name="overview", daemon=True)
        try:
            self.snapshot()
        except StoreError as error:
            log.warning("overview.redis_away", error=str(error))
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; waits for what it is reading."""
        self.stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def snapshot(self) -> Snapshot:
        """The state now, or of a moment ago.

        Raises:
            StoreError: Redis does not answer.
        """
        with self._reading:
            fresh_s = min(max(FRESH_S, self._took_s / REFRESH_SHARE), OLDEST_S)
            if self._thread is not None and self.behind:
                fresh_s = CATCHING_UP_FRESH_S
            if self._changed_s >= self._began_s or time.monotonic() - self._taken_s >= fresh_s:
                self._refresh()
            return self.newest

    def changed(self) -> None:
        """Make the next snapshot read again: this process has just written something."""
        self._changed_s = time.monotonic()
        self._wake.set()

    def lines(self, streams: Sequence[str], points: int) -> dict[str, list[tuple[int, int, int]]]:
        """`History.lines` up to the newest event time."""
        with self._reading:
            return self._history.lines(streams, self.newest.high_ms, points)

    def judged_by(self) -> dict[str, list[str]]:
        """`History.judged_by`, of the last hour."""
        with self._reading:
            return self._history.judged_by()

    # ---------------------------------------------------------------- watching

    def watch(self, more: int) -> None:
        """Count a watcher that comes (1) or goes (-1), from one thread; never waits for Redis."""
        self.watchers += more
        self._wake.set()

    def _run(self) -> None:
        while not self.stopping.is_set():
            pause_s, started_s = LOOK_EVERY_S if self.watchers else FOLLOW_EVERY_S, time.monotonic()
            try:
                self._look()
                # at most a tenth of the time: the daemon has other work
                pause_s = CATCH_UP_PAUSE_S if self.behind else max(pause_s, 9 * (time.monotonic() - started_s))
            except StoreError as error:
                log.warning("overview.redis_away", error=str(error))
            self._wake.wait(pause_s)
            self._wake.clear()

    def _look(self) -> None:
        with self._reading:
            began_s, was_behind = time.monotonic(), self.behind
            cursors, stamp = self._read_stamp()
            if self.watchers:
                if stamp != self._stamp:
                    self._refresh()
                else:
                    self._began_s, self._taken_s = began_s, time.monotonic()  # the snapshot is still true
            self.behind = self._history.follow(tuple(cursors), newest_event_ms(cursors), CATCH_UP_S)
            if was_behind and not self.behind:
                self._stamp = ""  # the snapshot lacks a part of the past: the next look replaces it

    # ---------------------------------------------------------------- reading

    def _read_stamp(self) -> tuple[Mapping[Partition, Cursor | None], str]:
        """All cursors, and a text that differs when anything has been applied, decided or silenced."""
        store = self._store
        cursors = store.partitions.cursors(store.catalog.partitions())
        return cursors, repr((store.shards.states(), store.silences.all(), store.outbox.self_alerts(), cursors))

    def _refresh(self) -> None:
        began_s, worked_s = time.monotonic(), time.thread_time()  # what changes from here on may be missing
        _, stamp = self._read_stamp()
        state = read_state(self._store, self._lateness_ms)
        while self._history.follow(state.partitions, state.high_ms, CATCH_UP_S) and self._thread is None:
            pass  # without the thread all of the past is read here
        self._history.read_open(state.partitions, state.high_ms)
        number = self.newest.number + (stamp != self._stamp)
        self.newest = Snapshot(**vars(state), streams=self._streams(state), number=number)
        self._stamp, self._began_s, self._taken_s = stamp, began_s, time.monotonic()
        self._took_s = time.thread_time() - worked_s

    def _streams(self, state: FleetState) -> dict[str, StreamJson]:
        last_event: dict[str, int] = {}
        partitions: dict[str, tuple[Partition, ...]] = {}
        for partition in state.partitions:
            for stream, facts in self._store.partitions.facts(partition).items():
                last_event[stream] = max(last_event.get(stream, 0), facts.event_time_ms)
                partitions[stream] = (*partitions.get(stream, ()), partition)
        conditions = self._history.conditions()
        shares, reasons = self._history.shares(state.high_ms), self._store.counts.rejected_reasons(state.partitions)
        active: dict[str, list[str]] = {}
        for alert in state.active:
            active.setdefault(alert.stream, []).append(alert.rule)
        found = {}
        for stream in sorted({*state.totals, *active}):
            last_ms, total = last_event.get(stream, 0), state.totals.get(stream, Totals())
            found[stream] = StreamJson(
                applied=total.applied,
                rejected=total.rejected,
                rejected_by_reason=dict(sorted(reasons.get(stream, {}).items())),
                late=total.late,
                duplicates=total.duplicates,
                changes=total.changes,
                ood_share=shares.get(stream),
                last_event=last_ms or None,
                watermark=watermark_ms(last_ms, self._lateness_ms) if last_ms else None,
                alerts=tuple(sorted(active.get(stream, ()))),
                conditions=conditions.get(stream, ()),
                partitions=partitions.get(stream, ()),
            )
        return found
