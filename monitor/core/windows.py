"""The closed buckets that rules still need, in memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from monitor.core.buckets import Layout, empty, sum_vectors
from monitor.core.types import Vector

EVERY = ""
"""In the place of a fingerprint: the counts of a stream by whichever profile, of which only the tail means anything."""


class Windows:
    """Closed buckets of every stream, as far back as the longest window reaches.

    Args:
        reach_ms: length of the longest window.
    """

    def __init__(self, reach_ms: int) -> None:
        self._reach_ms = reach_ms
        self._held: dict[str, dict[str, deque[tuple[int, Vector]]]] = {}
        """{stream: {fingerprint: (start, counts), oldest first}}"""

    def add(self, bucket_ms: int, sealed: Mapping[str, Mapping[str, Vector]]) -> None:
        """Add a closed bucket, {fingerprint: {stream: vector}}; the buckets of a fingerprint come oldest first."""
        for fingerprint, streams in sealed.items():
            for stream, vector in streams.items():
                self._held.setdefault(stream, {}).setdefault(fingerprint, deque()).append((bucket_ms, vector))
        for stream, judged in list(self._held.items()):
            for fingerprint, held in list(judged.items()):
                while held and held[0][0] <= bucket_ms - self._reach_ms:
                    held.popleft()
                if not held:
                    del judged[fingerprint]
            if not judged:
                del self._held[stream]

    def sum(self, layout: Layout, fingerprint: str, stream: str, after_ms: int) -> Vector:
        """Sum of the stream's buckets that start after that time; zeros where there are none."""
        rows = [vector for start, vector in self.buckets(fingerprint, stream) if start > after_ms]
        return sum_vectors(rows) if rows else empty(layout)

    def buckets(self, fingerprint: str, stream: str) -> list[tuple[int, Vector]]:
        """(start ms, counts) of the stream's buckets within reach, oldest first."""
        judged = self._held.get(stream, {})
        if fingerprint != EVERY:
            return list(judged.get(fingerprint, ()))
        return merged(item for held in judged.values() for item in held)

    def fingerprints_of(self, stream: str) -> list[str]:
        """The profiles that judged the stream within reach, the latest last."""
        judged = self._held.get(stream, {})
        return sorted(judged, key=lambda fingerprint: (judged[fingerprint][-1][0], fingerprint))


def merged(buckets: Iterable[tuple[int, Vector]]) -> list[tuple[int, Vector]]:
    """One vector per bucket start, oldest first. Only its tail means anything: that is the same in all layouts."""
    found: dict[int, list[Vector]] = {}
    for start, vector in buckets:
        found.setdefault(start, []).append(vector)
    return [(start, tails_added(found[start])) for start in sorted(found)]


def tails_added(vectors: list[Vector]) -> Vector:
    """Sum of vectors that may be of different layouts, aligned at their ends."""
    size = max(map(len, vectors))
    return sum_vectors(np.pad(vector, (size - len(vector), 0)) for vector in vectors)
