"""When a stream was calm: outside of every alert's span and the time around it; and few images of each hour. Pure.

A fault begins before it is noticed, so the time before an alert's onset is not calm either. Nor is the time after its
end: an alert ends where its rule is no longer sure, and a fault in few images may go on. Nor are the newest images: a
fault among them may not have been noticed yet.
"""

from __future__ import annotations

import heapq
import math
import sys
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import xxhash

from monitor.core.types import PastAlert

HOUR_MS = 3_600_000
Key = TypeVar("Key", bound=Hashable)

Spans = Sequence[tuple[int, int]]
"""[since, until) in ms, in order and apart."""


def unrest(alerts: Iterable[PastAlert], margins_ms: Mapping[str, int], least_ms: int) -> dict[str, Spans]:
    """{stream: when it was not calm}.

    Args:
        alerts: those that are over, and those under way with the time up to which they are judged.
        margins_ms: {rule: how long before and after an alert of it is not calm}, where that is longer than `least_ms`.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for alert in alerts:
        margin_ms = max(least_ms, margins_ms.get(alert.rule, 0))
        found.setdefault(alert.stream, []).append((alert.since_ms - margin_ms, alert.until_ms + margin_ms))
    return {stream: merged(spans) for stream, spans in found.items()}


def merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """The same times, in order and apart.

    >>> merged([(5, 9), (1, 3), (2, 6)])
    [(1, 9)]
    """
    found: list[tuple[int, int]] = []
    for since, until in sorted(spans):
        if found and since <= found[-1][1]:
            found[-1] = found[-1][0], max(until, found[-1][1])
        else:
            found.append((since, until))
    return found


def covers(spans: Spans, at_ms: int) -> bool:
    """Whether one of the spans holds that time."""
    place = bisect_right(spans, (at_ms, math.inf))
    return place > 0 and at_ms < spans[place - 1][1]


Cell = tuple[str, int]
"""(stream, start of an hour in ms)."""


@dataclass
class Thinned(Generic[Key]):
    """Chooses at most `most` of the images offered, equally many of each hour of each stream.

    Of an hour those with the lowest hashes: a random sample that two passes over the same images agree on.
    """

    most: int
    _cells: dict[Cell, list[tuple[int, Key]]] = field(default_factory=dict)
    """Heaps by negative hash: the highest is dropped first."""
    _quota: int = sys.maxsize
    """No hour gives more: it never grows, as what is offered only grows."""
    _held: int = 0
    _room: int = 0
    """Held until some are dropped."""

    def offer(self, cell: Cell, name: str, key: Key) -> None:
        """Another image; `name` is what its place in the sample follows from."""
        heap = self._cells.setdefault(cell, [])
        item = -xxhash.xxh3_64_intdigest(name.encode("utf-8", "backslashreplace")), key
        if len(heap) < self._quota:
            heapq.heappush(heap, item)
            self._held += 1
        else:
            heapq.heappushpop(heap, item)
        if self._held > max(self._room, 2 * self.most):
            self._drop()

    def _drop(self) -> None:
        self._quota = quota([len(heap) for heap in self._cells.values()], self.most)
        for heap in self._cells.values():
            while len(heap) > self._quota:
                heapq.heappop(heap)
        self._held = sum(map(len, self._cells.values()))
        self._room = 2 * self._held

    def chosen(self) -> dict[Cell, list[Key]]:
        """What was chosen, by hour of a stream; of more hours than `most` an image each of some."""
        self._drop()
        cells = self._cells.items()
        if self._held > self.most:
            cells = dict(sorted(cells, key=lambda item: item[1][0])[-self.most :]).items()
        return {cell: [key for _, key in heap] for cell, heap in cells}


def quota(counts: Sequence[int], most: int) -> int:
    """How many each may give at most, so that all together give at most `most`; at least 1.

    >>> quota([100, 100, 5], 45)
    20
    """
    left, waiting = most, len(counts)
    for count in sorted(counts):
        if count * waiting > left:
            return max(1, left // waiting)
        left -= count
        waiting -= 1
    return max([1, *counts])
