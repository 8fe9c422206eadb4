"""Reads back what the configured source still holds: to learn from a stream's own past, and to replay it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from monitor.core.types import Partition, Record
from monitor.sources import open_source

if TYPE_CHECKING:
    from monitor.config.schema import Config


POLL_S = 0.5


def read_back(settings: Config, since_ms: int, until_ms: int | None = None) -> Iterator[Record]:
    """Every record of the topics with since <= timestamp (< until), each partition in the order of its log.

    Reads as a group of its own that never commits, beside the daemon, up to the ends the logs have at the beginning.

    Raises:
        SourceError: the source does not answer now.
        FatalSourceError: it will not with this configuration.
    """
    source = open_source(_alone(settings))
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


def _alone(settings: Config) -> Config:
    name = f"{settings.kafka.group_id}-archive-{uuid.uuid4().hex[:8]}"
    kafka = settings.kafka.model_copy(update={"group_id": name})
    return settings.model_copy(update={"kafka": kafka, "monitor": name})
