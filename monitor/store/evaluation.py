"""Where the evaluation stands: which buckets are sealed, and one fenced commit per closed bucket and shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack

from monitor.core import alert_state
from monitor.core.types import Alert, AlertPhase, Partition, PastAlert
from monitor.store.connection import SCHEMA, SCRIPTS, StoreConfigError, newer
from monitor.store.keyspace import SEPARATOR, TTL_S, MonitorKeys, expiry, name_of, partition_of
from monitor.store.past_alerts import KEPT_MS, LIMIT, PAST_ALERTS, packed

FIRING_DOCUMENTS = "outbox:firing"
"""Name of the hash {alert id: document} of what fires now."""
OUTBOX_LIMIT = 10_000
"""Entries kept for receivers that are dead: some 40 MB. What is cut off beyond is counted in `outbox_dropped`."""


STATE_FIELDS = ("version", "bucket", "outbox_dropped")


@dataclass(frozen=True, slots=True)
class EvaluatorState:
    """Where the evaluation stands: grows by one version per committed bucket."""

    version: int = 0
    bucket_ms: int | None = None
    """The last bucket decided; None before the first."""
    outbox_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What a decision changes beside alerts and the outbox."""

    firing: Mapping[str, str] = field(default_factory=dict)
    """{alert id: document} of alerts that begin to fire, empty of those that end: what fires now is kept for receivers
    that did not get it."""
    past: Sequence[PastAlert] = ()
    """Alerts that are under way no more."""


NOTHING_KEPT = Kept()


@dataclass(frozen=True, slots=True)
class Sealed:
    """The buckets that are sealed in every partition: what all shards judge, in the same order."""

    bucket_ms: int = -1
    """The last one; -1 before the first."""
    muted: bool = False
    """Lost counts are being rebuilt, and alerts that fire were published before."""
    muted_until_ms: int = -1
    """The last bucket that was sealed meanwhile: what begins to fire in it or before is held back."""
    judged: Mapping[Partition, int] = field(default_factory=dict)
    """Offset of each partition up to which its images count in these buckets: they are judged with them, by each shard,
    and not again."""


class Sealing:
    """Says which buckets are sealed; the holder of the first shard writes it. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._keys = [keys.key(name) for name in ("evaluator", "sealed", "judged")]

    def read(self) -> Sealed:
        """What is sealed."""
        evaluator, sealed, judged = self._keys
        fields = ("bucket", "muted", "muted_until")
        (bucket, muted, until), offsets, decided = self._connection.read_many(
            [("HMGET", sealed, *fields), ("HGETALL", judged), ("HGET", evaluator, "bucket")]
        )
        # a version without shards noted it with each decision
        start_ms = int(decided or -1) if bucket is None else int(bucket)
        found = {partition_of(name.decode()): int(offset) for name, offset in offsets.items()}
        return Sealed(start_ms, muted == b"1", int(until or -1), found)

    def add(self, before: Sealed, bucket_ms: int, judged: Mapping[Partition, int]) -> Sealed | None:
        """Add the bucket that was sealed next; None where it was added, or the state has changed, meanwhile.

        Args:
            before: as it was read.
            judged: changes of `Sealed.judged`.
        """
        until_ms = bucket_ms if before.muted else before.muted_until_ms
        offsets = [value for partition, offset in judged.items() for value in (name_of(partition), offset)]
        if not self._connection.run(
            SCRIPTS["sealed"], self._keys, before.bucket_ms, bucket_ms, until_ms, SCHEMA, TTL_S, *offsets
        ):
            return None
        return Sealed(bucket_ms, before.muted, until_ms, {**before.judged, **judged})

    def mute(self, muted: bool) -> None:
        """Say whether lost counts are being rebuilt."""
        self._connection.read_many([("HSET", self._keys[1], "muted", int(muted)), expiry(self._keys[1])])


class Evaluation:
    """Decisions and alerts of one shard. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._keys = keys

    def heartbeat(self, now_ms: int, gap_s: float) -> int:
        """Record that the fleet is evaluating; returns since when without a break longer than `gap_s`."""
        keys = [self._keys.key("heartbeat")]
        return int(self._connection.run(SCRIPTS["heartbeat"], keys, now_ms, int(gap_s * 1000), TTL_S))

    def check_schema(self) -> None:
        """Raises StoreConfigError where a newer version has written this state."""
        schema = int(self._connection.read("HGET", self._keys.key("evaluator"), "schema") or 1)
        if schema > SCHEMA:
            raise StoreConfigError(newer(schema))

    def state(self) -> EvaluatorState:
        """Where the evaluation stands."""
        return state_of(self._connection.read("HMGET", self._keys.key("evaluator"), *STATE_FIELDS))

    def alerts(self) -> dict[tuple[str, str], Alert]:
        """{(rule, stream): alert} of every alert that is kept."""
        alerts = map(alert_state.from_json, self._keys.texts("alerts").all().values())
        return {(alert.rule, alert.stream): alert for alert in alerts}

    def decide(
        self,
        expect_version: int,
        bucket_ms: int,
        alerts: Iterable[Alert],
        outbox: Sequence[str],
        kept: Kept = NOTHING_KEPT,
    ) -> bool:
        """Commit all that a closed bucket decides, in one call: alerts and outbox entries.

        Args:
            expect_version: `version` of what `state()` gave; it is one higher afterwards.
            alerts: those that changed; an inactive one is deleted.
            outbox: JSON documents of transitions, in order.
            kept: what else changes.

        Returns:
            False on conflict: another evaluator moved on (or this very call was made before and its reply was lost);
            nothing was written, and the caller loads the state again.
        """
        body = {
            "expect": str(expect_version),
            "schema": SCHEMA,
            "bucket": str(bucket_ms),
            "alerts": [(f"{alert.rule}{SEPARATOR}{alert.stream}", _stored(alert)) for alert in alerts],
            "outbox": list(outbox),
            "firing": list(kept.firing.items()),
            "past": [(str(ended.until_ms), packed(ended)) for ended in kept.past],
            "past_since": str(bucket_ms - KEPT_MS),
            "past_limit": LIMIT,
            "outbox_limit": OUTBOX_LIMIT,
            "ttl_s": TTL_S,
        }
        keys = [self._keys.key(name) for name in ("evaluator", "alerts", "outbox", FIRING_DOCUMENTS, PAST_ALERTS)]
        return bool(self._connection.run(SCRIPTS["decide"], keys, msgpack.packb(body, use_bin_type=False)))


def state_of(reply: Sequence[bytes | None]) -> EvaluatorState:
    """The state in the STATE_FIELDS of a shard."""
    version, bucket, dropped = reply
    return EvaluatorState(int(version or 0), None if bucket is None else int(bucket), int(dropped or 0))


def _stored(alert: Alert) -> str | bool:
    return False if alert.phase is AlertPhase.INACTIVE else alert_state.to_json(alert)
