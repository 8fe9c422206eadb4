"""The Kafka source: one kafka-python consumer of a group, owned by one thread.

The client's rules that this file keeps (and the tests show):

- A rebalance listener runs on the client's IO thread: it notes what changed, pauses and seeks, all of them in memory.
- A partition just assigned is paused and given a placeholder position: without a position the client would ask for
  the group's committed offset, or raise, and only our own cursor may say where to start.
- After any exception out of the client it is closed and never polled again: with a corrupt batch it can spin for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources.kafka.client import client_options, connect, describe, translated, with_passthrough
from monitor.sources.kafka.damage import Probe, is_damage
from monitor.sources.kafka.dead_letters import KafkaDeadLetters
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import FatalSourceError, Polled, SourceError, UnreadableError

log = structlog.get_logger(__name__)

METADATA_MAX_AGE_MS = 30_000
"""Partitions added to a topic show up within this time."""
TOPIC_WAIT_S = 3.0
"""A topic created a moment ago may not have reached every broker; one still unknown after this does not exist."""
TOPIC_GONE_S = 10.0
"""A broker that has just come up may not know every topic; one unknown for that long was deleted."""
CLOSE_TIMEOUT_MS = 3000
JOIN_POLL_S = 1.0
"""A poll while the group is being joined; a join takes some ten milliseconds, or until the last member has answered."""

FIXED = frozenset(
    {
        "allow_auto_create_topics",
        "auto_offset_reset",
        "enable_auto_commit",
        "group_id",
        "isolation_level",
        "key_deserializer",
        "partition_assignment_strategy",
        "value_deserializer",
    }
)


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
        self._changes = _Changes()
        self._owned: dict[Partition, TopicPartition] = {}
        self._positions: dict[Partition, int] = {}  # of started partitions: what poll() has handed out so far
        self._missing_since_s: dict[str, float] = {}
        self._generation = -1
        self._commit: Any = None
        self._broken = False
        self._dead_letters = KafkaDeadLetters(config)
        self._consumer = _join(config)
        try:
            with translated("joining the group"):
                self._topic_ids = self._await_topics()
                self._changes.consumer = self._consumer
                self._consumer.subscribe(list(config.topics), listener=self._changes)
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
                batches = self._consumer.poll(timeout_ms=round(self._patient(timeout_s) * 1000))
            except Exception as error:
                raise (self._unreadable(error) if is_damage(error) else error) from error
            assigned, revoked = self._take_changes()
            self._check_topics()
            moved = self._moved()
            records = {}
            for topic_partition, batch in batches.items():
                partition = _partition(topic_partition)
                # Records of a partition that came or went during this very poll belong to nobody yet.
                if partition in moved:
                    records[partition] = [_record(partition, item) for item in batch]
        return Polled(records, moved, assigned, revoked)

    def _patient(self, timeout_s: float) -> float:
        """The time-out of the next poll: long enough for a join of the group that is under way.

        kafka-python takes the outcome of a join only inside a poll. One that ends between two polls is begun anew, and
        one that a change of the topic's partitions set off is forgotten: the member is thrown out and never comes back.
        Asking for it again costs a round trip.
        """
        coordinator = self._consumer._coordinator
        if coordinator is None or not coordinator.rejoining:
            return timeout_s
        coordinator.request_rejoin()
        return max(timeout_s, JOIN_POLL_S)

    def start(self, partition: Partition, next_offset: int) -> None:
        """See `Source.start`; a partition revoked meanwhile is left alone."""
        with self._client("seeking"):
            topic_partition = self._owned.get(partition)
            if topic_partition is None or not self._changes.seek(topic_partition, next_offset):
                return
            self._positions[partition] = next_offset
            self._consumer.resume(topic_partition)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """See `Source.pause`."""
        self._for_started(partitions, "pause")

    def resume(self, partitions: Sequence[Partition]) -> None:
        """See `Source.resume`."""
        self._for_started(partitions, "resume")

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions of the topics, as of the last metadata refresh."""
        with self._client("listing partitions"):
            found = {topic: self._consumer.partitions_for_topic(topic) for topic in self._config.topics}
        return tuple(sorted(Partition(topic, index) for topic, indexes in found.items() for index in indexes))

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """See `Source.bounds`; the end is the last stable offset, the furthest that can be read."""
        topic_partition = TopicPartition(partition.topic, partition.index)
        with self._client("asking for the ends of the log"):
            first = self._consumer.beginning_offsets([topic_partition], timeout_ms=self._timeout_ms)
            last = self._consumer.end_offsets([topic_partition], timeout_ms=self._timeout_ms)
        return first[topic_partition], last[topic_partition]

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """See `Source.offset_at`."""
        topic_partition = TopicPartition(partition.topic, partition.index)
        with self._client("looking up a time"):
            found = self._consumer.offsets_for_times({topic_partition: max(0, time_ms)}, timeout_ms=self._timeout_ms)
        at = found.get(topic_partition)
        return self.bounds(partition)[1] if at is None or at.offset < 0 else int(at.offset)

    def committed(self, partition: Partition) -> int | None:
        """See `Source.committed`."""
        topic_partition = TopicPartition(partition.topic, partition.index)
        with self._client("asking for the committed offset"):
            offset = self._consumer.committed(topic_partition, timeout_ms=self._timeout_ms)
        return None if offset is None or offset < 0 else int(offset)

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Send the offsets on; the answer is logged when it comes. A failed commit costs nothing but the lag figure."""
        offsets = {
            self._owned[partition]: OffsetAndMetadata(offset, "", -1)
            for partition, offset in next_offsets.items()
            if partition in self._owned
        }
        if offsets:
            with self._client("committing"):
                self._commit = self._consumer.commit_async(offsets, callback=_log_failed_commit)

    def log_id(self, partition: Partition) -> str:
        """The topic's id; "" where the brokers do not tell it (before Kafka 2.8)."""
        return self._topic_ids.get(partition.topic, "")

    def readable_from(self, partition: Partition, next_offset: int) -> int:
        """See `Source.readable_from`; a few reads of the log over a connection of its own."""
        probe = Probe(self._config, partition, FIXED)
        try:
            return probe.damage_end(next_offset, self.bounds(partition)[1])
        finally:
            probe.close()

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """See `Source.dead_letter`: acknowledged by all in-sync replicas."""
        self._dead_letters.write(letters)

    def close(self) -> None:
        """Send off the last commit, leave the group and free everything; never raises."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_MS / 1000
        while self._commit is not None and not self._commit.is_done and time.monotonic() < deadline:
            time.sleep(0.01)
        self._broken = True
        for part, close in (("consumer", self._close_consumer), ("producer", self._dead_letters.close)):
            try:
                close()
            except Exception as error:
                log.warning("kafka.close_failed", part=part, error=describe(error))

    def _close_consumer(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def _client(self, what: str) -> _Guard:
        return _Guard(self, what)

    def _for_started(self, partitions: Iterable[Partition], method: str) -> None:
        with self._client(method):
            chosen = [self._owned[p] for p in partitions if p in self._positions]
            for topic_partition in chosen:
                if topic_partition in self._consumer.assignment():
                    getattr(self._consumer, method)(topic_partition)

    def _take_changes(self) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
        """What the rebalances since the last poll did, as (assigned, revoked)."""
        assigned, revoked = self._changes.take()
        if not assigned and not revoked:
            return (), ()
        self._generation = max(self._generation, self._consumer.group_metadata().generation_id)
        held = {_partition(item): item for item in assigned}
        gone = tuple(sorted(p for p in map(_partition, revoked) if p in self._owned))
        for partition in (*gone, *held):
            self._positions.pop(partition, None)
            self._owned.pop(partition, None)
        self._owned.update(held)
        log.info("kafka.rebalanced", generation=self._generation, assigned=len(held), revoked=len(gone))
        return tuple(sorted(held)), gone

    def _moved(self) -> dict[Partition, int]:
        """Positions that changed since the last poll: also past transaction markers and compacted records."""
        assignment = self._consumer.assignment()
        moved = {}
        for partition, before in self._positions.items():
            if self._owned[partition] not in assignment:
                continue  # lost after the changes were taken: the next poll reports it
            position = self._consumer.position(self._owned[partition], timeout_ms=0)
            if position is not None and position != before:
                moved[partition] = int(position)
        self._positions.update(moved)
        return moved

    def _unreadable(self, error: Exception) -> Exception:
        """The error with the place in the log, which kafka-python's own does not always have."""
        batch = self._consumer._fetcher._next_partition_records  # what it was unpacking
        if not batch:
            return error
        partition, offset = _partition(batch.topic_partition), batch.next_fetch_offset
        return UnreadableError(f"kafka: {partition} cannot be read at {offset}: {describe(error)}", partition, offset)

    def _await_topics(self) -> dict[str, str]:
        """Topic -> id of every configured topic, once all are known, and the one for dead letters with them."""
        # found missing at the first bad record, months from now, it would stop the stream at night
        missing = {*self._config.topics, self._config.dead_letter_topic}
        deadline = time.monotonic() + TOPIC_WAIT_S
        while missing and time.monotonic() < deadline:
            missing = {topic for topic in missing if not self._consumer.partitions_for_topic(topic)}
            if missing:
                time.sleep(0.1)
        if missing:
            raise FatalSourceError(
                f"kafka: topic {min(missing)} does not exist on {', '.join(self._config.bootstrap_servers)} "
                f"(or these credentials may not see it); create it or correct kafka.{self._key_of(min(missing))}"
            )
        return {topic: topic_id for topic in self._config.topics if (topic_id := self._current_id(topic))}

    def _key_of(self, topic: str) -> str:
        return "topics" if topic in self._config.topics else "dead_letter_topic"

    def _current_id(self, topic: str) -> str:
        # kafka-python keeps the id beside its metadata and has no public name for it
        found = self._consumer._cluster.topic_id(topic)
        return str(found) if found is not None and found.int else ""

    def _check_topics(self) -> None:
        for topic, topic_id in self._topic_ids.items():
            current = self._current_id(topic)
            if current and current != topic_id:
                raise FatalSourceError(f"kafka: topic {topic} was deleted and created again ({topic_id} -> {current})")
            if current:
                self._missing_since_s.pop(topic, None)
            elif time.monotonic() - self._missing_since_s.setdefault(topic, time.monotonic()) > TOPIC_GONE_S:
                raise FatalSourceError(f"kafka: topic {topic} was deleted")


class _Guard:
    """Runs a call into the client: refuses one that has failed before, and translates what it raises."""

    def __init__(self, source: KafkaSource, what: str) -> None:
        self._source = source
        self._translate = translated(what)

    def __enter__(self) -> None:
        if self._source._broken:
            raise SourceError("kafka: this client has failed or is closed; build a new source")
        self._translate.__enter__()

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is not None:
            self._source._broken = True
        self._translate.__exit__(*failure)


class _Changes(ConsumerRebalanceListener):  # type: ignore[misc]
    """What rebalances changed; written on the client's IO thread, taken on the polling thread."""

    consumer: KafkaConsumer

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assigned: set[TopicPartition] = set()
        self._revoked: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for topic_partition in assigned:
            self.consumer.pause(topic_partition)
            # A placeholder that is never fetched from: see the head of this file.
            self.consumer.seek(topic_partition, 0)
        with self._lock:
            self._assigned |= set(assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._revoked |= set(revoked)
            self._assigned -= set(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)

    def take(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        with self._lock:
            taken = self._assigned, self._revoked
            self._assigned, self._revoked = set(), set()
        return taken

    def seek(self, topic_partition: TopicPartition, offset: int) -> bool:
        """Seek unless a rebalance has touched the partition since changes were last taken."""
        with self._lock:
            if topic_partition in self._assigned | self._revoked:
                return False
            if topic_partition not in self.consumer.assignment():
                return False
            self.consumer.seek(topic_partition, offset)
            return True


def _join(config: KafkaSettings) -> KafkaConsumer:
    options = client_options(config) | {
        "group_id": config.group_id,
        "session_timeout_ms": round(config.session_timeout_s * 1000),
        # A third of the session time-out: two heartbeats may be lost.
        "heartbeat_interval_ms": min(3000, round(config.session_timeout_s * 1000 / 3)),
        "max_poll_records": config.max_poll_records,
        "fetch_max_bytes": config.fetch_max_bytes,
        "max_partition_fetch_bytes": min(config.fetch_max_bytes, 4 * 2**20),
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "check_crcs": True,
        "partition_assignment_strategy": (CooperativeStickyAssignor,),
    }
    return connect(KafkaConsumer, with_passthrough(config, options, KafkaConsumer, FIXED))


def _partition(item: TopicPartition) -> Partition:
    return Partition(item.topic, item.partition)


def _record(partition: Partition, item: Any) -> Record:
    headers = tuple((name, value if value is not None else b"") for name, value in item.headers)
    return Record(partition, item.offset, max(0, item.timestamp or 0), item.key, item.value, headers)


def _log_failed_commit(offsets: Mapping[TopicPartition, Any], response: Any) -> None:
    if isinstance(response, Exception):
        log.warning("kafka.commit_failed", partitions=len(offsets), error=describe(response))
