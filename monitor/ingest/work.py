"""Records on their way from poll to apply: whose they are, how far they have come, and the bytes they hold."""

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
    """A partition that this process has claimed. It stands where Redis stands, and moves only after an apply.

    A new claim of the same partition is a new object: results that belong to an older one are dropped.
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
    """It is read to the end and quiet, and Redis knows."""


@dataclass(eq=False, slots=True)
class Work:
    """Records that one poll brought of one partition, or a part of them; each stage fills in its result."""

    owner: OwnedPartition
    records: Sequence[Record]
    next_offset: int
    """Where the partition stands once all of this is applied; may lie beyond the last record."""
    size: int = 0
    """Bytes counted against the queue limit."""
    decoding: Sequence[Future[DecodedRecord]] = ()
    """One per record, once decoding has started."""
    outcomes: Sequence[Outcome] = ()
    """One per record, once it is scored."""


class Backlog:
    """All work between poll and apply, counted in bytes. Belongs to the consumer's thread.

    The consumer stops reading by `held_bytes`. Since a few bytes may unpack to many images, decoding starts only for
    work that fits into `queue_bytes` when it is decoded.

    Args:
        image_bytes: what one image holds once it is prepared for the model.
    """

    def __init__(self, queue_bytes: int, image_bytes: int) -> None:
        self._queue_bytes, self._image_bytes = queue_bytes, image_bytes
        self._waiting: deque[Work] = deque()
        self.held_bytes = 0
        self.started_bytes = 0
        """The part of it that is decoded, or is being decoded."""
        self.works = 0

    def add(self, polled: Polled, owned: Mapping[Partition, OwnedPartition]) -> None:
        """Take in what one poll brought of the partitions that we own."""
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
        """The records in parts of which several fit into the memory: a record is applied whole, a poll need not be."""
        part: list[Record] = []
        size = 0
        for record in records:
            # its bytes and the model's inputs made of them: what decoding and scoring together hold
            cost = record.size + count_images(record) * self._image_bytes
            if part and size + cost > self._queue_bytes // 4:
                yield Work(owner, part, record.offset, size)
                part, size = [], 0
            part.append(record)
            size += cost
        yield Work(owner, part, next_offset, size)

    def start(self) -> list[Work]:
        """The work to decode next: as much as fits; one that is too large by itself starts alone."""
        started = []
        while self._waiting and self._fits(self._waiting[0]):
            work = self._waiting.popleft()
            self.started_bytes += work.size
            started.append(work)
        return started

    def _fits(self, work: Work) -> bool:
        return not self.started_bytes or self.started_bytes + work.size <= self._queue_bytes

    def finish(self, works: Sequence[Work]) -> None:
        """These are scored, and no longer count against the limits."""
        size = sum(work.size for work in works)
        self.held_bytes -= size
        self.started_bytes -= size
        self.works -= len(works)


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
