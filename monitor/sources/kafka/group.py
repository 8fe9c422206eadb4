"""The consumer of a group: its options, what its rebalances change, and the topics that it reads.

- A rebalance listener runs on the client's IO thread: it only notes what changed, pauses and seeks, all in memory.
- A partition just assigned is paused and given a placeholder position: without a position the client would ask for
  the group's committed offset, or raise, and only our own cursor says where to start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from monitor.sources.kafka.client import client_options, connect, with_passthrough
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import FatalSourceError

METADATA_MAX_AGE_MS = 30_000
"""Partitions added to a topic show up within this time."""
TOPIC_WAIT_S = 3.0
"""A topic created a moment ago may not have reached every broker; one still unknown after this does not exist."""
TOPIC_GONE_S = 10.0
"""A broker that has just come up may not know every topic; one unknown for that long was deleted."""
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
"""Options of a consumer on which the exact counts rest."""


def open_consumer(config: KafkaSettings) -> KafkaConsumer:
    """The consumer of the group `config.group_id`, not subscribed yet; errors as `connect`."""
    return connect(KafkaConsumer, consumer_options(config))


def consumer_options(config: KafkaSettings) -> dict[str, Any]:
    """What the consumer is built with; errors as `client_options` and `with_passthrough`."""
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
    return with_passthrough(config, options, KafkaConsumer, FIXED)


def poll_time(consumer: KafkaConsumer, timeout_s: float) -> float:
    """The time-out in seconds of the next poll: long enough for a join of the group that is under way.

    kafka-python takes the outcome of a join only inside a poll. One that ends between two polls is started again, and
    one that a change of the topic's partitions set off is lost: the member is thrown out and never comes back.
    Requesting it again costs a round trip.
    """
    coordinator = consumer._coordinator
    if coordinator is None or not coordinator.rejoining:
        return timeout_s
    coordinator.request_rejoin()
    return max(timeout_s, JOIN_POLL_S)


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """What rebalances changed; written on the client's IO thread, taken on the polling thread."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._lock = threading.Lock()
        self._assigned: set[TopicPartition] = set()
        self._revoked: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for topic_partition in assigned:
            self._consumer.pause(topic_partition)
            # A placeholder that is never fetched from: see the head of this file.
            self._consumer.seek(topic_partition, 0)
        with self._lock:
            self._assigned |= set(assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._revoked |= set(revoked)
            self._assigned -= set(revoked)

    on_partitions_lost = on_partitions_revoked

    def take(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """(assigned, revoked) since the last call."""
        with self._lock:
            taken = self._assigned, self._revoked
            self._assigned, self._revoked = set(), set()
        return taken

    def seek(self, topic_partition: TopicPartition, offset: int) -> bool:
        """Seek unless a rebalance has touched the partition since changes were last taken."""
        with self._lock:
            touched = topic_partition in self._assigned | self._revoked
            if touched or topic_partition not in self._consumer.assignment():
                return False
            self._consumer.seek(topic_partition, offset)
            return True


class Topics:
    """The configured topics: that they exist, and stay the ones that they were at the start.

    Raises:
        FatalSourceError: one does not exist, the one for dead letters included: found missing at the first bad record,
            months from now, it would stop the stream at night.
    """

    def __init__(self, config: KafkaSettings, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._missing_since_s: dict[str, float] = {}
        missing = {*config.topics, config.dead_letter_topic}
        deadline = time.monotonic() + TOPIC_WAIT_S
        while missing := {topic for topic in missing if not consumer.partitions_for_topic(topic)}:
            if time.monotonic() > deadline:
                key = "topics" if min(missing) in config.topics else "dead_letter_topic"
                raise FatalSourceError(
                    f"kafka: topic {min(missing)} does not exist on {', '.join(config.bootstrap_servers)} "
                    f"(or these credentials may not see it); create it or correct kafka.{key}"
                )
            time.sleep(0.1)
        self.ids = {topic: topic_id for topic in config.topics if (topic_id := self._current_id(topic))}
        """Topic -> id; without those whose id the brokers do not say (before Kafka 2.8)."""

    def check(self) -> None:
        """Raises FatalSourceError where a topic was deleted, or deleted and created again."""
        for topic, topic_id in self.ids.items():
            current = self._current_id(topic)
            if current and current != topic_id:
                raise FatalSourceError(f"kafka: topic {topic} was deleted and created again ({topic_id} -> {current})")
            if current:
                self._missing_since_s.pop(topic, None)
            elif time.monotonic() - self._missing_since_s.setdefault(topic, time.monotonic()) > TOPIC_GONE_S:
                raise FatalSourceError(f"kafka: topic {topic} was deleted")

    def _current_id(self, topic: str) -> str:
        found = self._consumer._cluster.topic_id(topic)
        return str(found) if found is not None and found.int else ""
