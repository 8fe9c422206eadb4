"""The closed buckets that rules still need, in memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import TAIL, Layout, empty, sum_vectors
from monitor.core.shadow import is_shadow, shadow_of
from monitor.core.table import Table, as_slice
from monitor.core.types import Vector

EVERY = ""
"""In the place of a fingerprint: the counts of a stream by whichever profile, of which only the tail means anything."""

Held = deque[tuple[int, Table]]
"""(bucket start ms, counts), oldest first."""


class Windows:
    """Closed buckets of every stream, as far back as the longest window reaches.

    Args:
        reach_ms: length of the longest window.
    """

    def __init__(self, reach_ms: int) -> None:
        self._reach_ms = reach_ms
        self._held: dict[str, Held] = {}
        """By fingerprint."""
        self._running: dict[tuple[str, int], _RunningSums] = {}
        """By fingerprint and length of the window: those that were asked for."""

    def add(self, bucket_ms: int, sealed: Mapping[str, Mapping[str, Vector]]) -> None:
        """Add a closed bucket, {fingerprint: {stream: vector}}; the buckets of a fingerprint come oldest first."""
        for fingerprint, streams in sealed.items():
            if streams:
                self._held.setdefault(fingerprint, deque()).append((bucket_ms, Table.of(streams)))
        for fingerprint, held in list(self._held.items()):
            while held and held[0][0] <= bucket_ms - self._reach_ms:
                held.popleft()
            if not held:
                del self._held[fingerprint]
                # nobody may ask for its sums again, and they hold the buckets of a window
                for key in [key for key in self._running if key[0] == fingerprint]:
                    del self._running[key]

    def sum(self, layout: Layout, fingerprint: str, stream: str, after_ms: int) -> Vector:
        """Sum of the stream's buckets that start after that time; zeros where there are none."""
        rows = [vector for start, vector in self.buckets(fingerprint, stream) if start > after_ms]
        return sum_vectors(rows) if rows else empty(layout)

    def sums(self, fingerprint: str, streams: Sequence[str], until_ms: int, window_ms: int) -> NDArray[np.uint32]:
        """(K, V) sums of the streams' buckets with until - window < start <= until; the last entry is none: a maximum.

        They are kept as running sums, so that a window of thirty buckets costs as much as one of two. Of EVERY (K, 6),
        the tail.

        Args:
            streams: K names; each has counts in the window.
            until_ms: no less than at the call before, by fingerprint and window.
        """
        running = self._running.setdefault((fingerprint, window_ms), _RunningSums())
        inside = [
            (start, name, table)
            for name in self._names(fingerprint)
            for start, table in self._held.get(name, ())
            if until_ms - window_ms < start <= until_ms
        ]
        for start, name, table in sorted(inside, key=itemgetter(0, 1)):
            running.take(name, start, table, -len(TAIL) if fingerprint == EVERY else 0)
        running.drop(until_ms - window_ms)
        return running.of(streams)

    def buckets(self, fingerprint: str, stream: str) -> list[tuple[int, Vector]]:
        """(start ms, counts) of the stream's buckets within reach, oldest first."""
        found = [
            (start, table[stream])
            for name in self._names(fingerprint)
            for start, table in self._held.get(name, ())
            if stream in table
        ]
        if fingerprint == EVERY:
            return merged(found)
        if shadow_of(fingerprint) not in self._held:
            return found
        of_start: dict[int, list[Vector]] = {}
        for start, vector in found:
            of_start.setdefault(start, []).append(vector)
        return [(start, sum_vectors(of_start[start])) for start in sorted(of_start)]

    def _names(self, fingerprint: str) -> list[str]:
        """Whose counts its window holds: also what the profile counted in shadow, before it was made active."""
        if fingerprint != EVERY:
            return [fingerprint, shadow_of(fingerprint)]
        return [name for name in self._held if not is_shadow(name)]

    def fingerprints_of(self, stream: str) -> list[str]:
        """The profiles that judged the stream within reach, the latest last."""
        latest = {
            fingerprint: next((start for start, table in reversed(held) if stream in table), None)
            for fingerprint, held in self._held.items()
            if not is_shadow(fingerprint)
        }
        found = [(start, fingerprint) for fingerprint, start in latest.items() if start is not None]
        return [fingerprint for _, fingerprint in sorted(found)]


class _RunningSums:
    """The sums of one window; buckets come in and leave, oldest first."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._sums: NDArray[np.uint32] = np.zeros((0, 0), dtype=np.uint32)
        self._inside: deque[tuple[int, NDArray[np.intp] | slice, NDArray[np.uint32]]] = deque()
        self._newest_ms: dict[str, int] = {}

    def take(self, fingerprint: str, start_ms: int, table: Table, first: int) -> None:
        """Add a bucket, unless it is inside; `first` is that of the entries that are summed."""
        if start_ms <= self._newest_ms.get(fingerprint, -1):
            return
        self._newest_ms[fingerprint] = start_ms
        place, counts = self._place, table.counts[:, first:]
        for stream in table.streams:
            place.setdefault(stream, len(place))
        rows = as_slice(np.array([place[stream] for stream in table.streams], dtype=np.intp))
        if len(place) > len(self._sums):
            grown = np.zeros((2 * len(place), counts.shape[1]), dtype=np.uint32)
            if len(self._sums):
                grown[: len(self._sums)] = self._sums
            self._sums = grown
        self._sums[rows] += counts  # a stream is in a table once
        self._inside.append((start_ms, rows, counts))

    def drop(self, after_ms: int) -> None:
        """Take out the buckets that start then or before."""
        while self._inside and self._inside[0][0] <= after_ms:
            _, rows, counts = self._inside.popleft()
            self._sums[rows] -= counts
        if not self._inside:  # of streams that are gone nothing stays for ever
            self._place.clear()
            self._sums = np.zeros((0, 0), dtype=np.uint32)

    def of(self, streams: Sequence[str]) -> NDArray[np.uint32]:
        return self._sums[as_slice(np.array([self._place[stream] for stream in streams], dtype=np.intp))]


def merged(buckets: Iterable[tuple[int, Vector]]) -> list[tuple[int, Vector]]:
    """(start, (6,) tails added up) per bucket start, oldest first: only the tail is the same in all layouts."""
    found: dict[int, list[Vector]] = {}
    for start, vector in buckets:
        found.setdefault(start, []).append(vector)
    return [(start, sum_vectors(vector[-len(TAIL) :] for vector in found[start])) for start in sorted(found)]


def tails(tables: Sequence[Table]) -> Table:
    """(K, 6) the tails of the streams of all tables, added up by stream."""
    return Table.added([Table(table.streams, table.counts[:, -len(TAIL) :]) for table in tables])
