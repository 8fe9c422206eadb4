"""Event time: which bucket an image counts in, and when a bucket may be closed. Pure functions of partitions' logs.

A partition's watermark is its highest event time so far, in offset order, minus the lateness. An image counts in the
bucket of its event time while that bucket is open in its own partition, else in the oldest bucket still open there.
This does not depend on other partitions, so every replay places every image in the same bucket.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from monitor.core.types import Cursor


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an image counts: `event_time_ms` is its own, or the partition's highest where that was in the future."""

    bucket_ms: int
    event_time_ms: int
    late: bool = False
    """Its own bucket was over; it counts in the oldest open one."""
    future: bool = False
    """Its timestamp was further ahead of the clock than allowed."""


def bucket_of(event_time_ms: int, bucket_ms: int) -> int:
    """Start of the half-open bucket [start, start + bucket_ms) that holds an event time."""
    return event_time_ms // bucket_ms * bucket_ms


def watermark_ms(high_ms: int, lateness_ms: int) -> int:
    """Event time before which no image is expected any more."""
    return high_ms - lateness_ms


class PartitionClock:
    """Event time of one partition, advanced image by image in offset order.

    Args:
        high_ms: highest event time already applied (from the cursor); None if there was no image yet.
        bucket_ms: length of a bucket.
        lateness_ms: how far an image may lag behind the highest event time and still count in its own bucket.
    """

    def __init__(self, high_ms: int | None, bucket_ms: int, lateness_ms: int) -> None:
        self.high_ms = high_ms
        self._bucket_ms = bucket_ms
        self._lateness_ms = lateness_ms

    def place(self, event_time_ms: int, now_ms: int, max_future_ms: int) -> Placed:
        """Place the next image of the log and move the clock.

        A timestamp more than `max_future_ms` ahead of `now_ms` would close every bucket up to it and make all that
        follows late; it counts at the partition's highest event time instead (now, where there is none yet).
        """
        future = event_time_ms > now_ms + max_future_ms
        if future:
            event_time_ms = now_ms if self.high_ms is None else self.high_ms
        self.high_ms = event_time_ms if self.high_ms is None else max(self.high_ms, event_time_ms)
        own = bucket_of(event_time_ms, self._bucket_ms)
        oldest_open = bucket_of(watermark_ms(self.high_ms, self._lateness_ms), self._bucket_ms)
        return Placed(max(own, oldest_open), event_time_ms, late=own < oldest_open, future=future)


def fleet_watermark(cursors: Iterable[Cursor | None], lateness_ms: int) -> int | None:
    """Event time up to which the whole topic has been read; None while that is unknown.

    It is the lowest watermark of the partitions that are not idle: one that has never had an image and is not idle
    holds the others back. When all are idle it is the highest watermark among them: event time stops until the next
    image, it is never extrapolated from the clock.

    Args:
        cursors: of every partition that is not left out (`monitor.core.readers`); None where it has none yet.
    """
    known = [(cursor.high_ms or None, cursor.idle) if cursor else (None, False) for cursor in cursors]
    active = [high for high, idle in known if not idle]
    if active:
        reached = [high for high in active if high is not None]
        return watermark_ms(min(reached), lateness_ms) if len(reached) == len(active) else None
    highs = [high for high, _ in known if high is not None]
    return watermark_ms(max(highs), lateness_ms) if highs else None


def closable(open_buckets: Iterable[int], watermark: int | None, bucket_ms: int) -> list[int]:
    """Starts of the open buckets that end at or before the watermark, oldest first."""
    if watermark is None:
        return []
    return sorted({start for start in open_buckets if start + bucket_ms <= watermark})
