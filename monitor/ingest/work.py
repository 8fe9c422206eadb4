"""Records between poll and apply: their partition, their progress, and the bytes they hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from monitor.core.aggregate import Outcome
from monitor.core.reject_window import RejectWindow
from monitor.core.types import Partition, Record, StreamFacts
from monitor.ingest.decode.pool import DecodedRecord
from monitor.ingest.decode.records import count_images
from monitor.sources.protocol import Polled
from monitor.telemetry import metrics


@dataclass(eq=False, slots=True)
class OwnedPartition:
    """A partition that this process has claimed: the state that Redis holds, changed only after an apply.

    A new claim of the same partition is a new object: results that belong to an older claim are dropped.
    """

    partition: Partition
    token: str
    next_offset: int
    high_ms: int | None
    facts: dict[str, StreamFacts] = field(default_factory=dict)
    rejects: RejectWindow = field(default_factory=RejectWindow)
    active_s: float = field(default_factory=time.monotonic)
    """Monotonic time of the claim or of the last record."""
    idle: bool = False
    """Marked in Redis as read to its end and without new records."""


@dataclass(eq=False, slots=True)
class Work:
    """The records of one partition from one poll, or a part of them; each stage adds its result."""

    owner: OwnedPartition
    records: Sequence[Record]
    next_offset: int
    """Cursor of the partition after this work; may lie beyond the last record."""
    size: int = 0
    """Bytes counted against the queue limit."""
    decoding: Sequence[Future[DecodedRecord]] = ()
    """One per record, once decoding has started."""
    outcomes: Sequence[Outcome] = ()
    """One per record, once it is scored."""


class Backlog:
    """The work between poll and scored, counted in bytes; belongs to the consumer's thread.

    The consumer pauses reading by `held_bytes`. As a few bytes may unpack to many images, decoding starts only for
    work that fits into `queue_bytes` when decoded.

    Args:
        image_bytes: what one image holds once it is prepared for the model.
    """

    def __init__(self, queue_bytes: int, image_bytes: int) -> None:
        self._queue_bytes, self._image_bytes = queue_bytes, image_bytes
        self._waiting: deque[Work] = deque()
        self.held_bytes = 0
        self.started_bytes = 0
        """The part of `held_bytes` that is decoded or being decoded."""
        self.works = 0

    def add(self, polled: Polled, owned: Mapping[Partition, OwnedPartition]) -> None:
        """Add what one poll returned of the partitions that we own."""
        for partition, next_offset in polled.next_offsets.items():
            owner = owned.get(partition)
            if owner is not None:
                owner.active_s = time.monotonic()
                for work in self._parts(owner, polled.records.get(partition, ()), next_offset):
                    self.held_bytes += work.size
                    self.works += 1
                    self._waiting.append(work)
        metrics.QUEUE_BYTES.set(self.held_bytes)

    def _parts(self, owner: OwnedPartition, records: Sequence[Record], next_offset: int) -> Iterator[Work]:
        """Split the records into parts of which several fit into `queue_bytes`; a record is never split."""
        part: list[Record] = []
        size = 0
        for record in records:
            # its bytes and the prepared images: what decoding and scoring hold together
            cost = record.size + count_images(record) * self._image_bytes
            if part and size + cost > self._queue_bytes // 4:
                yield Work(owner, part, record.offset, size)
                part, size = [], 0
            part.append(record)
            size += cost
        yield Work(owner, part, next_offset, size)

    def start(self) -> list[Work]:
        """The work to decode next: as much as fits; work that is larger than the limit starts alone."""
        started = []
        while self._waiting:
            if self.started_bytes and self.started_bytes + self._waiting[0].size > self._queue_bytes:
                break
            work = self._waiting.popleft()
            self.started_bytes += work.size
            started.append(work)
        return started

    def finish(self, works: Sequence[Work]) -> None:
        """Remove scored work from the counts."""
        size = sum(work.size for work in works)
        self.held_bytes -= size
        self.started_bytes -= size
        self.works -= len(works)
