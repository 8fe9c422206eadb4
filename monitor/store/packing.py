"""Names, vectors, facts and exemplars as the bytes that Redis keeps, and back."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgpack
import numpy as np

from monitor.core.types import Exemplar, StreamFacts, Totals, Vector

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


def merge_into(streams: dict[str, Vector], more: Mapping[bytes, bytes]) -> None:
    """Add packed vectors to those held by stream; the last entry, the longest run, merges by maximum."""
    for name, packed in more.items():
        stream, vector = unpacked_name(name), np.frombuffer(packed, "<u4").astype(np.uint32)
        held = streams.get(stream)
        if held is not None:
            longest = max(held[-1], vector[-1])
            vector = vector + held
            vector[-1] = longest
        streams[stream] = vector


def unpacked_totals(packed: bytes) -> Totals:
    """Totals of one stream; those written before changes were counted are shorter, as in common.lua."""
    return Totals(*_TOTALS.unpack(packed.ljust(_TOTALS.size, b"\0")))


def packed_facts(facts: StreamFacts) -> bytes:
    """Without what concerns typical images: a new owner starts to keep those afresh."""
    packed: bytes = msgpack.packb((facts.digest, facts.run, facts.shape, facts.event_time_ms, facts.seen_ms))
    return packed


def unpacked_facts(packed: bytes) -> StreamFacts:
    """Inverse of `packed_facts`."""
    return StreamFacts(*msgpack.unpackb(packed))


def packed_exemplar(e: Exemplar) -> bytes:
    """All fields, in the order of `Exemplar`."""
    names = (packed_name(e.id), packed_name(e.stream))
    row = (*names, e.event_time_ms, e.bucket_ms, e.p_value, e.p_values, e.thumbnail, e.fingerprint)
    packed: bytes = msgpack.packb(row)
    return packed


def unpacked_exemplar(packed: bytes) -> Exemplar:
    """Inverse of `packed_exemplar`."""
    id_, stream, event_time_ms, bucket_ms, p_value, p_values, thumbnail, fingerprint = msgpack.unpackb(packed)
    return Exemplar(id_, stream, event_time_ms, bucket_ms, p_value, tuple(p_values), thumbnail, fingerprint)


def rank(e: Exemplar) -> float:
    """Lowest first: by p-value, and by those of all signals together where many images share the smallest possible."""
    # 1e-4 of the p-value: less than the step to the next possible one, 1 / (n + 1), for every p that is kept
    together = float(np.exp(np.log(e.p_values).mean())) if e.p_values else 1.0
    return e.p_value * (1 + 1e-4 * together)
