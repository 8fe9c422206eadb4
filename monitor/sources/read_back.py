"""Reads the records that a source still holds: to learn from a stream's own past, and to replay it."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from statistics import median

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources import SourceSection, SourceSettings, open_source
from monitor.sources.protocol import Polled, Source

POLL_S = 0.5


AHEAD = 31
"""Records that are read ahead to estimate when one was read: more than half of so many would have to be wrong."""


class Span:
    """The records of a source with since <= time (< until), as a `Source` that ends where the logs end now.

    It never commits and writes no dead letters: a consumer that reads it leaves no trace. Each record has an estimate
    of the time when it came, the median timestamp of those that follow it in its log, so that a timestamp too far in
    the future is recognised as it was then. The time of a record without a timestamp is that of the one before it.

    Args:
        since_ms: None reads all that the logs hold.
    """

    def __init__(self, source: Source, since_ms: int | None = None, until_ms: int | None = None) -> None:
        self._source, self._since_ms, self._until_ms = source, since_ms, until_ms
        self._bounds = {p: self._bounds_of(p) for p in source.partitions()}
        self._ahead: dict[Partition, deque[Record]] = {p: deque() for p in self._bounds}
        self._clocks: dict[Partition, int] = {}
        self._times: dict[Partition, int] = {}
        self._reached = {p: first for p, (first, _) in self._bounds.items()}
        self.pause, self.resume, self.close = source.pause, source.resume, source.close
        self.offset_at, self.log_id, self.readable_from = source.offset_at, source.log_id, source.readable_from

    def _bounds_of(self, partition: Partition) -> tuple[int, int]:
        first, end = self._source.bounds(partition)
        return first if self._since_ms is None else self._source.offset_at(partition, self._since_ms), end

    @property
    def generation(self) -> int:
        return self._source.generation

    @property
    def progress(self) -> tuple[int, int]:
        """(offsets read, all offsets of the span)."""
        read = sum(self._reached[p] - first for p, (first, _) in self._bounds.items())
        return read, sum(end - first for first, end in self._bounds.values())

    def start(self, partition: Partition, next_offset: int) -> None:
        self._ahead[partition].clear()
        self._source.start(partition, next_offset)

    def poll(self, timeout_s: float) -> Polled:
        polled = self._source.poll(timeout_s)
        records: dict[Partition, list[Record]] = {}
        moved: dict[Partition, int] = {}
        for partition, next_offset in polled.next_offsets.items():
            end, ahead = self._bounds[partition][1], self._ahead[partition]
            ahead.extend(r for r in polled.records.get(partition, ()) if r.offset < end)
            left = 0 if next_offset >= end else AHEAD
            found = [self._take(partition, ahead) for _ in range(len(ahead) - left)]
            if found or not ahead:
                records[partition] = [record for record, held in found if held]
                moved[partition] = ahead[0].offset if ahead else min(next_offset, end)
                self._reached[partition] = max(self._reached[partition], moved[partition])
        return Polled(records, moved, polled.assigned, polled.revoked)

    def _take(self, partition: Partition, ahead: deque[Record]) -> tuple[Record, bool]:
        """The next record with the estimate of when it came, and whether it belongs to the span."""
        record = ahead.popleft()
        followers = [follower.timestamp_ms for follower in islice(ahead, AHEAD) if follower.timestamp_ms > 0]
        if followers:  # the last of a log gets no estimate: it was read just before now
            self._clocks[partition] = max(self._clocks.get(partition, 0), round(median(followers)))
            record = replace(record, read_ms=self._clocks[partition])
        if record.timestamp_ms > 0:
            likely = not followers or record.timestamp_ms <= max(followers)
            self._times[partition] = record.timestamp_ms if likely else min(record.timestamp_ms, record.read_ms or 0)
        time_ms = self._times.get(partition)
        if time_ms is None:
            return record, self._since_ms is None
        began = self._since_ms is None or time_ms >= self._since_ms
        return record, began and (self._until_ms is None or time_ms < self._until_ms)

    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._bounds)

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return self._bounds[partition]

    def committed(self, partition: Partition) -> int | None:  # noqa: ARG002
        return None

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:  # noqa: ARG002
        return

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:  # noqa: ARG002
        return


def open_span(
    settings: SourceSettings[SourceSection], since_ms: int | None = None, until_ms: int | None = None
) -> Span:
    """That span of the topics, read as a group of its own beside the daemon.

    Raises:
        SourceError: the source does not answer now.
        FatalSourceError: it will not with this configuration.
    """
    source = open_source(replace(settings, group_suffix=f"-archive-{uuid.uuid4().hex[:8]}"))
    try:
        return Span(source, since_ms, until_ms)
    except BaseException:
        source.close()
        raise


def read_back(
    settings: SourceSettings[SourceSection], since_ms: int | None = None, until_ms: int | None = None
) -> Iterator[Record]:
    """Every record of that span, each partition in the order of its log; errors as `open_span`."""
    with closing(open_span(settings, since_ms, until_ms)) as span:
        unread = {p for p in span.partitions() if span.bounds(p)[0] < span.bounds(p)[1]}
        while unread:
            polled = span.poll(POLL_S)
            for partition in polled.assigned:
                span.start(partition, span.bounds(partition)[0])
            for records in polled.records.values():
                yield from records
            unread -= {p for p, next_offset in polled.next_offsets.items() if next_offset >= span.bounds(p)[1]}
