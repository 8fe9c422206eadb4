"""What a broker offers: a source of records (a partitioned log with consumer groups), a producer, and their errors.

A kind of source is described by a `SourceKind`, and opened with `SourceSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from monitor.core.settings import Names
from monitor.core.types import DeadLetter, Partition, Record
from monitor.store.settings import RedisSettings

Headers = Sequence[tuple[str, bytes]]


class SourceError(Exception):
    """The client can no longer be trusted; close it and build a new one (recoverable)."""


class UnreadableError(SourceError):
    """The log holds bytes at `next_offset` of `partition` that no client can read: a new one will fail there again."""

    def __init__(self, message: str, partition: Partition, next_offset: int) -> None:
        super().__init__(message)
        self.partition = partition
        self.next_offset = next_offset


class FatalSourceError(Exception):
    """Nothing that this process can do will help: wrong credentials, topic missing, topic recreated."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What one `Source.poll` brought.

    `assigned` partitions stay silent until `Source.start` is called for them. `revoked` ones are no longer ours:
    what is in flight for them is dropped. `next_offsets` has an entry for every partition whose position moved,
    also where no record came (transaction markers, compaction gaps).
    """

    records: Mapping[Partition, Sequence[Record]] = field(default_factory=dict)
    next_offsets: Mapping[Partition, int] = field(default_factory=dict)
    assigned: tuple[Partition, ...] = ()
    revoked: tuple[Partition, ...] = ()


class Source(Protocol):
    """A partitioned log with consumer groups. One thread owns an instance and makes every call.

    Every method may raise SourceError (rebuild the source) or FatalSourceError; see `dead_letter` for an exception.
    """

    @property
    def generation(self) -> int:
        """Grows with every assignment; fences a former owner of a partition."""

    def poll(self, timeout_s: float) -> Polled:
        """Wait up to `timeout_s` for records of started, not paused partitions. Must be called again and again."""

    def start(self, partition: Partition, next_offset: int) -> None:
        """Seek an assigned partition and let its records flow; also used to seek back."""

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Hold back records of these partitions; membership of the group stays alive through poll()."""

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo pause()."""

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions of the topics, of every owner."""

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """(first offset still in the log, offset after the last record)."""

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """Offset of the first record at or after that time; the end of the log where there is none."""

    def committed(self, partition: Partition) -> int | None:
        """The group's committed next offset; None where it never committed."""

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Commit these offsets for the group: information for lag tools, never what a restart begins at."""

    def log_id(self, partition: Partition) -> str:
        """Identity of the log: another one under the same name is a new log; "" where the broker has none."""

    def readable_from(self, partition: Partition, next_offset: int) -> int:
        """First offset behind the one that UnreadableError named which is not part of the same damage."""

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """Write these to the dead-letter log; returns when it has acknowledged them all.

        After a SourceError of this call alone, the source can still be used: write them again after a while.
        """

    def close(self) -> None:
        """Leave the group and free everything; never raises."""


class Producer(Protocol):
    """Writes records to topics. One thread owns an instance and makes every call.

    It connects on first use. After an error it can be used again and opens a new connection; send again what was not
    flushed.
    """

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None
    ) -> None:
        """Queue one record; blocks while too much is in flight. Records of one key stay in order.

        Args:
            timestamp_ms: None is now.

        Raises:
            SourceError: this record or an earlier one cannot be written now; try again after a while.
            FatalSourceError: writing is not permitted, or the record is too large.
        """

    def flush(self) -> None:
        """Wait until every queued record is acknowledged; raises as `send` does."""

    def close(self) -> None:
        """Free everything and drop what is not flushed; never raises."""


class SourceSection(Protocol):
    """What the configuration section of every kind has."""

    topics: Names
    dead_letter_topic: str
    start: Literal["earliest", "latest"]
    """Where a group without a cursor begins."""


S = TypeVar("S", bound=SourceSection)
S_co = TypeVar("S_co", bound=SourceSection, covariant=True)


@dataclass(frozen=True, slots=True)
class SourceSettings(Generic[S_co]):
    """What a source or a producer is opened with; `Config.source_settings` gives it."""

    kind: str
    """A key of `monitor.sources.SOURCES`."""
    section: S_co
    monitor: str
    """The monitor's name: the consumer group, where the section has no name for it."""
    redis: RedisSettings
    """The Redis of the state."""
    group_suffix: str = ""
    """Appended to the name of the consumer group."""


@dataclass(frozen=True, slots=True)
class SourceKind(Generic[S]):
    """One kind of source: its section of the configuration, and how it is opened.

    The functions import the broker's client themselves, so that only the client in use is loaded.
    """

    section: str
    """Name of the section in `Config`."""
    settings: type[S]
    open_source: Callable[[SourceSettings[S]], Source]
    open_producer: Callable[[SourceSettings[S]], Producer]
    check: Callable[[SourceSettings[S]], None] = lambda _: None
    """Raises FatalSourceError, which names the key, where no client can be built; connects to nothing."""
