"""Records between poll and apply: their partition, their progress, and the bytes they hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from monitor.core.aggregate import Outcome
from monitor.core.kept_images import KeptImages
from monitor.core.reject_window import RejectWindow
from monitor.core.types import Partition, Record, StreamFacts
from monitor.ingest.decode.pool import DecodedRecord
from monitor.ingest.decode.values import most_images
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
    kept: KeptImages = field(default_factory=KeptImages)
    active_s: float = field(default_factory=time.monotonic)
    """Monotonic time of the claim or of the last record."""
    idle: bool = False
    """Marked in Redis as read to its end and without new records."""


@dataclass(eq=False, slots=True)
class Work:
    """The records of one partition from one poll, or a part of them; each stage adds its result."""

    owner: OwnedPartition
    records: list[Record]
    next_offset: int
    """Cursor of the partition after this work; may lie beyond the last record."""
    read_bytes: int = 0
    """Of the records as they were read."""
    size: int = 0
    """Bytes that it may hold, decoded; what it does hold once that is known."""
    decoding: Sequence[Future[DecodedRecord]] = ()
    """One per record, once decoding has started."""
    outcomes: Sequence[Outcome] = ()
    """One per record, once it is scored."""


class Backlog:
    """The work between poll and scored, counted in bytes; belongs to the consumer's thread.

    The consumer pauses reading by `held_bytes`. A few bytes may unpack to many images, and only decoding finds out how
    many: until then the largest allowed number is set aside, and decoding starts only for work that fits so.

    Args:
        image_bytes: what one image holds once it is prepared for the model.
        max_images: most images of one record.
    """

    def __init__(self, queue_bytes: int, image_bytes: int, max_images: int) -> None:
        self._queue_bytes, self._image_bytes, self._max_images = queue_bytes, image_bytes, max_images
        self._waiting: deque[Work] = deque()
        self._decoding: list[Work] = []
        self.held_bytes = 0
        """Of the waiting records as they were read, and `started_bytes`."""
        self.started_bytes = 0
        """Of what is decoded or being decoded."""
        self.works = 0

    def add(self, polled: Polled, owned: Mapping[Partition, OwnedPartition]) -> None:
        """Add what one poll returned of the partitions that we own."""
        for partition, next_offset in polled.next_offsets.items():
            owner = owned.get(partition)
            if owner is not None:
                owner.active_s = time.monotonic()
                for work in self._parts(owner, polled.records.get(partition, ()), next_offset):
                    self.held_bytes += work.read_bytes
                    self.works += 1
                    self._waiting.append(work)
        metrics.QUEUE_BYTES.set(self.held_bytes)

    def _parts(self, owner: OwnedPartition, records: Sequence[Record], next_offset: int) -> Iterator[Work]:
        """Split the records into parts of which several fit into `queue_bytes`; a record is never split."""
        part = Work(owner, [], next_offset)
        for record in records:
            size = self._size(record)
            if part.records and part.size + size > self._queue_bytes // 4:
                part.next_offset = record.offset
                yield part
                part = Work(owner, [], next_offset)
            part.records.append(record)
            part.read_bytes += record.size
            part.size += size
        yield part

    def start(self) -> list[Work]:
        """The work to decode next: as much as fits; work that is larger than the limit starts alone."""
        self._settle()
        started = []
        while self._waiting:
            if self.started_bytes and self.started_bytes + self._waiting[0].size > self._queue_bytes:
                break
            work = self._waiting.popleft()
            self.started_bytes += work.size
            self.held_bytes += work.size - work.read_bytes
            started.append(work)
        self._decoding += started
        return started

    @property
    def in_progress(self) -> bool:
        """Whether work has been started that is not finished."""
        return self.works > len(self._waiting)

    def resize(self, image_bytes: int, max_images: int) -> None:
        """Count the work that is to be started by other sizes of images; none may be in progress."""
        self._image_bytes, self._max_images = image_bytes, max_images
        for work in self._waiting:
            work.size = sum(self._size(record) for record in work.records)

    def _size(self, record: Record) -> int:
        """Its bytes and the prepared images: what decoding and scoring hold together."""
        return record.size + most_images(record, self._max_images) * self._image_bytes

    def _settle(self) -> None:
        """Give back what was set aside for images that decoded work does not hold."""
        still = []
        for work in self._decoding:
            futures = work.decoding  # the scoring thread empties it: `finish` comes next
            if not all(future.done() for future in futures):
                still.append(work)
            elif futures and not any(future.cancelled() or future.exception() for future in futures):
                images = sum(len(found) for future in futures if isinstance(found := future.result(), list))
                spare = work.size - work.read_bytes - images * self._image_bytes
                work.size -= spare
                self.held_bytes -= spare
                self.started_bytes -= spare
        self._decoding = still

    def finish(self, works: Sequence[Work]) -> None:
        """Remove scored work from the counts."""
        size = sum(work.size for work in works)
        self.held_bytes -= size
        self.started_bytes -= size
        self.works -= len(works)
