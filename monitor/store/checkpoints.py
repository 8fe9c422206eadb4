"""What the rules remember of every stream, stored now and then: one hash per slice of the streams.

A row is the state of a stream as of a bucket; what came later follows from the sealed buckets since. The mark of a
slice says up to which bucket the rows of all its streams are complete.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from monitor.store.connection import SCHEMA, SCRIPTS, Value
from monitor.store.keyspace import TTL_S, MonitorKeys

SLICES = 48
"""Of the streams, by a hash of the name: at 10,000 streams x 22 signals a slice is 208 rows, 2.3 MB."""
CHUNK_BYTES = 1_000_000
"""Rows written by one script, or read by one command: some milliseconds of the server."""
READ_SLICES = 8
"""Slices read in one round trip: some 25 MB of 10,000 streams."""
SCANNED = 100
"""Rows that one HSCAN reads of what the versions before kept in one hash, for the same reason."""
_BUCKET = struct.Struct("<q")

StateKey = tuple[str, str]
"""(rule, fingerprint)."""


class Kept(NamedTuple):
    """A row as it is stored."""

    bucket_ms: int
    """The bucket that it is the state after."""
    packed: bytes


@lru_cache(maxsize=200_000)
def slice_of(stream: str) -> int:
    """The slice that a stream lies in; the same in every process and version."""
    digest = blake2b(stream.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "little") % SLICES


class Checkpoints:
    """Reads and writes the rows. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._keys = keys

    def marks(self) -> tuple[dict[int, int], bool]:
        """{slice: the bucket that the rows of its streams are complete up to}, and whether all of them are stored.

        Rows of which no mark is stored are complete up to the last bucket decided (-1 before the first): a version
        without checkpoints stored them with every bucket.
        """
        found = self._connection.read("HGETALL", self._keys.key("checkpoints"))
        decided = self._connection.read("HGET", self._keys.key("evaluator"), "bucket")
        stored = {int(name): int(bucket_ms) for name, bucket_ms in found.items()}
        return {i: stored.get(i, int(decided or -1)) for i in range(SLICES)}, len(stored) == SLICES

    def begin(self, version: int, marks: Mapping[int, int]) -> bool:
        """Store the marks of all slices, before the first bucket is decided under them; False as `write`."""
        return self.write(version, {}, marks)

    def read(self, state: StateKey, marks: Mapping[int, int]) -> Iterator[dict[str, Kept]]:
        """{stream: row} of one state, a slice at a time; rows that an earlier version wrote come first."""
        cursor: Value = 0
        key = _first_key(self._keys, state)
        while True:
            cursor, found = self._connection.read("HSCAN", key, cursor, "COUNT", SCANNED)
            pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
            names = ((name.decode(), packed) for name, packed in pairs)
            yield {stream: Kept(marks[slice_of(stream)], packed) for stream, packed in names}
            if int(cursor) == 0:
                break
        for first in range(0, SLICES, READ_SLICES):
            slices = range(first, min(SLICES, first + READ_SLICES))
            replies = self._connection.read_many([("HGETALL", _rows_key(self._keys, state, i)) for i in slices])
            yield {name.decode(): _unpacked(value) for reply in replies for name, value in reply.items()}

    def write(self, version: int, rows: Mapping[StateKey, Mapping[str, Kept]], marks: Mapping[int, int]) -> bool:
        """Store rows; False where another evaluator moved on: then some may be missing, and no mark is stored.

        Args:
            version: as `Evaluation.decide` left it.
            marks: of slices whose rows are complete with these.
        """
        chunk, size = _Chunk(self._keys), 0
        for state, streams in rows.items():
            for stream, kept in streams.items():
                chunk.add(state, stream, kept)
                size += len(kept.packed)
                if size >= CHUNK_BYTES:
                    if not self._run(version, chunk, {}):
                        return False
                    chunk, size = _Chunk(self._keys), 0
        return self._run(version, chunk, marks)

    def _run(self, version: int, chunk: _Chunk, marks: Mapping[int, int]) -> bool:
        keys = [self._keys.key("evaluator"), self._keys.key("checkpoints"), *chunk.keys]
        flat = [number for mark in marks.items() for number in mark]
        return bool(
            self._connection.run(SCRIPTS["checkpoint"], keys, version, SCHEMA, TTL_S, len(marks), *flat, *chunk.rows)
        )

    def give_up(self, version: int, state: StateKey) -> bool:
        """Remove all rows of one state, some slices at a time; False where another evaluator moved on meanwhile.

        Args:
            version: as `Evaluation.decide` left it.
        """
        rows = [_first_key(self._keys, state), *(_rows_key(self._keys, state, i) for i in range(SLICES))]
        for first in range(0, len(rows), READ_SLICES):
            keys = [self._keys.key("evaluator"), *rows[first : first + READ_SLICES]]
            if not self._connection.run(SCRIPTS["give_up"], keys, version, SCHEMA):
                return False
        return True

    def drop(self, state: StateKey, streams: Iterable[str]) -> None:
        """Remove the rows of these streams."""
        commands: list[Sequence[Value]] = []
        for stream in sorted(streams):
            keys = _rows_key(self._keys, state, slice_of(stream)), _first_key(self._keys, state)
            commands += [("HDEL", key, stream) for key in keys]
        self._connection.read_many(commands)


class _Chunk:
    """Rows of one script, and the hashes that they go to."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._keys = keys
        self.keys: dict[str, int] = {}
        """The number of each, from 1 on."""
        self.rows: list[Value] = []

    def add(self, state: StateKey, stream: str, kept: Kept) -> None:
        names = _rows_key(self._keys, state, slice_of(stream)), _first_key(self._keys, state)
        numbers = [self.keys.setdefault(name, len(self.keys) + 1) for name in names]
        self.rows += (*numbers, stream, _BUCKET.pack(kept.bucket_ms) + kept.packed)


def _rows_key(keys: MonitorKeys, state: StateKey, i: int) -> str:
    return keys.key("rows", state[1], state[0], str(i))


def _first_key(keys: MonitorKeys, state: StateKey) -> str:
    """One hash for all streams: where versions without checkpoints keep them."""
    return keys.key("rule", state[1], state[0])


def _unpacked(value: bytes) -> Kept:
    return Kept(_BUCKET.unpack_from(value)[0], value[_BUCKET.size :])
