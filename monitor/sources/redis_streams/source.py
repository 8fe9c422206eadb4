"""The Redis Streams source: a partitioned log with consumer groups on one Redis, for edge boxes without Kafka.

Members register in a sorted set that drops those that stop polling; each takes its fair share of the partitions by a
lease per partition (SET NX PX), renews it while it polls, and gives back what is above its share.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence

import structlog
from redis.exceptions import RedisError

from monitor.core.types import DeadLetter, Partition, Record
from monitor.sources.letters import letter_headers, letter_id
from monitor.sources.protocol import Polled, SourceError
from monitor.sources.redis_streams.log import (
    SCRIPTS,
    append_call,
    log_key,
    next_key,
    open_connection,
    parse_record,
    position_of,
    translated,
)
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.connection import Call, Connection, StoreError
from monitor.store.settings import RedisSettings

log = structlog.get_logger(__name__)

READ_BYTES = 4 * 2**20
"""Aimed at per partition and poll, by the size of the records before."""
FIRST_READ_COUNT, MAX_READ_COUNT = 16, 500
FIND_COUNT = 200
"""Entries that one look for a time goes through: the server does nothing else meanwhile."""
IDLE_WAIT_S = 0.02
"""Between looks at an empty log; a blocking read would hold up the leases of the other partitions."""


class RedisStreamSource:
    """`monitor.sources.protocol.Source` on Redis Streams.

    Args:
        config: the `redis_stream` section.
        server: the `redis` section: logs and state live on the same Redis.
        group: members of one group share the partitions; the monitor's name.

    Raises:
        SourceError: Redis does not answer.
        FatalSourceError: it refuses us.
    """

    def __init__(self, config: RedisStreamSettings, server: RedisSettings, group: str = "layerwatch") -> None:
        self._config = config
        self._group = group
        self._members_key = f"lwq:{group}:members"
        self._lease_ms = round(config.lease_s * 1000)
        self._token = uuid.uuid4().hex
        self._owned: set[Partition] = set()
        self._positions: dict[Partition, int] = {}  # of started partitions
        self._paused: set[Partition] = set()
        self._counts: dict[Partition, int] = {}
        self._generation = 0
        self._next_balance_s = 0.0
        self._closed = False
        self._client = open_connection(server)

    @property
    def generation(self) -> int:
        """Grows with every partition taken, over all members."""
        return self._generation

    def poll(self, timeout_s: float) -> Polled:
        deadline = time.monotonic() + timeout_s
        while True:
            with translated():
                assigned, revoked = self._balance()
                records = self._read()
            if records or assigned or revoked or time.monotonic() >= deadline:
                moved = {partition: batch[-1].offset + 1 for partition, batch in records.items()}
                self._positions |= moved
                return Polled(records, moved, assigned, revoked)
            time.sleep(min(IDLE_WAIT_S, max(0.0, deadline - time.monotonic())))

    def start(self, partition: Partition, next_offset: int) -> None:
        """See `Source.start`; a partition revoked meanwhile is left alone."""
        if partition in self._owned:
            self._positions[partition] = next_offset
            self._paused.discard(partition)

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused -= set(partitions)

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions of the configured topics."""
        return tuple(Partition(topic, i) for topic in self._config.topics for i in range(self._config.partitions))

    def bounds(self, partition: Partition) -> tuple[int, int]:
        end, log = ("GET", next_key(partition)), ("XRANGE", log_key(partition), "-", "+", "COUNT", 1)
        with translated():
            # records may come in between: the end before the log is where an empty one goes on, and after it the end
            # lies behind the first record
            before, entries, after = self._connection.read_many([end, log, end])
        return (position_of(entries[0][0]) if entries else int(before or 0)), int(after or 0)

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """See `Source.offset_at`; goes through the log from its start, on the server."""
        end = self.bounds(partition)[1]  # before the search: what comes meanwhile is not passed over
        position, state = 0, 0
        while state == 0:
            with translated():
                reply = self._connection.run(SCRIPTS["log_find"], [log_key(partition)], position, time_ms, FIND_COUNT)
            position, state = map(int, reply)
        return position if state > 0 else end

    def committed(self, partition: Partition) -> int | None:
        with translated():
            offset = self._connection.read("GET", self._key(partition, "committed"))
        return None if offset is None else int(offset)

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """See `Source.commit`; only of partitions that are ours."""
        mine = {partition: offset for partition, offset in next_offsets.items() if partition in self._owned}
        with translated():
            self._connection.read_many([("SET", self._key(p, "committed"), offset) for p, offset in mine.items()])

    def log_id(self, partition: Partition) -> str:
        """See `Source.log_id`: the first call creates it; it is lost when Redis loses the log."""
        key = f"{log_key(partition)}:id"
        with translated():
            found = self._connection.read_many([("SET", key, uuid.uuid4().hex, "NX"), ("GET", key)])[1]
        return "" if found is None else str(found, "ascii")

    def readable_from(self, partition: Partition, next_offset: int) -> int:  # noqa: ARG002
        """See `Source.readable_from`; Redis has no checksums: `poll` never raises UnreadableError."""
        return next_offset + 1

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """See `Source.dead_letter`: one bounded log; a letter's key is `topic:partition:offset`."""
        to = Partition(self._config.dead_letter_topic, 0)
        with translated():
            for letter in letters:  # one at a time: each may be as large as a record can be
                key, headers = letter_id(letter).encode(), letter_headers(letter)
                bound, value = self._config.max_length, letter.record.value
                self._connection.run_many([append_call(to, bound, value, key, headers, None)])

    def close(self) -> None:
        """Give all leases back; never raises."""
        if self._closed:
            return
        try:
            self._give(self._owned)
            self._connection.read("ZREM", self._members_key, self._token)
        except (StoreError, RedisError) as error:
            log.warning("redis_stream.close_failed", error=str(error))
        self._closed = True
        self._client.close()

    @property
    def _connection(self) -> Connection:
        if self._closed:
            raise SourceError("redis stream: this source is closed; build a new one")
        return self._client

    # ---------------------------------------------------------------- membership

    def _balance(self) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
        """Renew our leases, give back what is above our share, take what is free: (assigned, revoked)."""
        now_s = time.monotonic()
        if now_s < self._next_balance_s:
            return (), ()
        self._next_balance_s = now_s + self._config.lease_s / 5
        members = self._connection.run(SCRIPTS["log_join"], [self._members_key], self._token, self._lease_ms)
        everything = self.partitions()
        share = math.ceil(len(everything) / max(1, int(members)))
        revoked = self._lost()
        surplus = sorted(self._owned - revoked)[share:]
        self._give(surplus)
        revoked |= set(surplus)
        self._owned -= revoked
        # one that was just lost or given back waits for the next time: revoked and assigned at once would be ambiguous
        free = [p for p in everything if p not in self._owned and p not in revoked]
        taken = self._take(free, share - len(self._owned))
        for partition in (*revoked, *taken):
            self._positions.pop(partition, None)
            self._paused.discard(partition)
        return tuple(taken), tuple(sorted(revoked))

    def _lost(self) -> set[Partition]:
        held = sorted(self._owned)
        calls = [Call(SCRIPTS["log_keep"], [self._key(p, "owner")], [self._token, self._lease_ms]) for p in held]
        return {p for p, kept in zip(held, self._connection.run_many(calls), strict=True) if not kept}

    def _give(self, partitions: Sequence[Partition] | set[Partition]) -> None:
        self._connection.run_many(
            [Call(SCRIPTS["log_give"], [self._key(p, "owner")], [self._token]) for p in partitions]
        )

    def _take(self, free: Sequence[Partition], wanted: int) -> list[Partition]:
        lease = (self._token, "NX", "PX", self._lease_ms)
        taken: list[Partition] = []
        for partition in free:
            if len(taken) < wanted and self._connection.read("SET", self._key(partition, "owner"), *lease):
                taken.append(partition)
        if taken:
            self._owned |= set(taken)
            self._generation = int(self._connection.read("INCR", f"lwq:{self._group}:generation"))
            log.info("redis_stream.rebalanced", generation=self._generation, assigned=len(taken))
        return taken

    # ---------------------------------------------------------------- reading

    def _read(self) -> dict[Partition, list[Record]]:
        flowing = [(p, at) for p, at in self._positions.items() if p not in self._paused]
        replies = self._connection.read_many(
            [
                ("XRANGE", log_key(p), f"{at + 1}-0", "+", "COUNT", self._counts.get(p, FIRST_READ_COUNT))
                for p, at in flowing
            ]
        )
        records: dict[Partition, list[Record]] = {}
        for (partition, position), entries in zip(flowing, replies, strict=True):
            if not entries:
                continue
            batch = [parse_record(partition, *entry) for entry in entries]
            if batch[0].offset != position:
                # positions have no holes: a new source finds the gap between cursor and log, and it is counted
                raise SourceError(f"redis stream: {partition}: trimmed from {position} to {batch[0].offset} unread")
            mean = sum(record.size for record in batch) / len(batch)
            self._counts[partition] = max(1, min(MAX_READ_COUNT, int(READ_BYTES / max(mean, 1))))
            records[partition] = batch
        return records

    def _key(self, partition: Partition, name: str) -> str:
        """What the group keeps of a partition: the lease of its `owner`, the `committed` offset."""
        return f"{log_key(partition)}:{name}:{self._group}"
