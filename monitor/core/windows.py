"""The closed buckets that rules still need, in memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from monitor.core.buckets import Layout, empty, sum_vectors
from monitor.core.types import Vector


class Windows:
    """Closed buckets of every stream, as far back as the longest window reaches.

    Args:
        reach_ms: length of the longest window.
    """

    def __init__(self, reach_ms: int) -> None:
        self._reach_ms = reach_ms
        self._held: dict[tuple[str, str], deque[tuple[int, Vector]]] = {}

    def add(self, bucket_ms: int, sealed: Mapping[str, Mapping[str, Vector]]) -> None:
        """Add a closed bucket, {fingerprint: {stream: vector}}; the buckets of a fingerprint come oldest first."""
        for fingerprint, streams in sealed.items():
            for stream, vector in streams.items():
                self._held.setdefault((fingerprint, stream), deque()).append((bucket_ms, vector))
        for key, held in list(self._held.items()):
            while held and held[0][0] <= bucket_ms - self._reach_ms:
                held.popleft()
            if not held:
                del self._held[key]

    def sum(self, layout: Layout, fingerprint: str, stream: str, after_ms: int) -> Vector:
        """Sum of the stream's buckets that start after that time; zeros where there are none."""
        rows = [vector for start, vector in self.buckets(fingerprint, stream) if start > after_ms]
        return sum_vectors(rows) if rows else empty(layout)

    def buckets(self, fingerprint: str, stream: str) -> list[tuple[int, Vector]]:
        """(start ms, counts) of the stream's buckets within reach, oldest first."""
        return list(self._held.get((fingerprint, stream), ()))

    def fingerprint_of(self, stream: str) -> str | None:
        """The profile that judged the stream last, within reach."""
        found = [(held[-1][0], fingerprint) for (fingerprint, name), held in self._held.items() if name == stream]
        return max(found)[1] if found else None
