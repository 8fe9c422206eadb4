"""Names, vectors, facts and exemplars as the bytes that Redis keeps, and back."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from typing import TypeVar

import msgpack
import numpy as np

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


def summed(tables: Iterable[tuple[K, Mapping[bytes, bytes]]]) -> dict[K, dict[str, Vector]]:
    """(key, {stream: packed vector}) added up by key and stream; the last entry, the longest run, by maximum."""
    sums: dict[K, dict[str, Vector]] = {}
    for key, table in tables:
        streams = sums.setdefault(key, {})
        for name, packed in table.items():
            stream, vector = unpacked_name(name), np.frombuffer(packed, "<u4").astype(np.uint32)
            if (held := streams.get(stream)) is not None:
                if len(held) != len(vector):
                    lengths = f"{len(held)} and {len(vector)} entries"
                    raise StoreConfigError(f"redis: counts of {stream} with {lengths} under one fingerprint; {ADVICE}")
                longest = max(held[-1], vector[-1])
                vector += held
                vector[-1] = longest
            streams[stream] = vector
    return sums


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
