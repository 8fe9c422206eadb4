"""The Kafka source: one kafka-python consumer of a group, owned by one thread.

After any exception out of the client it is closed and never polled again: with a corrupt batch it can loop without end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import structlog
from kafka import TopicPartition, errors
from kafka.structs import OffsetAndMetadata

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources.kafka.client import describe, translated
from monitor.sources.kafka.damage import Probe, is_damage
from monitor.sources.kafka.group import Rebalances, Topics, open_consumer, poll_time
from monitor.sources.kafka.producer import KafkaDeadLetters
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import Polled, SourceError, UnreadableError

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_MS = 3000
_OF_REBALANCES = (errors.RebalanceInProgressError, errors.CommitFailedError)


class KafkaSource:
    """`monitor.sources.protocol.Source` on a Kafka cluster.

    Args:
        config: the `kafka` section.

    Raises:
        SourceError: no broker answers.
        FatalSourceError: refused credentials or certificates, a missing topic, a wrong option.
    """

    def __init__(self, config: KafkaSettings) -> None:
        self._config = config
        self._timeout_ms = round(config.request_timeout_s * 1000)
        self._owned: set[Partition] = set()
        self._positions: dict[Partition, int] = {}  # of started partitions: what poll() has handed out so far
        self._generation = -1
        self._commit: Any = None
        self._broken = False
        self._dead_letters = KafkaDeadLetters(config)
        self._consumer = open_consumer(config)
        self._rebalances = Rebalances(self._consumer)
        try:
            with translated("joining the group"):
                self._topics = Topics(config, self._consumer)
                self._consumer.subscribe(list(config.topics), listener=self._rebalances)
        except BaseException:
            self.close()
            raise

    @property
    def generation(self) -> int:
        """The group's generation at the last assignment."""
        return self._generation

    def poll(self, timeout_s: float) -> Polled:
        """See `Source.poll`. Partitions assigned during the call are paused until `start`."""
        with self._client("polling"):
            try:
                batches = self._consumer.poll(timeout_ms=round(poll_time(self._consumer, timeout_s) * 1000))
            except Exception as error:
                raise (self._unreadable(error) if is_damage(error) else error) from error
            assigned, revoked = self._take_changes()
            self._topics.check()
            moved = self._moved()
            # Records of a partition that came or went during this very poll belong to nobody yet.
            read = {partition: batch for item, batch in batches.items() if (partition := _partition(item)) in moved}
        records = {partition: [_record(partition, item) for item in batch] for partition, batch in read.items()}
        return Polled(records, moved, assigned, revoked)

    def start(self, partition: Partition, next_offset: int) -> None:
        """See `Source.start`; a partition revoked meanwhile is left alone."""
        item = _item(partition)
        with self._client("seeking"):
            if partition in self._owned and self._rebalances.seek(item, next_offset):
                self._positions[partition] = next_offset
                self._consumer.resume(item)

    def pause(self, partitions: Sequence[Partition]) -> None:
        with self._client("pausing"):
            self._consumer.pause(*self._flowing(partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        with self._client("resuming"):
            self._consumer.resume(*self._flowing(partitions))

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions of the topics, as of the last metadata refresh."""
        with self._client("listing partitions"):
            found = {topic: self._consumer.partitions_for_topic(topic) for topic in self._config.topics}
        return tuple(sorted(Partition(topic, index) for topic, indexes in found.items() for index in indexes))

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """See `Source.bounds`; the end is the last stable offset, the furthest that can be read."""
        item = _item(partition)
        with self._client("asking for the ends of the log"):
            first = self._consumer.beginning_offsets([item], timeout_ms=self._timeout_ms)
            last = self._consumer.end_offsets([item], timeout_ms=self._timeout_ms)
        return first[item], last[item]

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        item = _item(partition)
        end = self.bounds(partition)[1]  # before the search: what comes meanwhile is not passed over
        with self._client("looking up a time"):
            at = self._consumer.offsets_for_times({item: max(0, time_ms)}, timeout_ms=self._timeout_ms).get(item)
        return end if at is None or at.offset < 0 else int(at.offset)

    def committed(self, partition: Partition) -> int | None:
        with self._client("asking for the committed offset"):
            offset = self._consumer.committed(_item(partition), timeout_ms=self._timeout_ms)
        return None if offset is None or offset < 0 else int(offset)

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Send the offsets; the answer is logged when it comes. A failed commit costs nothing but the lag figure."""
        offsets = {_item(p): OffsetAndMetadata(at, "", -1) for p, at in next_offsets.items() if p in self._owned}
        if offsets:
            with self._client("committing"):
                self._commit = self._consumer.commit_async(offsets, callback=_on_commit)

    def log_id(self, partition: Partition) -> str:
        """The topic's id; "" where the brokers do not say it (before Kafka 2.8)."""
        return self._topics.ids.get(partition.topic, "")

    def readable_from(self, partition: Partition, next_offset: int) -> int:
        """See `Source.readable_from`; a few reads of the log over a connection of its own."""
        with closing(Probe(self._config, partition)) as probe:
            return probe.damage_end(next_offset, self.bounds(partition)[1])

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """See `Source.dead_letter`: acknowledged by all in-sync replicas."""
        self._dead_letters.write(letters)

    def close(self) -> None:
        """Send off the last commit, leave the group and free everything; never raises."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_MS / 1000
        while self._commit is not None and not self._commit.is_done and time.monotonic() < deadline:
            time.sleep(0.01)
        self._broken = True
        try:
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
        except Exception as error:
            log.warning("kafka.close_failed", part="consumer", error=describe(error))
        self._dead_letters.close()

    @contextmanager
    def _client(self, what: str) -> Iterator[None]:
        """A call into the client: refuses one that has failed before, and translates what it raises."""
        if self._broken:
            raise SourceError("kafka: this client has failed or is closed; build a new source")
        try:
            with translated(what):
                yield
        except BaseException:
            self._broken = True
            raise

    def _flowing(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        """Those that were started and are still assigned."""
        assignment = self._consumer.assignment()
        return [item for p in partitions if p in self._positions and (item := _item(p)) in assignment]

    def _take_changes(self) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
        """What the rebalances since the last poll did, as (assigned, revoked)."""
        assigned, revoked = (set(map(_partition, changed)) for changed in self._rebalances.take())
        if not assigned and not revoked:
            return (), ()
        self._generation = max(self._generation, self._consumer.group_metadata().generation_id)
        gone = revoked & self._owned
        self._owned = self._owned - gone | assigned
        for partition in gone | assigned:
            self._positions.pop(partition, None)
        log.info("kafka.rebalanced", generation=self._generation, assigned=len(assigned), revoked=len(gone))
        return tuple(sorted(assigned)), tuple(sorted(gone))

    def _moved(self) -> dict[Partition, int]:
        """Positions that changed since the last poll: also past transaction markers and compacted records."""
        moved = {}
        # one lost after the changes were taken is left out: the next poll reports it
        for item in self._flowing(self._positions):
            position, partition = self._consumer.position(item, timeout_ms=0), _partition(item)
            if position is not None and position != self._positions[partition]:
                moved[partition] = int(position)
        self._positions |= moved
        return moved

    def _unreadable(self, error: Exception) -> Exception:
        """The error with the place in the log, which kafka-python's own does not always have."""
        batch = self._consumer._fetcher._next_partition_records  # what it was unpacking
        if not batch:
            return error
        partition, offset = _partition(batch.topic_partition), batch.next_fetch_offset
        return UnreadableError(f"kafka: {partition} cannot be read at {offset}: {describe(error)}", partition, offset)


def _item(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.index)


def _partition(item: TopicPartition) -> Partition:
    return Partition(item.topic, item.partition)


def _record(partition: Partition, item: Any) -> Record:
    headers = tuple((name, value if value is not None else b"") for name, value in item.headers)
    return Record(partition, item.offset, max(0, item.timestamp or 0), item.key, item.value, headers)


def _on_commit(offsets: Mapping[TopicPartition, Any], response: Any) -> None:
    # a member that joins or leaves makes a commit fail; the next one, seconds later, says the same and more
    if isinstance(response, Exception) and not isinstance(response, _OF_REBALANCES):
        log.warning("kafka.commit_failed", partitions=len(offsets), error=describe(response))
