"""Reads the records that a source still holds: to learn from a stream's own past, and to replay it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources import SourceSection, SourceSettings, open_source
from monitor.sources.protocol import Polled, Source

POLL_S = 0.5


class Span:
    """The records of a source with since <= timestamp (< until), as a `Source` that ends where the logs end now.

    It never commits and writes no dead letters: a consumer that reads it leaves no trace.
    """

    def __init__(self, source: Source, since_ms: int, until_ms: int | None = None) -> None:
        self._source, self._since_ms, self._until_ms = source, since_ms, until_ms
        self._bounds = {p: (source.offset_at(p, since_ms), source.bounds(p)[1]) for p in source.partitions()}
        self.start, self.pause, self.resume, self.close = source.start, source.pause, source.resume, source.close
        self.offset_at, self.log_id, self.readable_from = source.offset_at, source.log_id, source.readable_from

    @property
    def generation(self) -> int:
        return self._source.generation

    def poll(self, timeout_s: float) -> Polled:
        polled = self._source.poll(timeout_s)
        records = {p: [r for r in found if self._holds(r)] for p, found in polled.records.items()}
        moved = {p: min(next_offset, self._bounds[p][1]) for p, next_offset in polled.next_offsets.items()}
        return Polled(records, moved, polled.assigned, polled.revoked)

    def _holds(self, record: Record) -> bool:
        began = record.timestamp_ms >= self._since_ms
        over = self._until_ms is not None and record.timestamp_ms >= self._until_ms
        return began and not over and record.offset < self._bounds[record.partition][1]

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


def open_span(settings: SourceSettings[SourceSection], since_ms: int, until_ms: int | None = None) -> Span:
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


def read_back(settings: SourceSettings[SourceSection], since_ms: int, until_ms: int | None = None) -> Iterator[Record]:
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
