"""Names, vectors, facts and exemplars as the bytes that Redis keeps, and back."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from typing import TypeVar

import msgpack
import numpy as np

from monitor.core.table import Table
from monitor.core.types import Exemplar, StreamFacts, Totals, Vector
from monitor.store.connection import ADVICE, StoreConfigError

K = TypeVar("K")
_TOTALS = struct.Struct("<5Q")


def packed_name(stream: str) -> str:
    """A name that can be written: header bytes that are no UTF-8 arrive as surrogates and are escaped here."""
    return stream.encode("utf-8", "backslashreplace").decode()


def unpacked_name(name: bytes) -> str:
    """The name as it was stored."""
    return name.decode("utf-8", "replace")


def packed_vector(vector: Vector) -> bytes:
    """Little-endian u32, as the scripts read it."""
    return np.ascontiguousarray(vector, dtype="<u4").tobytes()


def shortened(packed: bytes) -> bytes:
    """A packed vector as the history keeps it: most of its numbers are small, and it is a third as long."""
    return zlib.compress(packed, 6)


def lengthened(table: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """{stream: packed vector} of what was `shortened`."""
    return {name: zlib.decompress(kept) for name, kept in table.items()}


def tables_of(replies: Iterable[tuple[K, Mapping[bytes, bytes]]]) -> dict[K, Table]:
    """(key, {stream: packed vector}) added up by key and stream; the last entry, the longest run, by maximum."""
    parts: dict[K, list[Table]] = {}
    for key, packed in replies:
        if packed:
            parts.setdefault(key, []).append(_table_of(packed))
    for tables in parts.values():
        if len({table.counts.shape[1] for table in tables}) > 1:
            one, *_, other = sorted(tables, key=lambda table: table.counts.shape[1])
            raise _unlike(other.streams[0], one.counts.shape[1], other.counts.shape[1])
    return {key: Table.added(tables) for key, tables in parts.items()}


def _table_of(packed: Mapping[bytes, bytes]) -> Table:
    """{stream: packed vector} as one array; a stream whose stored name is broken may stand for several."""
    names, joined = [unpacked_name(name) for name in packed], b"".join(packed.values())
    size = len(next(iter(packed.values())))
    if any(len(vector) != size for vector in packed.values()):
        stream, length = next((n, len(v)) for n, v in zip(names, packed.values(), strict=True) if len(v) != size)
        raise _unlike(stream, size // 4, length // 4)
    return Table(names, np.frombuffer(joined, "<u4").reshape(len(names), -1))


def _unlike(stream: str, one: int, other: int) -> StoreConfigError:
    lengths = f"{one} and {other} entries"
    return StoreConfigError(f"redis: counts of {stream} with {lengths} under one fingerprint; {ADVICE}")


def unpacked_totals(packed: bytes) -> Totals:
    """Totals of one stream; those written before changes were counted are shorter, as in common.lua."""
    return Totals(*_TOTALS.unpack(packed.ljust(_TOTALS.size, b"\0")))


def packed_facts(facts: StreamFacts) -> bytes:
    """All fields, in the order of `StreamFacts`."""
    packed: bytes = msgpack.packb(astuple(facts))
    return packed


def unpacked_facts(packed: bytes) -> StreamFacts:
    """Inverse of `packed_facts`; those written before the last two fields were kept are shorter."""
    return StreamFacts(*msgpack.unpackb(packed))


def packed_exemplar(e: Exemplar) -> bytes:
    """The fields of `Exemplar` in their order, but for `beyond`: the rank that it gives is the score in Redis."""
    row = astuple(replace(e, id=packed_name(e.id), stream=packed_name(e.stream)))[:-1]
    packed: bytes = msgpack.packb(row)
    return packed


def unpacked_exemplar(packed: bytes) -> Exemplar:
    """Inverse of `packed_exemplar`."""
    return Exemplar(*msgpack.unpackb(packed, use_list=False))


def packed_worst(images: Iterable[Exemplar]) -> list[tuple[float, int, str, float]]:
    """What is kept of the worst images of a bucket: (rank, event time, id, p-value), as common.lua sorts them."""
    return [(e.rank, e.event_time_ms, packed_name(e.id), float(e.p_value)) for e in images]


def unpacked_worst(packed: bytes) -> list[tuple[float, int, str, float]]:
    """Inverse of `packed_worst`."""
    return [tuple(row) for row in msgpack.unpackb(packed)]
