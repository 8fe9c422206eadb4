"""Cursors and counts: what belongs to one partition and changes together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack

from monitor.core.kept_images import SAMPLED, hour_of
from monitor.core.readers import Sign
from monitor.core.types import Applied, ApplyStatus, Cursor, Delta, Exemplar, Partition, StreamFacts
from monitor.store.connection import SCHEMA, SCRIPTS, Call, Value
from monitor.store.counts import parse_member
from monitor.store.keyspace import TTL_S, Member, PartitionKeys, bucket_name, worst_name
from monitor.store.limits import Limits
from monitor.store.packing import (
    packed_exemplar,
    packed_facts,
    packed_name,
    packed_vector,
    packed_worst,
    unpacked_facts,
    unpacked_name,
)

OTHER_STREAM = "(other)"
"""Where streams beyond `Limits.max_streams` are counted together."""
GONE_STREAM = "(gone)"
"""Where the totals of forgotten streams are kept together."""
FORGET_CHUNK = 500
"""Streams forgotten by one script: 10,000 at once would hold the server for too long."""
STALE_AFTER_S = 120
"""A holder of a newer generation that is silent for that long no longer refuses a claim."""
TYPICAL_KEPT = 24
"""Typical images per stream and partition."""
CURSOR_FIELDS = ("next", "high", "token", "epoch", "generation", "idle", "log_id", "rebuild_until", "recent")
SIGN_FIELDS = ("token", "next", "beats")

Dead = Mapping[str, Mapping[Partition, bytes]]
"""{stream: {partition: its facts there, as Redis holds them}}."""
_KeptImage = tuple[str, str, float, bytes, int, int]
"""What apply.lua needs to keep an image: (key before the stream, stream, score, image, first, last rank to remove)."""


NOTHING_JUDGED: Mapping[Partition, int] = MappingProxyType({})


class ClaimStatus(StrEnum):
    """Answer of `Partitions.claim`."""

    OK = "ok"
    STALE = "stale"
    """An owner of a newer generation holds it."""
    LOST = "lost"
    """There is no cursor: a new partition, or Redis lost its state. Nothing is written until `Partitions.start`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Outcome of a claim: our cursor when OK, the holder's when STALE, None when LOST."""

    status: ClaimStatus
    cursor: Cursor | None


class SealedUntil(NamedTuple):
    """How far a partition is sealed."""

    bucket_ms: int
    """The last bucket; -1 before the first."""
    next_offset: int
    """Where its cursor stood then."""
    read_again_ms: int
    """Its node fell back, and the buckets up to this one get again what they had held; else -1."""


class Partitions:
    """Claims partitions, applies their deltas and seals their buckets. Every method may raise StoreError."""

    def __init__(self, keys: PartitionKeys, limits: Limits) -> None:
        self._connection = keys.connection
        self._keys = keys
        self._limits, self._limits_by_name = limits, limits.for_scripts()
        # as of the last apply: only for the keys to declare, so an old value costs a second call and nothing else
        self._sealed_ms: dict[Partition, int] = {}

    # ---------------------------------------------------------------- cursor

    def claim(self, partition: Partition, generation: int, token: str, log_id: str = "") -> Claim:
        """Take a partition over. From now on only deltas with this token are applied.

        `log_id` is kept only where none is stored; compare `cursor.log_id` to notice a recreated log.
        """
        return _claim(self._on_cursor("claim", partition, generation, token, log_id, STALE_AFTER_S, TTL_S, SCHEMA))

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
        return _claim(self._on_cursor("start", partition, generation, token, next_offset, log_id, TTL_S, until, SCHEMA))

    def set_idle(self, partition: Partition, token: str, idle: bool) -> bool:
        """Record whether the partition has nothing to read; False when another owner has claimed it."""
        return bool(self._on_cursor("idle", partition, token, int(idle)))

    def keep(self, tokens: Mapping[Partition, str]) -> dict[Partition, Cursor | None]:
        """Give a sign of life for the partitions held with these tokens; returns where each stands, as `cursors`."""
        calls = [Call(SCRIPTS["keep"], [self._keys.of(p, "cursor")], [token]) for p, token in tokens.items()]
        replies = self._connection.run_many(calls)
        return {p: _cursor(reply) for p, reply in zip(tokens, replies, strict=True)}

    def signs(self, partitions: Iterable[Partition]) -> dict[Partition, Sign]:
        """What changes every few seconds while a partition has an owner: its token, cursor and number of `keep`s."""
        wanted = list(partitions)
        replies = self._connection.read_many([("HMGET", self._keys.of(p, "cursor"), *SIGN_FIELDS) for p in wanted])
        return {p: tuple(reply) for p, reply in zip(wanted, replies, strict=True)}

    def cursors(self, partitions: Iterable[Partition]) -> dict[Partition, Cursor | None]:
        """Where each partition stands; None where there is no cursor."""
        wanted = list(partitions)
        replies = self._connection.read_many([("HMGET", self._keys.of(p, "cursor"), *CURSOR_FIELDS) for p in wanted])
        return {p: _cursor(reply) for p, reply in zip(wanted, replies, strict=True)}

    def _on_cursor(self, script: str, partition: Partition, *args: Value) -> Any:
        return self._connection.run(SCRIPTS[script], [self._keys.of(partition, "cursor")], *args)

    # ---------------------------------------------------------------- counts

    def apply(self, deltas: Sequence[Delta]) -> list[Applied]:
        """Apply each partition's delta whole or not at all; all of them in one round trip, one delta per partition.

        A second one is made for deltas that are late for a bucket sealed since the last `apply`.

        After a StoreError the same deltas can be given again: what had been applied answers DUP.

        Raises:
            ValueError: a delta counts something and yet moves no offset; it could be applied twice.
        """
        replies = self._connection.run_many([self._apply_call(delta) for delta in deltas])
        for delta, (_, *at) in zip(deltas, replies, strict=True):
            if at[1:] and at[1]:
                self._sealed_ms[delta.partition] = int(at[1])
        return [Applied(ApplyStatus(status.decode()), int(at[0]) if at else None) for status, *at in replies]

    def _apply_call(self, delta: Delta) -> Call:
        if delta.vectors and delta.next_offset <= delta.expect:
            raise ValueError(f"{delta.partition}: a delta with counts must move the cursor beyond {delta.expect}")
        prefix = self._keys.prefix(delta.partition)
        images = [self._unusual(e) for e in delta.exemplars]
        images += [_latest("typical", e.event_time_ms, e, TYPICAL_KEPT) for e in delta.typical]
        images += [_latest("sample", score, e, SAMPLED) for score, e in delta.sample]
        images = images if self._limits.exemplars_kept else []
        body = {
            "prefix": prefix,
            "token": delta.token,
            # decimal text: exact for every 64-bit offset, which a Lua number is not
            "expect": str(delta.expect),
            "next": str(delta.next_offset),
            "high": delta.high_ms,
            "vectors": [
                (
                    *key[:1],
                    str(key[1]),
                    packed_name(key[2]),
                    packed_vector(vector),
                    packed_worst(delta.worst.get(key, ())),
                )
                for key, vector in delta.vectors.items()
            ],
            "facts": {packed_name(stream): packed_facts(facts) for stream, facts in delta.facts.items()},
            "images": images,
            "reasons": [(packed_name(stream), reason, count) for (stream, reason), count in delta.reasons.items()],
            "recent": delta.recent,
            "cursor_ttl_s": TTL_S,
            **self._limits_by_name,
        }
        # Redis' decoder has no bin type: text and bytes are both packed as raw strings
        return Call(SCRIPTS["apply"], self._apply_keys(delta, images), [msgpack.packb(body, use_bin_type=False)])

    def _apply_keys(self, delta: Delta, images: Sequence[_KeptImage]) -> list[str]:
        """The keys that the delta is expected to touch, the six of the partition first."""
        sealed_ms = self._sealed_ms.get(delta.partition, -1)
        counted = {key[:2] for key in delta.vectors}
        late = {(fingerprint, sealed_ms + self._limits.bucket_ms) for fingerprint, at in counted if at <= sealed_ms}
        names = ["cursor", "open", "facts", "totals", "closed", "reasons"]
        names += map(bucket_name, counted | late)
        names += map(worst_name, {key[:2] for key in delta.worst} | late)
        # each image twice: its stream may be one beyond the limit
        names += {f"{name}:{kept}" for name, stream, *_ in images for kept in (stream, OTHER_STREAM)}
        prefix = self._keys.prefix(delta.partition)
        return [f"{prefix}:{name}" for name in names]

    def _unusual(self, e: Exemplar) -> _KeptImage:
        key = f"ex:{e.fingerprint}:{hour_of(e.event_time_ms)}"
        return key, packed_name(e.stream), e.rank, packed_exemplar(e), self._limits.exemplars_kept, -1

    def open_buckets(self, partitions: Iterable[Partition]) -> dict[Partition, list[tuple[str, int]]]:
        """(fingerprint, bucket start ms) of every bucket that is not sealed, oldest first."""
        wanted = list(partitions)
        replies = self._connection.read_many([("ZRANGE", self._keys.of(p, "open"), 0, -1) for p in wanted])
        return {p: [parse_member(member) for member in reply] for p, reply in zip(wanted, replies, strict=True)}

    def seal(
        self,
        partitions: Iterable[Partition],
        bucket_ms: int,
        decided_ms: int = -1,
        judged: Mapping[Partition, int] = NOTHING_JUDGED,
    ) -> list[Member]:
        """Make a bucket immutable; returns where its counts stand.

        Sealing again returns the same. What still comes for it counts in the next one, older open ones in it, as late.

        A partition whose node fell back behind `decided_ms` is repaired before: its images up to the offset in `judged`
        go back to their own buckets, up to `decided_ms`, and are not judged again.
        """
        wanted = list(partitions)
        calls = [self._seal_call(p, bucket_ms, decided_ms, judged.get(p)) for p in wanted]
        replies = self._connection.run_many(calls)
        # read apart from the script: sealed buckets do not change, and 7,000 streams would hold the server in Lua
        return [(p, name.decode(), bucket_ms) for p, names in zip(wanted, replies, strict=True) for name in names]

    def _seal_call(self, partition: Partition, bucket_ms: int, decided_ms: int, judged_until: int | None) -> Call:
        prefix = self._keys.prefix(partition)
        keys = [f"{prefix}:{name}" for name in ("cursor", "open", "closed", "totals")]
        bounds = (bucket_ms, self._limits.kept_s, TTL_S)
        repair = (decided_ms, "" if judged_until is None else judged_until)
        return Call(SCRIPTS["seal"], keys, (prefix, *bounds, SCHEMA, *repair, self._limits.exemplars_kept))

    def sealed(self, partitions: Iterable[Partition]) -> dict[Partition, SealedUntil]:
        """How far the partitions that have a cursor are sealed."""
        wanted = list(partitions)
        fields = ("next", "sealed", "sealed_next", "judged_bucket", "judged_until")
        replies = self._connection.read_many([("HMGET", self._keys.of(p, "cursor"), *fields) for p in wanted])
        return {
            partition: SealedUntil(
                int(start or -1), int(then or -1), int(again) if until and int(now) < int(until) else -1
            )
            for partition, (now, start, then, again, until) in zip(wanted, replies, strict=True)
            if now
        }

    def sealed_buckets(self, partitions: Iterable[Partition], after_ms: int) -> list[int]:
        """Starts of the sealed buckets after that one, oldest first: those an evaluator that died left undecided."""
        commands = [("ZRANGEBYSCORE", self._keys.of(p, "closed"), f"({after_ms}", "+inf") for p in partitions]
        replies = self._connection.read_many(commands)
        return sorted({parse_member(member)[1] for reply in replies for member in reply})

    # ---------------------------------------------------------------- streams

    def facts(self, partition: Partition) -> dict[str, StreamFacts]:
        """What each stream of that partition carries on; for its new owner."""
        reply = self._connection.read("HGETALL", self._keys.of(partition, "facts"))
        return {unpacked_name(name): unpacked_facts(packed) for name, packed in reply.items()}

    def dead(self, partitions: Iterable[Partition], now_ms: int) -> Dead:
        """The streams that got no record for `retention_s` in any partition."""
        alive, known = set[str](), dict[str, dict[Partition, bytes]]()
        for partition in partitions:
            reply = self._connection.read("HGETALL", self._keys.of(partition, "facts"))
            packed = {unpacked_name(name): facts for name, facts in reply.items()}
            alive |= self.alive({name: unpacked_facts(facts) for name, facts in packed.items()}, now_ms).keys()
            for stream, facts in packed.items():
                known.setdefault(stream, {})[partition] = facts
        return {stream: facts for stream, facts in known.items() if stream not in alive}

    def alive(self, facts: Mapping[str, StreamFacts], now_ms: int) -> dict[str, StreamFacts]:
        """Those of the streams that got a record within `retention_s`."""
        oldest_ms = now_ms - 1000 * self._limits.retention_s
        return {stream: known for stream, known in facts.items() if known.seen_ms >= oldest_ms}

    def forget(self, dead: Dead) -> None:
        """Remove the streams that `dead` gave; their totals and reasons are added to those of GONE_STREAM.

        A stream that has got a record meanwhile stays. Forgetting again changes nothing.
        """
        pairs: dict[Partition, list[tuple[str, bytes]]] = {}
        for stream, known in dead.items():
            for partition, facts in known.items():
                pairs.setdefault(partition, []).append((packed_name(stream), facts))
        for partition, found in pairs.items():
            keys = [self._keys.of(partition, name) for name in ("facts", "totals", "reasons")]
            for chunk in (found[i : i + FORGET_CHUNK] for i in range(0, len(found), FORGET_CHUNK)):
                self._connection.run(SCRIPTS["forget"], keys, *(value for pair in chunk for value in pair))


def _claim(reply: Sequence[Any]) -> Claim:
    status, *cursor = reply
    return Claim(ClaimStatus(status.decode()), _cursor(cursor[0]) if cursor else None)


def _cursor(reply: Sequence[bytes | None]) -> Cursor | None:
    *texts, recent = (field or b"" for field in reply)
    next_offset, high, token, epoch, generation, idle, log_id, rebuild = (text.decode() for text in texts)
    if not next_offset:
        return None
    numbers = int(next_offset), int(high or 0)
    return Cursor(*numbers, token, int(epoch or generation or 0), idle == "1", log_id, int(rebuild or 0), recent)


def _latest(kind: str, score: float, e: Exemplar, most: int) -> _KeptImage:  # while fewer than `most` score higher
    return f"{kind}:{e.fingerprint}", packed_name(e.stream), score, packed_exemplar(e), 0, -1 - most
