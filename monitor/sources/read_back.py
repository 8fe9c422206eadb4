"""Reads the records that a source still holds: to learn from a stream's own past, and to replay it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

from monitor.core.types import Partition, Record
from monitor.sources import SourceSection, SourceSettings, open_source

POLL_S = 0.5


def read_back(settings: SourceSettings[SourceSection], since_ms: int, until_ms: int | None = None) -> Iterator[Record]:
    """Every record of the topics with since <= timestamp (< until), each partition in the order of its log.

    Reads as a group of its own that never commits, so it can run beside the daemon, and stops at the ends that the
    logs have when it begins.

    Raises:
        SourceError: the source cannot be reached now.
        FatalSourceError: it cannot work with this configuration.
    """
    source = open_source(replace(settings, group_suffix=f"-archive-{uuid.uuid4().hex[:8]}"))
    try:
        ends: dict[Partition, int] = {}
        done: set[Partition] = set()
        while not ends or len(done) < len(ends):
            polled = source.poll(POLL_S)
            for partition in polled.assigned:
                ends = ends or {p: source.bounds(p)[1] for p in source.partitions()}
                begin = source.offset_at(partition, since_ms)
                source.start(partition, begin)
                if begin >= ends[partition]:
                    done.add(partition)
            for records in polled.records.values():
                for record in records:
                    inside = record.timestamp_ms >= since_ms and (until_ms is None or record.timestamp_ms < until_ms)
                    if inside and record.offset < ends[record.partition]:
                        yield record
            done |= {p for p, next_offset in polled.next_offsets.items() if next_offset >= ends[p]}
    finally:
        source.close()
