"""The Redis Streams source: a partitioned log with consumer groups on one Redis, for edge boxes without Kafka.

A partition is a stream `{lwq:<topic>:<index>}` with ids `<position>-0`, positions counted from 0 by the script that
adds an entry. Members announce themselves in a sorted set that expires them; each takes its fair share of the
partitions by a lease per partition (SET NX PX), keeps it alive while it polls, and gives back what is above its share.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import redis
import structlog

from monitor.config import Redis as RedisConfig
from monitor.config import RedisStream
from monitor.sources.kafka_dead_letters import letter_headers, letter_id
from monitor.types import DeadLetter, Partition, Polled, Record, SourceError

log = structlog.get_logger(__name__)

READ_COUNT = 500
IDLE_WAIT_S = 0.02
"""Between looks at an empty log; a blocking read would hold up the leases of the other partitions."""

ADD = """
local position = redis.call("INCR", KEYS[2]) - 1
redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[1], position + 1 .. "-0", unpack(ARGV, 2))
return position
"""
"""KEYS: stream, counter. ARGV: bound, then fields. Entry ids are position + 1: Redis refuses 0-0."""

KEEP = """
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end
return 0
"""
GIVE = """
if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end
return 0
"""


def stream_key(partition: Partition) -> str:
    """Key of a partition's log."""
    return f"{{lwq:{partition.topic}:{partition.index}}}"


class RedisStreamProducer:
    """Adds records to a topic; safe to share between threads."""

    def __init__(self, client: Any, max_length: int) -> None:
        self._client = client
        self._add = client.register_script(ADD)
        self._max_length = max_length

    def add(
        self,
        partition: Partition,
        value: bytes,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> int:
        """Append one record; returns its offset. The log keeps about the last `max_length` records."""
        stamp = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        fields: list[bytes | str | int] = ["v", value, "t", stamp]
        if key is not None:
            fields += ["k", key]
        for name, content in headers:
            fields += [f"h:{name}", content]
        log_key = stream_key(partition)
        return int(self._add(keys=[log_key, f"{log_key}:next"], args=[self._max_length, *fields]))


class RedisStreamSource:
    """`monitor.types.Source` on Redis Streams.

    Raises:
        SourceError: Redis does not answer.
    """

    def __init__(self, config: RedisStream, server: RedisConfig) -> None:
        self._config = config
        self._client: Any = redis.Redis.from_url(server.url.get_secret_value(), socket_timeout=server.timeout_s)
        self._producer = RedisStreamProducer(self._client, config.max_length)
        self._keep, self._give = self._client.register_script(KEEP), self._client.register_script(GIVE)
        self._token = uuid.uuid4().hex
        self._owned: set[Partition] = set()
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._generation = 0
        self._next_lease = 0.0

    @property
    def generation(self) -> int:
        """Grows with every partition taken, over all members."""
        return self._generation

    def poll(self, timeout_s: float) -> Polled:
        """See `Source.poll`."""
        deadline = time.monotonic() + timeout_s
        with _Translated():
            assigned, revoked = self._balance()
            while True:
                records, moved = self._read()
                if records or assigned or revoked or time.monotonic() >= deadline:
                    return Polled(records, moved, assigned, revoked)
                time.sleep(IDLE_WAIT_S)

    def start(self, partition: Partition, next_offset: int) -> None:
        """See `Source.start`."""
        if partition in self._owned:
            self._positions[partition] = next_offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        """See `Source.pause`."""
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """See `Source.resume`."""
        self._paused -= set(partitions)

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions of the configured topics."""
        return tuple(Partition(topic, i) for topic in self._config.topics for i in range(self._config.partitions))

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """See `Source.bounds`."""
        with _Translated():
            end = int(self._client.get(f"{stream_key(partition)}:next") or 0)
            first = self._client.xrange(stream_key(partition), count=1)
        return (_position(first[0][0]) if first else end), end

    def offset_at(self, partition: Partition, time_ms: int) -> int:
        """See `Source.offset_at`; reads the log, which is short by design."""
        with _Translated():
            for entry_id, fields in self._client.xrange(stream_key(partition)):
                if int(fields[b"t"]) >= time_ms:
                    return _position(entry_id)
        return self.bounds(partition)[1]

    def committed(self, partition: Partition) -> int | None:
        """See `Source.committed`."""
        with _Translated():
            committed = self._client.get(f"{stream_key(partition)}:committed")
        return None if committed is None else int(committed)

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """See `Source.commit`."""
        with _Translated():
            for partition, offset in next_offsets.items():
                self._client.set(f"{stream_key(partition)}:committed", offset)

    def log_id(self, partition: Partition) -> str:  # noqa: ARG002 - the signature of Source
        """Redis streams have no identity beyond their name."""
        return ""

    def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """See `Source.dead_letter`: one bounded stream; a letter's key is `topic:partition:offset`."""
        with _Translated():
            for letter in letters:
                self._producer.add(
                    Partition(self._config.dead_letter_topic, 0),
                    letter.record.value or b"",
                    letter_id(letter).encode(),
                    letter_headers(letter),
                )

    def close(self) -> None:
        """Give all leases back; never raises."""
        try:
            for partition in self._owned:
                self._give(keys=[self._lease(partition)], args=[self._token])
            self._client.zrem(self._members(), self._token)
            self._client.close()
        except redis.RedisError as error:
            log.warning("redis_stream.close_failed", error=str(error))

    # ---------------------------------------------------------------- membership

    def _balance(self) -> tuple[tuple[Partition, ...], tuple[Partition, ...]]:
        """Keep what is ours, give back what is too much, take what is free: (assigned, revoked)."""
        now = time.monotonic()
        if now < self._next_lease:
            return (), ()
        self._next_lease = now + self._config.lease_s / 5
        ttl_ms = round(self._config.lease_s * 1000)
        wall = time.time()
        self._client.zadd(self._members(), {self._token: wall})
        self._client.zremrangebyscore(self._members(), 0, wall - self._config.lease_s)
        everything = self.partitions()
        share = -(-len(everything) // max(1, int(self._client.zcard(self._members()))))
        lost = {p for p in self._owned if not self._keep(keys=[self._lease(p)], args=[self._token, ttl_ms])}
        surplus = sorted(self._owned - lost)[share:]
        for partition in surplus:
            self._give(keys=[self._lease(partition)], args=[self._token])
        revoked = lost | set(surplus)
        self._owned -= revoked
        taken: list[Partition] = []
        for partition in everything:
            if len(self._owned) >= share:
                break
            free = partition not in self._owned and partition not in revoked
            if free and self._client.set(self._lease(partition), self._token, nx=True, px=ttl_ms):
                taken.append(partition)
                self._owned.add(partition)
        if taken:
            self._generation = int(self._client.incr(f"{{lwq:{self._config.topics[0]}}}:generation"))
        for partition in (*revoked, *taken):
            self._positions.pop(partition, None)
            self._paused.discard(partition)
        return tuple(taken), tuple(sorted(revoked))

    def _read(self) -> tuple[dict[Partition, list[Record]], dict[Partition, int]]:
        records: dict[Partition, list[Record]] = {}
        moved: dict[Partition, int] = {}
        for partition, position in self._positions.items():
            if partition in self._paused:
                continue
            entries = self._client.xrange(stream_key(partition), min=f"{position + 1}-0", count=READ_COUNT)
            if entries:
                records[partition] = [_record(partition, *entry) for entry in entries]
                moved[partition] = records[partition][-1].offset + 1
        self._positions.update(moved)
        return records, moved

    def _lease(self, partition: Partition) -> str:
        return f"{stream_key(partition)}:owner"

    def _members(self) -> str:
        return f"{{lwq:{self._config.topics[0]}}}:members"


class _Translated:
    """Turns what the client raises into SourceError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, redis.RedisError):
            raise SourceError(f"redis stream: {error}") from error


def _position(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0]) - 1


def _record(partition: Partition, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Record:
    headers = tuple((name[2:].decode(), value) for name, value in fields.items() if name.startswith(b"h:"))
    stamp = int(fields.get(b"t", b"0"))
    return Record(partition, _position(entry_id), stamp, fields.get(b"k"), fields.get(b"v"), headers)
