"""Reads what the consumers wrote, over all partitions: buckets, totals, reasons of rejection, images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from monitor.core.kept_images import HOUR_MS, hour_of
from monitor.core.steps import Step
from monitor.core.table import Table
from monitor.core.types import Exemplar, Partition, Totals, Vector
from monitor.store.keyspace import SEPARATOR, Member, PartitionKeys, index_name
from monitor.store.packing import (
    lengthened,
    packed_name,
    tables_of,
    unpacked_exemplar,
    unpacked_name,
    unpacked_totals,
    unpacked_worst,
)
from monitor.store.shards import Shard, shard_of

SEALED_AND_OPEN = ("closed", "open")
NAMES_KEPT = 100
"""Sealed buckets of a partition whose streams are remembered by shard: the process may hold several."""


class _Place(NamedTuple):
    """A bucket, and its step in the history."""

    member: Member
    level: int = 0


class Counts:
    """Reads what `Partitions.apply`, `Partitions.seal` and `Rollup` wrote. Every method may raise StoreError.

    Spans reach as far back as the history does. What is old comes in longer buckets, and the one that holds the begin
    of a span is given whole. A bucket is given once: it leaves the history of one step as it enters that of the next.
    """

    def __init__(self, keys: PartitionKeys, steps: Sequence[Step]) -> None:
        self._connection = keys.connection
        self._keys, self._steps = keys, steps
        self._by_shard: dict[tuple[Member, int], Sequence[list[bytes]]] = {}

    # ---------------------------------------------------------------- buckets

    def members(
        self,
        partitions: Iterable[Partition],
        since_ms: int,
        which: Sequence[str] = ("closed",),
        until_ms: int | None = None,
    ) -> list[Member]:
        """The sealed (closed) or open buckets with since <= start < until that are not rolled up yet."""
        until = "+inf" if until_ms is None else f"({until_ms}"
        wanted = [(p, self._keys.of(p, name)) for p in partitions for name in which]
        replies = self._connection.read_many([("ZRANGEBYSCORE", key, since_ms, until) for _, key in wanted])
        return [(p, *parse_member(member)) for (p, _), reply in zip(wanted, replies, strict=True) for member in reply]

    def buckets(
        self,
        partitions: Iterable[Partition],
        fingerprint: str,
        since_ms: int,
        until_ms: int,
        which: Sequence[str] = SEALED_AND_OPEN,
    ) -> dict[int, Table]:
        """{bucket start ms: its counts} for since <= start < until, oldest first; sealed (closed) and open."""
        found = self.of_profile(partitions, fingerprint, since_ms, until_ms, which)
        replies = self._connection.read_many([("HGETALL", self._keys.bucket(*place)) for place in found])
        return tables_of(
            (place.member[2], lengthened(reply) if place.level else reply)
            for place, reply in zip(found, replies, strict=True)
        )

    def of_stream(
        self,
        partitions: Iterable[Partition],
        fingerprint: str,
        stream: str,
        span_ms: tuple[int, int],
        which: Sequence[str] = SEALED_AND_OPEN,
    ) -> dict[int, Vector]:
        """{bucket start ms: vector} of one stream for since <= start < until, oldest first; sealed (closed) and open.

        Args:
            span_ms: (since, until).
        """
        found = self.of_profile(partitions, fingerprint, *span_ms, which)
        name = packed_name(stream)
        replies = self._connection.read_many([("HGET", self._keys.bucket(*place), name) for place in found])
        rows = ((place, {name.encode(): packed}) for place, packed in zip(found, replies, strict=True) if packed)
        tables = ((place.member[2], lengthened(row) if place.level else row) for place, row in rows)
        return {start: streams[name] for start, streams in tables_of(tables).items()}

    def tables(self, members: Sequence[Member], shard: Shard | None = None) -> dict[str, Table]:
        """The counts of one sealed bucket's members by fingerprint, summed over the partitions.

        Args:
            shard: whose streams are read; None reads all.
        """
        if shard is None or shard.of == 1:
            replies = self._connection.read_many([("HGETALL", self._keys.bucket(member)) for member in members])
        else:
            names = [found[shard.number] for found in self._names(members, shard.of)]
            wanted = [(member, mine) for member, mine in zip(members, names, strict=True) if mine]
            found = iter(
                self._connection.read_many([("HMGET", self._keys.bucket(member), *mine) for member, mine in wanted])
            )
            replies = [dict(zip(mine, next(found), strict=True)) if mine else {} for mine in names]
            replies = [{name: packed for name, packed in reply.items() if packed} for reply in replies]
        return tables_of((fingerprint, reply) for (_, fingerprint, _), reply in zip(members, replies, strict=True))

    def _names(self, members: Sequence[Member], shards: int) -> list[Sequence[list[bytes]]]:
        """The stored names of the streams in each sealed bucket, by shard: read once for all shards of a process."""
        for key in list(self._by_shard)[: max(0, len(self._by_shard) - NAMES_KEPT)]:
            self._by_shard.pop(key, None)
        missing = [member for member in members if (member, shards) not in self._by_shard]
        replies = self._connection.read_many([("HKEYS", self._keys.bucket(member)) for member in missing])
        for member, reply in zip(missing, replies, strict=True):
            names: list[list[bytes]] = [[] for _ in range(shards)]
            for name in reply:
                names[shard_of(unpacked_name(name), shards)].append(name)
            self._by_shard[member, shards] = names
        return [self._by_shard[member, shards] for member in members]

    @property
    def length_ms(self) -> int:
        """Length of a bucket as it is closed."""
        return self._steps[0].length_ms

    @property
    def fine_ms(self) -> int:
        """Age up to which buckets stay as they were closed."""
        return self._steps[0].until_ms

    def table(self, member: Member) -> tuple[list[str], Vector]:
        """One bucket as a table: the names of its N streams and their (N, V) counts; (0, 0) where it is gone."""
        streams = self._connection.read("HGETALL", self._keys.bucket(member))
        table = np.frombuffer(b"".join(streams.values()), "<u4").reshape(len(streams), -1 if streams else 0)
        return [unpacked_name(name) for name in streams], table

    def of_profile(
        self, partitions: Iterable[Partition], fingerprint: str, since_ms: int, until_ms: int, which: Sequence[str]
    ) -> list[_Place]:
        """As `members`, of one profile, oldest first, and what they were rolled up into where `which` asks for them."""
        wanted = tuple(partitions)
        # finest first: what is rolled up between the looks is found twice, and taken out below, but never missed
        found = [_Place(m) for m in self.members(wanted, since_ms, which, until_ms) if m[1] == fingerprint]
        if "closed" in which:
            for level, step in enumerate(self._steps[1:], 1):
                longer = self.members(wanted, since_ms - step.length_ms + 1, (index_name(level),), until_ms)
                taken = {m for m in longer if m[1] == fingerprint}
                found = [place for place in found if _within(place.member, step.length_ms) not in taken]
                found += [_Place(member, level) for member in taken]
        # a bucket may be sealed between the reads of the two indexes: the set holds it once
        return sorted(set(found), key=lambda place: (place.member[2], place.member[0]))

    # ---------------------------------------------------------------- since the state began

    def totals(self, partitions: Iterable[Partition]) -> dict[str, Totals]:
        """Counts of every stream since the state began, summed over the partitions."""
        totals: dict[str, Totals] = {}
        for reply in self._connection.read_many([("HGETALL", self._keys.of(p, "totals")) for p in partitions]):
            for name, packed in reply.items():
                stream = unpacked_name(name)
                totals[stream] = totals.get(stream, Totals()) + unpacked_totals(packed)
        return totals

    def rejected_reasons(self, partitions: Iterable[Partition]) -> dict[str, dict[str, int]]:
        """{stream: {reason code: records rejected}} since the state began, summed over the partitions."""
        found: dict[str, dict[str, int]] = {}
        for reply in self._connection.read_many([("HGETALL", self._keys.of(p, "reasons")) for p in partitions]):
            for name, count in reply.items():
                stream, _, reason = unpacked_name(name).rpartition(SEPARATOR)
                reasons = found.setdefault(stream, {})
                reasons[reason] = reasons.get(reason, 0) + int(count)
        return found

    def streams_over_limit(self, partitions: Iterable[Partition]) -> int:
        """Images counted under OTHER_STREAM because their stream came beyond the limit."""
        return sum(self._of_cursors(partitions, "over_limit"))

    def over_limit_ms(self, partitions: Iterable[Partition]) -> int:
        """When an image was last counted so, by the clock of Redis; 0 where none was since this is kept."""
        return max(self._of_cursors(partitions, "over_limit_ms"), default=0)

    def _of_cursors(self, partitions: Iterable[Partition], field: str) -> list[int]:
        replies = self._connection.read_many([("HGET", self._keys.of(p, "cursor"), field) for p in partitions])
        return [int(reply or 0) for reply in replies]


class Exemplars:
    """The images that `Partitions.apply` kept: the worst, typical ones, and a sample. Methods may raise StoreError."""

    def __init__(self, keys: PartitionKeys, steps: Sequence[Step]) -> None:
        self._keys = keys
        self._counts = Counts(keys, steps)

    def typical(self, partitions: Iterable[Partition], fingerprint: str, stream: str) -> list[Exemplar]:
        """Typical images of a stream, latest first."""
        name = packed_name(stream)
        keys = [self._keys.of(p, f"typical:{fingerprint}:{name}") for p in partitions]
        replies = self._keys.connection.read_many([("ZRANGE", key, 0, -1) for key in keys])
        found = [unpacked_exemplar(packed) for reply in replies for packed in reply]
        return sorted(found, key=lambda e: -e.event_time_ms)

    def sample(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, span_ms: tuple[int, int]
    ) -> list[Exemplar]:
        """A random sample of the stream's last images with since <= event time < until, latest first.

        Args:
            span_ms: (since, until).
        """
        name = packed_name(stream)
        keys = [self._keys.of(p, f"sample:{fingerprint}:{name}") for p in partitions]
        replies = self._keys.connection.read_many([("ZRANGE", key, 0, -1) for key in keys])
        found = [unpacked_exemplar(packed) for reply in replies for packed in reply]
        inside = [e for e in found if span_ms[0] <= e.event_time_ms < span_ms[1]]
        return sorted(inside, key=lambda e: -e.event_time_ms)

    def disagreed(self, partitions: Iterable[Partition], shadow: str, stream: str) -> list[tuple[float, Exemplar]]:
        """(`core.shadow.disagreement`, image) of the images that are kept for it; their p-values are (judging, shadow).

        Args:
            shadow: fingerprint as `shadow_of` gives it.
        """
        name = packed_name(stream)
        keys = [self._keys.of(p, f"sample:{shadow}:{name}") for p in partitions]
        replies = self._keys.connection.read_many([("ZRANGE", key, 0, -1, "WITHSCORES") for key in keys])
        return [(float(score), unpacked_exemplar(packed)) for reply in replies for packed, score in _pairs(reply)]

    def unusual(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, since_ms: int, until_ms: int, limit: int
    ) -> list[Exemplar]:
        """The most unusual images of a stream with since <= event time < until, lowest p-value first.

        To be shown: each hour keeps some, with thumbnails, and equal pictures are given once.
        """
        name, hours = packed_name(stream), range(hour_of(since_ms), until_ms, HOUR_MS)
        keys = [self._keys.of(p, f"ex:{fingerprint}:{hour}:{name}") for p in partitions for hour in hours]
        replies = self._keys.connection.read_many([("ZRANGE", key, 0, -1, "WITHSCORES") for key in keys])
        scored = [(float(rank), unpacked_exemplar(packed)) for reply in replies for packed, rank in reply]
        inside = [(rank, e) for rank, e in scored if since_ms <= e.event_time_ms < until_ms]
        once: dict[object, Exemplar] = {}
        for _, e in sorted(inside, key=lambda pair: (pair[0], pair[1].event_time_ms, pair[1].id)):
            once.setdefault(e.thumbnail or e.id, e)
        return list(once.values())[:limit]

    def worst(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, span_ms: tuple[int, int], limit: int
    ) -> list[Exemplar]:
        """The most unusual images that count in the stream's sealed buckets with since <= start < until.

        The worst first. To be named, without thumbnails: sealed buckets do not change, so this gives the same whenever
        it is asked.

        Args:
            span_ms: (since, until).
        """
        found = sorted(self._counts.of_profile(partitions, fingerprint, *span_ms, ("closed",)))
        name = packed_name(stream)
        replies = self._keys.connection.read_many([("HGET", self._keys.worst(*place), name) for place in found])
        rows = [
            (rank, event_time_ms, id_, p_value, place.member[2])
            for place, packed in zip(found, replies, strict=True)
            if packed
            for rank, event_time_ms, id_, p_value in unpacked_worst(packed)
        ]
        once: dict[float, Exemplar] = {}  # equal images of several buckets have one rank
        for rank, event_time_ms, id_, p_value, bucket_ms in sorted(rows):
            once.setdefault(rank, Exemplar(id_, stream, event_time_ms, bucket_ms, p_value, (), b"", fingerprint))
        return list(once.values())[:limit]


def _pairs(reply: Sequence[Any]) -> Iterable[tuple[bytes, Any]]:
    """(member, score) of an answer of ZRANGE WITHSCORES: pairs in RESP3, flat in RESP2."""
    if reply and not isinstance(reply[0], list):
        return zip(reply[::2], reply[1::2], strict=True)
    return [(member, score) for member, score in reply]


def _within(member: Member, length_ms: int) -> Member:
    """The bucket of that length which holds a shorter one."""
    partition, fingerprint, start = member
    return partition, fingerprint, start // length_ms * length_ms


def parse_member(member: bytes) -> tuple[str, int]:
    """(fingerprint, bucket start ms) of an entry of the indexes `open` and `closed`."""
    fingerprint, _, start = member.decode().rpartition(":")
    return fingerprint, int(start)
