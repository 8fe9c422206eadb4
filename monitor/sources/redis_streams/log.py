"""Partitioned logs on Redis Streams: keys, records, and writing them.

A partition is a stream `{lwq:<topic>:<index>}` whose entries have the ids `<position + 1>-0`; positions count from 0
without holes. An entry's fields: `v` value, `t` timestamp in ms, `k` key, `h` headers (msgpack list, repeats kept).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import msgpack
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from monitor.core.types import Partition, Record
from monitor.sources.protocol import FatalSourceError, Headers, SourceError
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.client import connect
from monitor.store.connection import Call, Connection, StoreConfigError, StoreError, Value, load_scripts
from monitor.store.settings import RedisSettings

SCRIPTS = load_scripts(Path(__file__).parent / "lua")

BATCH_RECORDS = 100
BATCH_BYTES = 2**20
"""Records wait in the producer until one of the two is reached, or `flush`: one round trip for many."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what Redis raises into SourceError, or FatalSourceError where it refuses us."""
    try:
        yield
    except (AuthenticationError, NoPermissionError, StoreConfigError) as error:
        raise FatalSourceError(f"redis stream: {error}") from error
    except (RedisError, StoreError) as error:
        raise SourceError(f"redis stream: {error}") from error


def open_connection(server: RedisSettings) -> Connection:
    """The same client as the state's: single server, Sentinel or Cluster, TLS, ACL user.

    Raises:
        SourceError: it does not answer.
        FatalSourceError: it refuses us or cannot be used.
    """
    with translated():
        return connect(server)


def log_key(partition: Partition) -> str:
    """Key of a partition's log; all that belongs to it starts with this, in one slot of a cluster."""
    # quoted, because a brace in a topic would end the hash tag early
    return f"{{lwq:{quote(partition.topic, safe='._-')}:{partition.index}}}"


def next_key(partition: Partition) -> str:
    """Key of the position that the next record gets."""
    return f"{log_key(partition)}:next"


def append_call(
    partition: Partition, bound: int, value: bytes | None, key: bytes | None, headers: Headers, timestamp_ms: int | None
) -> Call:
    """The call that appends one record; None as timestamp is now. The log keeps about its last `bound` records."""
    fields: list[Value] = ["t", time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms]
    if value is not None:
        fields += ["v", value]
    if key is not None:
        fields += ["k", key]
    if headers:
        fields += ["h", msgpack.packb(list(headers), unicode_errors="surrogatepass")]
    return Call(SCRIPTS["log_add"], [log_key(partition), next_key(partition)], [bound, *fields])


def position_of(entry_id: bytes) -> int:
    """Position of an entry by its id."""
    return int(entry_id.partition(b"-")[0]) - 1


def parse_record(partition: Partition, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Record:
    """An entry as a record."""
    packed = fields.get(b"h")
    headers: Headers = msgpack.unpackb(packed, use_list=False, unicode_errors="surrogatepass") if packed else ()
    stamp = int(fields.get(b"t", b"0"))
    return Record(partition, position_of(entry_id), stamp, fields.get(b"k"), fields.get(b"v"), tuple(headers))


class RedisRecordProducer:
    """`monitor.sources.Producer` on Redis Streams: a key's records all go to one partition. Belongs to one thread.

    Connects on first use, and again after a failure.
    """

    def __init__(self, config: RedisStreamSettings, server: RedisSettings) -> None:
        self._config = config
        self._server = server
        self._connection: Connection | None = None
        self._calls: list[Call] = []
        self._bytes = 0
        self._turn = count()

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers = (), timestamp_ms: int | None = None
    ) -> None:
        index = (next(self._turn) if key is None else zlib.crc32(key)) % self._config.partitions
        call = append_call(Partition(topic, index), self._config.max_length, value, key, headers, timestamp_ms)
        self._calls.append(call)
        self._bytes += len(value)
        if len(self._calls) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        calls, self._calls, self._bytes = self._calls, [], 0
        if not calls:
            return
        if self._connection is None:
            self._connection = open_connection(self._server)
        try:
            with translated():
                self._connection.run_many(calls)
        except (SourceError, FatalSourceError):
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._calls, self._bytes = [], 0
        if connection:
            connection.close()
