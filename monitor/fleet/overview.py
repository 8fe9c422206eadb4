"""What stands in Redis, per stream, for people and scripts: the command line, the pages and the JSON API."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from monitor.core.alert_document import rfc3339
from monitor.core.alert_state import UNDER_WAY
from monitor.core.event_time import fleet_watermark, watermark_ms
from monitor.core.types import Alert, Cursor, Partition, Totals
from monitor.fleet.history import REACH_MS, WINDOW_MS, History
from monitor.store import Store, StoreError

log = structlog.get_logger(__name__)

FRESH_S = 1.5
"""A snapshot younger than this is shown again: reloading a page must not read Redis anew."""
CATCHING_UP_FRESH_S = 10.0
"""Likewise while the past is read: both at once would make the first visitors wait."""
LOOK_EVERY_S = 1.0
"""Between looks for news while somebody watches a page; less than FRESH_S, so that watchers read nothing twice."""
FOLLOW_EVERY_S = 5.0
"""Between looks for sealed buckets while nobody does."""
CATCH_UP_S, CATCH_UP_PAUSE_S = 0.05, 0.1
"""Catching up takes a third of the time: the daemon has other work, and pages wait for one piece at most."""


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One stream: counts since the state began, and how it looks now."""

    totals: Totals
    ood_share: float | None
    """Share of the last minute's images (event time) with p <= .05; None where there were none."""
    last_event_ms: int
    watermark_ms: int
    alerts: tuple[str, ...]
    """Rules that are pending or firing."""
    reasons: Mapping[str, int]
    """Reason code -> records rejected for it."""
    partitions: tuple[Partition, ...] = ()
    """Where its images come from; empty where that is not known ("(other)")."""

    def to_json(self) -> dict[str, Any]:
        """As the API and `layerwatch streams --json` give it."""
        return {
            "applied": self.totals.applied,
            "rejected": self.totals.rejected,
            "rejected_by_reason": dict(sorted(self.reasons.items())),
            "late": self.totals.late,
            "duplicates": self.totals.duplicates,
            "changes": self.totals.changes,
            "ood_share": None if self.ood_share is None else round(self.ood_share, 6),
            "last_event": rfc3339(self.last_event_ms) if self.last_event_ms else None,
            "watermark": rfc3339(self.watermark_ms) if self.last_event_ms else None,
            "alerts": list(self.alerts),
        }


@dataclass(frozen=True)
class Snapshot:
    """Everything that the pages show of the whole fleet, read at about the same time."""

    rows: Mapping[str, StreamRow] = field(default_factory=dict)
    """By name, in order."""
    alerts: Sequence[Alert] = ()
    """All that are kept, firing ones first, then the latest."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Open episodes of the monitor's own troubles: name -> alert document."""
    silences: Mapping[str, str] = field(default_factory=dict)
    cursors: Mapping[Partition, Cursor | None] = field(default_factory=dict)
    high_ms: int = 0
    """The newest event time of all."""
    watermark_ms: int | None = None
    """Event time up to which every partition has been read; None while that is unknown."""
    number: int = 0
    """Grows with every change."""


def stream_rows(store: Store, lateness_ms: int) -> dict[str, StreamRow]:
    """Every stream that ever sent something, by name.

    Raises:
        StoreError: Redis does not answer.
    """
    return dict(Overview(store, lateness_ms, reach_ms=WINDOW_MS).snapshot().rows)


class Overview:
    """Keeps the fleet's state at hand. Safe to share between threads.

    Between `start` and `stop` a thread follows the sealed buckets, and looks for news while somebody watches. Without
    it everything is read when asked for.
    """

    def __init__(self, store: Store, lateness_ms: int, reach_ms: int = REACH_MS) -> None:
        self._store, self._lateness_ms = store, lateness_ms
        self._history = History(store, reach_ms)
        self._reading = threading.Lock()
        self._snapshot, self._stamp = Snapshot(), ""
        self._taken_s = -math.inf
        self._watchers, self._counting = 0, threading.Lock()
        self.behind = 1
        """Sealed buckets still to be read, as far as it reaches."""
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow, with a first snapshot at hand."""
        self._thread = threading.Thread(target=self._run, name="overview", daemon=True)
        try:
            self.snapshot()
        except StoreError as error:
            log.warning("overview.redis_away", error=str(error))
        self._thread.start()

    def stop(self) -> None:
        """End it; what is being read is waited for."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def snapshot(self) -> Snapshot:
        """The state now, or of a moment ago.

        Raises:
            StoreError: Redis does not answer.
        """
        with self._reading:
            fresh_s = CATCHING_UP_FRESH_S if self._thread is not None and self.behind else FRESH_S
            if time.monotonic() - self._taken_s >= fresh_s:
                self._refresh()
            return self._snapshot

    def changed(self) -> None:
        """Something was written by us: whoever asks next must see it."""
        self._taken_s = -math.inf
        self._wake.set()

    def lines(self, streams: Sequence[str], points: int) -> dict[str, list[tuple[int, int, int]]]:
        """`History.lines` up to the newest event time."""
        with self._reading:
            return self._history.lines(streams, self._snapshot.high_ms, points)

    def judged_by(self) -> dict[str, list[str]]:
        """`History.judged_by`, of the last hour."""
        with self._reading:
            return self._history.judged_by()

    # ---------------------------------------------------------------- watching

    @property
    def number(self) -> int:
        """Of the newest snapshot."""
        return self._snapshot.number

    @property
    def stopping(self) -> bool:
        """Whether whoever watches should let go."""
        return self._stop.is_set()

    @property
    def watchers(self) -> int:
        """How many watch."""
        return self._watchers

    def watch(self, more: int) -> None:
        """Somebody begins (1) or ends (-1) to watch; never waits for Redis."""
        with self._counting:
            self._watchers += more
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s, started_s = LOOK_EVERY_S if self._watchers else FOLLOW_EVERY_S, time.monotonic()
            try:
                behind = self._follow()
                if self._watchers:
                    self._look()
                # at most a tenth of the time goes into looking: the daemon has other work
                pause_s = CATCH_UP_PAUSE_S if behind else max(pause_s, 9 * (time.monotonic() - started_s))
            except StoreError as error:
                log.warning("overview.redis_away", error=str(error))
            self._wake.wait(pause_s)
            self._wake.clear()

    def _follow(self) -> int:
        partitions = self._store.catalog.partitions()
        high_ms = _high(self._store.partitions.cursors(partitions))
        with self._reading:
            self.behind = self._history.follow(partitions, high_ms, CATCH_UP_S)
        return self.behind

    def _look(self) -> None:
        with self._reading:
            if self._read_stamp() != self._stamp:
                self._refresh()
            self._taken_s = time.monotonic()  # what is shown is still so

    # ---------------------------------------------------------------- reading

    def _read_stamp(self) -> str:
        """Differs when anything has been applied, decided or silenced."""
        store = self._store
        cursors = store.partitions.cursors(store.catalog.partitions())
        return repr((store.evaluation.state(), store.silences.all(), store.outbox.self_alerts(), cursors))

    def _refresh(self) -> None:
        store, stamp = self._store, self._read_stamp()
        partitions = store.catalog.partitions()
        cursors = store.partitions.cursors(partitions)
        high_ms = _high(cursors)
        while self._history.follow(partitions, high_ms, CATCH_UP_S) and self._thread is None:
            pass  # nobody catches up for us
        self._history.look(partitions, high_ms)
        known = sorted(store.evaluation.alerts().values(), key=_urgency)
        self._snapshot = Snapshot(
            rows=self._rows(partitions, high_ms, known),
            alerts=tuple(known),
            own=store.outbox.self_alerts(),
            silences=store.silences.all(),
            cursors=cursors,
            high_ms=high_ms,
            watermark_ms=fleet_watermark(cursors.values(), self._lateness_ms),
            number=self._snapshot.number + (stamp != self._stamp),
        )
        self._stamp, self._taken_s = stamp, time.monotonic()

    def _rows(self, partitions: Sequence[Partition], high_ms: int, known: Sequence[Alert]) -> dict[str, StreamRow]:
        store = self._store
        totals = store.counts.totals(partitions)
        last_event: dict[str, int] = {}
        places: dict[str, tuple[Partition, ...]] = {}
        for partition in partitions:
            for stream, facts in store.partitions.facts(partition).items():
                last_event[stream] = max(last_event.get(stream, 0), facts.event_time_ms)
                places[stream] = (*places.get(stream, ()), partition)
        shares, reasons = self._history.shares(high_ms), store.counts.rejected_reasons(partitions)
        under_way: dict[str, list[str]] = {}
        for alert in known:
            if alert.phase in UNDER_WAY:
                under_way.setdefault(alert.stream, []).append(alert.rule)
        return {
            stream: StreamRow(
                totals=totals.get(stream, Totals()),
                ood_share=shares.get(stream),
                last_event_ms=last_event.get(stream, 0),
                watermark_ms=watermark_ms(last_event.get(stream, 0), self._lateness_ms),
                alerts=tuple(sorted(under_way.get(stream, ()))),
                reasons=reasons.get(stream, {}),
                partitions=places.get(stream, ()),
            )
            for stream in sorted({*totals, *under_way})
        }


def _urgency(alert: Alert) -> tuple[int, int, str, str]:
    rank = UNDER_WAY.index(alert.phase) if alert.phase in UNDER_WAY else len(UNDER_WAY)
    latest_ms = alert.since_ms if rank < len(UNDER_WAY) else alert.resolved_ms
    return rank, -latest_ms, alert.rule, alert.stream


def _high(cursors: Mapping[Partition, Cursor | None]) -> int:
    return max((cursor.high_ms for cursor in cursors.values() if cursor), default=0)
