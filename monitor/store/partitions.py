"""Cursors and counts: what belongs to one partition and changes together."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import msgpack
import numpy as np

from monitor.core.types import Applied, ApplyStatus, Cursor, Delta, Exemplar, Partition, StreamFacts, Totals, Vector
from monitor.store.connection import Call, Connection, pairs

OTHER_STREAM = "(other)"
"""Where streams beyond `Limits.max_streams` are counted together."""
CURSOR_TTL_S = 90 * 86_400
"""A partition that nobody has touched for a quarter is gone for good; refreshed at every apply."""
STALE_AFTER_S = 120
"""A holder of a newer generation that is silent for that long no longer refuses a claim."""
HOUR_MS = 3_600_000
TYPICAL_KEPT = 24
"""Typical images per stream and partition."""
TOTALS = struct.Struct("<5Q")
CURSOR_FIELDS = ("next", "high", "token", "generation", "idle", "log_id", "rebuild_until", "recent")


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the state in time and space; from the configuration."""

    bucket_ms: int = 10_000
    retention_s: int = 7 * 86_400
    max_streams: int = 10_000
    """Per partition: one script sees one partition only."""
    exemplars_kept: int = 12
    """Per stream and hour."""
    exemplar_retention_s: int = 7 * 86_400


class ClaimStatus(StrEnum):
    """Answer of `Store.claim`."""

    OK = "ok"
    STALE = "stale"
    """An owner of a newer generation holds it."""
    LOST = "lost"
    """There is no cursor: a new partition, or Redis lost its state. Nothing is written until `Store.start`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Outcome of a claim: our cursor when OK, the holder's when STALE, None when LOST."""

    status: ClaimStatus
    cursor: Cursor | None


class PartitionState:
    """Reads and writes the keys under `{lw:<monitor>:<topic>:<partition>}`."""

    def __init__(self, connection: Connection, monitor: str, limits: Limits) -> None:
        self._connection = connection
        self._monitor = monitor
        self._limits = limits

    def _prefix(self, partition: Partition) -> str:
        # quoted, because a brace in a topic would end the hash tag early and spread the keys over the cluster
        return f"{{lw:{self._monitor}:{quote(partition.topic, safe='._-')}:{partition.index}}}"

    # ---------------------------------------------------------------- cursor

    def claim(self, partition: Partition, generation: int, token: str, log_id: str = "") -> Claim:
        """Take a partition over. From now on only deltas with this token are applied.

        `log_id` is kept only where none is stored; compare `cursor.log_id` to notice a recreated log.
        """
        args = (generation, token, log_id, STALE_AFTER_S, CURSOR_TTL_S)
        return _claim(self._connection.run(Call("claim", [f"{self._prefix(partition)}:cursor"], args)))

    def start(
        self,
        partition: Partition,
        generation: int,
        token: str,
        next_offset: int,
        log_id: str = "",
        rebuild_until: int | None = None,
    ) -> Claim:
        """Create the cursor of a LOST partition, or move the one we hold (a gap, a recreated log). Else STALE.

        Args:
            rebuild_until: see `Cursor`; None leaves it as it is.
        """
        until = "" if rebuild_until is None else rebuild_until
        args = (generation, token, next_offset, log_id, CURSOR_TTL_S, until)
        return _claim(self._connection.run(Call("start", [f"{self._prefix(partition)}:cursor"], args)))

    def set_idle(self, partition: Partition, token: str, idle: bool) -> bool:
        """Say whether the partition has nothing to read; False when another owner has claimed it."""
        args = (token, int(idle))
        return bool(self._connection.run(Call("idle", [f"{self._prefix(partition)}:cursor"], args)))

    def cursors(self, partitions: Iterable[Partition]) -> dict[Partition, Cursor | None]:
        """Where each partition stands; None where there is no cursor."""
        wanted = list(partitions)
        replies = self._connection.read_many([("HMGET", f"{self._prefix(p)}:cursor", *CURSOR_FIELDS) for p in wanted])
        return {p: _cursor(reply) for p, reply in zip(wanted, replies, strict=True)}

    def streams_over_limit(self, partitions: Iterable[Partition]) -> int:
        """Images counted under OTHER_STREAM because their stream came beyond the limit."""
        commands = [("HGET", f"{self._prefix(p)}:cursor", "over_limit") for p in partitions]
        return sum(int(reply or 0) for reply in self._connection.read_many(commands))

    # ---------------------------------------------------------------- counts

    def apply(self, deltas: Sequence[Delta]) -> list[Applied]:
        """Apply each partition's delta whole or not at all; all of them in one round trip.

        After a StoreError the same deltas can be given again: what had been applied answers DUP.

        Raises:
            ValueError: a delta counts something and yet moves no offset; it could be applied twice.
        """
        replies = self._connection.run_many([self._apply_call(delta) for delta in deltas])
        return [_applied(reply) for reply in replies]

    def _apply_call(self, delta: Delta) -> Call:
        if delta.vectors and delta.next_offset <= delta.expect:
            raise ValueError(f"{delta.partition}: a delta with counts must move the cursor beyond {delta.expect}")
        prefix = self._prefix(delta.partition)
        body = {
            "prefix": prefix,
            "token": delta.token,
            # decimal text: exact for every 64-bit offset, which a Lua number is not
            "expect": str(delta.expect),
            "next": str(delta.next_offset),
            "high": delta.high_ms,
            "vectors": [
                (fingerprint, str(start), _name(stream), _packed(vector))
                for (fingerprint, start, stream), vector in delta.vectors.items()
            ],
            "facts": {_name(stream): _pack_facts(facts) for stream, facts in delta.facts.items()},
            "exemplars": [self._exemplar(e) for e in delta.exemplars if self._limits.exemplars_kept],
            "typical": [self._typical(e) for e in delta.typical if self._limits.exemplars_kept],
            "typical_kept": TYPICAL_KEPT,
            "reasons": [(_name(stream), reason, count) for (stream, reason), count in delta.reasons.items()],
            "recent": delta.recent,
            "bucket_ms": self._limits.bucket_ms,
            "retention_s": self._limits.retention_s,
            "max_streams": self._limits.max_streams,
            "exemplars_kept": self._limits.exemplars_kept,
            "exemplar_retention_s": self._limits.exemplar_retention_s,
            "cursor_ttl_s": CURSOR_TTL_S,
        }
        keys = [f"{prefix}:{name}" for name in ("cursor", "open", "facts", "totals")]
        # Redis' decoder knows no bin type: text and bytes both travel as raw strings
        return Call("apply", keys, [msgpack.packb(body, use_bin_type=False)])

    def _exemplar(self, e: Exemplar) -> tuple[str, str, str, float, bytes]:
        hour = str(e.event_time_ms // HOUR_MS * HOUR_MS)
        return (e.fingerprint, hour, _name(e.stream), _rank(e), _pack_exemplar(e))

    def _typical(self, e: Exemplar) -> tuple[str, str, int, bytes]:
        return (e.fingerprint, _name(e.stream), e.event_time_ms, _pack_exemplar(e))

    def open_buckets(self, partitions: Iterable[Partition]) -> dict[Partition, list[tuple[str, int]]]:
        """(fingerprint, bucket start ms) of every bucket that is not sealed, oldest first."""
        wanted = list(partitions)
        replies = self._connection.read_many([("ZRANGE", f"{self._prefix(p)}:open", 0, -1) for p in wanted])
        return {p: [_member(member) for member in reply] for p, reply in zip(wanted, replies, strict=True)}

    def seal(self, partitions: Iterable[Partition], bucket_ms: int) -> dict[str, dict[str, Vector]]:
        """Make a bucket immutable and return its counts: {fingerprint: {stream: vector}}, summed over the partitions.

        Sealing again returns the same. What still comes for a sealed bucket counts in the next one, as late. Buckets
        older than this one that are still open are folded into it, as late.
        """
        wanted = list(partitions)
        calls = []
        for partition in wanted:
            prefix = self._prefix(partition)
            keys = [f"{prefix}:{name}" for name in ("cursor", "open", "closed", "totals")]
            calls.append(Call("seal", keys, (prefix, bucket_ms, self._limits.retention_s, CURSOR_TTL_S)))
        replies = self._connection.run_many(calls)
        found = [(p, name.decode(), bucket_ms) for p, names in zip(wanted, replies, strict=True) for name in names]
        sealed: dict[str, dict[str, Vector]] = {}
        # read apart from the script: sealed buckets do not change, and 7,000 streams would hold the server in Lua
        for (_, fingerprint, _), streams in zip(found, self._read(found), strict=True):
            _merge_into(sealed.setdefault(fingerprint, {}), streams)
        return sealed

    def sealed_buckets(self, partitions: Iterable[Partition], after_ms: int) -> list[int]:
        """Starts of the sealed buckets after that one, oldest first: those an evaluator that died left undecided."""
        commands = [("ZRANGEBYSCORE", f"{self._prefix(p)}:closed", f"({after_ms}", "+inf") for p in partitions]
        replies = self._connection.read_many(commands)
        return sorted({_member(member)[1] for reply in replies for member in reply})

    def read_buckets(
        self,
        partitions: Iterable[Partition],
        fingerprint: str,
        since_ms: int,
        until_ms: int,
        which: Sequence[str] = ("closed", "open"),
    ) -> dict[int, dict[str, Vector]]:
        """{bucket start ms: {stream: vector}} for since <= start < until, oldest first; sealed (closed) and open."""
        wanted = list(partitions)
        keys = [(p, f"{self._prefix(p)}:{name}") for p in wanted for name in which]
        replies = self._connection.read_many(
            [("ZRANGEBYSCORE", key, since_ms, f"({until_ms}") for _, key in keys],
        )
        members = [(p, *_member(member)) for (p, _), reply in zip(keys, replies, strict=True) for member in reply]
        # a bucket may be sealed between the two looks: the set drops the second sight of it
        found = sorted({m for m in members if m[1] == fingerprint}, key=lambda m: (m[2], m[0]))
        buckets: dict[int, dict[str, Vector]] = {}
        for (_, _, start), streams in zip(found, self._read(found), strict=True):
            _merge_into(buckets.setdefault(start, {}), streams)
        return buckets

    def bucket_members(
        self, partitions: Iterable[Partition], since_ms: int, which: str = "closed"
    ) -> list[tuple[Partition, str, int]]:
        """(partition, fingerprint, bucket start ms) of the sealed (closed) or open buckets from then on."""
        wanted = list(partitions)
        keys = [f"{self._prefix(p)}:{which}" for p in wanted]
        replies = self._connection.read_many([("ZRANGEBYSCORE", key, since_ms, "+inf") for key in keys])
        return [(p, *_member(member)) for p, reply in zip(wanted, replies, strict=True) for member in reply]

    def bucket_table(self, member: tuple[Partition, str, int]) -> tuple[list[str], Vector]:
        """One bucket as a table: the names of its N streams and their (N, V) counts; (0, 0) where it is gone."""
        streams = self._read([member])[0]
        table = np.frombuffer(b"".join(streams.values()), "<u4").reshape(len(streams), -1 if streams else 0)
        return [_text(name) for name in streams], table

    def stream_buckets(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, since_ms: int, until_ms: int
    ) -> dict[int, Vector]:
        """{bucket start ms: vector} of one stream for since <= start < until, oldest first; sealed and open."""
        wanted = list(partitions)
        found = {
            member
            for which in ("closed", "open")
            for member in self.bucket_members(wanted, since_ms, which)
            if member[1] == fingerprint and member[2] < until_ms
        }
        members = sorted(found, key=lambda member: (member[2], member[0]))
        name = _name(stream)
        commands = [("HGET", f"{self._prefix(p)}:b:{fingerprint}:{start}", name) for p, _, start in members]
        buckets: dict[int, dict[str, Vector]] = {}
        for (_, _, start), packed in zip(members, self._connection.read_many(commands), strict=True):
            if packed is not None:
                _merge_into(buckets.setdefault(start, {}), {name.encode(): packed})
        return {start: streams[name] for start, streams in buckets.items()}

    def _read(self, buckets: Sequence[tuple[Partition, str, int]]) -> list[dict[bytes, bytes]]:
        commands = [("HGETALL", f"{self._prefix(p)}:b:{fingerprint}:{start}") for p, fingerprint, start in buckets]
        return [pairs(reply) for reply in self._connection.read_many(commands)]

    # ---------------------------------------------------------------- streams

    def totals(self, partitions: Iterable[Partition]) -> dict[str, Totals]:
        """Counts of every stream since the state began, summed over the partitions."""
        totals: dict[str, Totals] = {}
        for reply in self._connection.read_many([("HGETALL", f"{self._prefix(p)}:totals") for p in partitions]):
            for name, packed in pairs(reply).items():
                stream = _text(name)
                # as in common.lua: those of before changes were counted are shorter
                counted, held = Totals(*TOTALS.unpack(packed.ljust(TOTALS.size, b"\0"))), totals.get(stream)
                totals[stream] = counted if held is None else held + counted
        return totals

    def rejected_reasons(self, partitions: Iterable[Partition]) -> dict[str, dict[str, int]]:
        """{stream: {reason code: records rejected}} since the state began, summed over the partitions."""
        found: dict[str, dict[str, int]] = {}
        for reply in self._connection.read_many([("HGETALL", f"{self._prefix(p)}:reasons") for p in partitions]):
            for name, count in pairs(reply).items():
                stream, _, reason = _text(name).rpartition("\x00")
                reasons = found.setdefault(stream, {})
                reasons[reason] = reasons.get(reason, 0) + int(count)
        return found

    def facts(self, partition: Partition) -> dict[str, StreamFacts]:
        """What each stream of that partition carries on; for its new owner."""
        (reply,) = self._connection.read_many([("HGETALL", f"{self._prefix(partition)}:facts")])
        return {_text(name): StreamFacts(*msgpack.unpackb(packed)) for name, packed in pairs(reply).items()}

    def typical(self, partitions: Iterable[Partition], fingerprint: str, stream: str) -> list[Exemplar]:
        """What a stream usually shows: the images kept for that, latest first."""
        keys = [f"{self._prefix(p)}:typical:{fingerprint}:{_name(stream)}" for p in partitions]
        replies = self._connection.read_many([("ZRANGE", key, 0, -1) for key in keys])
        found = [_unpack_exemplar(packed) for reply in replies for packed in reply]
        return sorted(found, key=lambda e: -e.event_time_ms)

    def exemplars(
        self, partitions: Iterable[Partition], fingerprint: str, stream: str, since_ms: int, until_ms: int, limit: int
    ) -> list[Exemplar]:
        """The most unusual images of a stream with since <= event time < until, lowest p-value first."""
        hours = range(since_ms // HOUR_MS * HOUR_MS, until_ms, HOUR_MS)
        keys = [f"{self._prefix(p)}:ex:{fingerprint}:{hour}:{_name(stream)}" for p in partitions for hour in hours]
        replies = self._connection.read_many([("ZRANGE", key, 0, -1) for key in keys])
        found = [_unpack_exemplar(packed) for reply in replies for packed in reply]
        inside = [e for e in found if since_ms <= e.event_time_ms < until_ms]
        return sorted(inside, key=lambda e: (_rank(e), e.event_time_ms, e.id))[:limit]


def _claim(reply: Sequence[Any]) -> Claim:
    return Claim(ClaimStatus(reply[0].decode()), _cursor(reply[1]) if len(reply) > 1 else None)


def _cursor(reply: Sequence[bytes | None]) -> Cursor | None:
    *texts, recent = (field or b"" for field in reply)
    next_offset, high, token, generation, idle, log_id, rebuild = (text.decode() for text in texts)
    if not next_offset:
        return None
    return Cursor(
        int(next_offset),
        int(high or 0),
        token,
        int(generation or 0),
        idle == "1",
        log_id,
        int(rebuild or 0),
        recent,
    )


def _applied(reply: Sequence[bytes]) -> Applied:
    return Applied(ApplyStatus(reply[0].decode()), int(reply[1]) if len(reply) > 1 else None)


def _member(member: bytes) -> tuple[str, int]:
    fingerprint, _, start = member.decode().rpartition(":")
    return fingerprint, int(start)


def _name(stream: str) -> str:
    # header bytes that are no UTF-8 arrive as surrogates; they must not stop the batch that holds them
    return stream.encode("utf-8", "backslashreplace").decode()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _packed(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector, dtype="<u4").tobytes()


def _merge_into(streams: dict[str, Vector], more: Mapping[bytes, bytes]) -> None:
    for name, packed in more.items():
        stream, vector = _text(name), np.frombuffer(packed, "<u4").astype(np.uint32)
        held = streams.get(stream)
        if held is not None:
            longest = max(held[-1], vector[-1])
            vector = vector + held
            vector[-1] = longest
        streams[stream] = vector


def _pack_facts(facts: StreamFacts) -> bytes:
    packed: bytes = msgpack.packb((facts.digest, facts.run, facts.shape, facts.event_time_ms, facts.seen_ms))
    return packed


def _pack_exemplar(e: Exemplar) -> bytes:
    row = (
        _name(e.id),
        _name(e.stream),
        e.event_time_ms,
        e.bucket_ms,
        e.p_value,
        e.p_values,
        e.thumbnail,
        e.fingerprint,
    )
    packed: bytes = msgpack.packb(row)
    return packed


def _rank(e: Exemplar) -> float:
    """Lowest first: by p-value, and by those of all signals together where many images share the smallest possible."""
    # 1e-4 of the p-value: less than the step to the next possible one, 1 / (n + 1), for every p that is kept
    together = float(np.exp(np.log(e.p_values).mean())) if e.p_values else 1.0
    return e.p_value * (1 + 1e-4 * together)


def _unpack_exemplar(packed: bytes) -> Exemplar:
    id_, stream, event_time_ms, bucket_ms, p_value, p_values, thumbnail, fingerprint = msgpack.unpackb(packed)
    return Exemplar(id_, stream, event_time_ms, bucket_ms, p_value, tuple(p_values), thumbnail, fingerprint)
