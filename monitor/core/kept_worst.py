"""Which unusual images a store that keeps the worst of each stream and hour would keep. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from monitor.core.types import Exemplar

HOUR_MS = 3_600_000
"""Unusual images are kept by the hour of their event time, so that each hour keeps its own."""
MOST_STREAMS = 10_000
"""Remembered at a time; beyond, all are forgotten. Names come from senders, and there is no end of them."""
HOURS = 2
"""Remembered of a stream: its newest ones. Of older ones every image is taken for one of the worst."""


def hour_of(event_time_ms: int) -> int:
    """Start of the hour, in ms."""
    return event_time_ms // HOUR_MS * HOUR_MS


class KeptWorst:
    """The ranks of the worst images of each stream and hour so far, `most` of each.

    It may know less than the store, never more: what it refuses, the store would drop.
    """

    def __init__(self, most: int = 12) -> None:
        self._most = most
        self._ranks: dict[tuple[str, str], dict[int, list[float]]] = {}

    def admits(self, image: Exemplar) -> bool:
        """Whether fewer than `most` images of its stream and hour are worse."""
        ranks = self._ranks.get((image.fingerprint, image.stream), {}).get(hour_of(image.event_time_ms), [])
        return len(ranks) < self._most or (self._most > 0 and image.rank <= ranks[-1])

    def add(self, images: Iterable[Exemplar]) -> None:
        """Count images that the store has."""
        for image in images:
            name = image.fingerprint, image.stream
            if name not in self._ranks and len(self._ranks) >= MOST_STREAMS:
                self._ranks.clear()
            hours = self._ranks.setdefault(name, {})
            ranks = hours.setdefault(hour_of(image.event_time_ms), [])
            insort(ranks, image.rank)
            del ranks[self._most :]
            if len(hours) > HOURS:
                del hours[min(hours)]
