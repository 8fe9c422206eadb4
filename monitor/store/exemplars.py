"""The images kept of each stream: the most unusual ones and typical ones."""

from __future__ import annotations

from collections.abc import Iterable

from monitor.core.types import Exemplar, Partition
from monitor.store.connection import Connection
from monitor.store.keyspace import PartitionKeys
from monitor.store.packing import packed_name, rank, unpacked_exemplar

HOUR_MS = 3_600_000
"""Unusual images are kept by the hour of their event time, so that each hour keeps its own."""


class Exemplars:
    """Reads what `Partitions.apply` kept. Every method may raise StoreError."""

    def __init__(self, connection: Connection, keys: PartitionKeys) -> None:
        self._connection = connection
        self._keys = keys

    def typical(self, partitions: Iterable[Partition], fingerprint: str, stream: str) -> list[Exemplar]:
        """Typical images of a stream, latest first."""
        name = packed_name(stream)
        found = self._read([self._keys.of(p, f"typical:{fingerprint}:{name}") for p in partitions])
        return sorted(found, key=lambda e: -e.event_time_ms)

    def unusual(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, since_ms: int, until_ms: int, limit: int
    ) -> list[Exemplar]:
        """The most unusual images of a stream with since <= event time < until, lowest p-value first."""
        name, hours = packed_name(stream), range(since_ms // HOUR_MS * HOUR_MS, until_ms, HOUR_MS)
        found = self._read([self._keys.of(p, f"ex:{fingerprint}:{hour}:{name}") for p in partitions for hour in hours])
        inside = [e for e in found if since_ms <= e.event_time_ms < until_ms]
        return sorted(inside, key=lambda e: (rank(e), e.event_time_ms, e.id))[:limit]

    def _read(self, keys: list[str]) -> list[Exemplar]:
        replies = self._connection.read_many([("ZRANGE", key, 0, -1) for key in keys])
        return [unpacked_exemplar(packed) for reply in replies for packed in reply]
