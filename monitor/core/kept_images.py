"""Which images a store would keep: the worst of each stream and hour, and a random sample of its last minutes. Pure."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

import xxhash

from monitor.core.types import Exemplar, Sampled

HOUR_MS = 3_600_000
"""Unusual images are kept by the hour of their event time, so that each hour keeps its own."""
MOST_STREAMS = 10_000
"""Remembered at a time; beyond, all are forgotten. Names come from senders, and there is no end of them."""
SAMPLED = 24
"""Images of a stream's sample: both ends of a coordinate then have a few, and a page shows them all."""
SAMPLE_MS = 600_000
"""The chance to be in the sample falls to 1 / e of that of a new image in so long: what a stream shows now, and of an
alert that has just fired the images that raised it."""
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


def sample_score(stream: str, id_: str, event_time_ms: int) -> float:
    """By which a sample keeps the images with the highest: t / tau - ln(-ln u), u uniform by a hash of the image's id.

    Then an image is kept with a chance that falls with its age as exp(-age / tau) and depends on nothing else, whatever
    the order, the batches and the partitions it came in (Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", Information Processing Letters 97, 2006).
    """
    digest = xxhash.xxh3_64_intdigest(f"{stream}\0{id_}".encode("utf-8", "backslashreplace"))
    return event_time_ms / SAMPLE_MS - math.log(-math.log(uniform(digest)))


def uniform(digest: int) -> float:
    """64 bits as a number in (0, 1), by 52 of them: with more, the highest would be rounded to 1: that has no score."""
    return ((digest >> 12) + 0.5) / 2.0**52


class RecentSample:
    """The scores of the sample of each stream under each profile; as `KeptWorst`, it may know less than the store."""

    def __init__(self) -> None:
        self._scores: dict[tuple[str, str], list[float]] = {}

    def admits(self, fingerprint: str, stream: str, score: float) -> bool:
        """Whether an image of that score belongs to the sample."""
        scores = self._scores.get((fingerprint, stream), [])
        return len(scores) < SAMPLED or score > scores[0]

    def add(self, images: Iterable[Sampled]) -> None:
        """Count images that the store has."""
        for score, image in images:
            name = image.fingerprint, image.stream
            if name not in self._scores and len(self._scores) >= MOST_STREAMS:
                self._scores.clear()
            scores = self._scores.setdefault(name, [])
            insort(scores, score)
            del scores[:-SAMPLED]


@dataclass(frozen=True, slots=True)
class KeptImages:
    """What is remembered of both, for one partition."""

    worst: KeptWorst = field(default_factory=KeptWorst)
    sample: RecentSample = field(default_factory=RecentSample)
