"""The evaluator's lease and state: one fenced commit per closed bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack

from monitor.core import alert_state
from monitor.core.types import Alert, AlertPhase, Partition
from monitor.store.connection import SCHEMA, SCRIPTS, StoreConfigError, newer
from monitor.store.keyspace import SEPARATOR, TTL_S, MonitorKeys, name_of, partition_of

FIRING_DOCUMENTS = "outbox:firing"
"""Name of the hash {alert id: document} of what fires now."""
OUTBOX_LIMIT = 10_000
"""Entries kept for receivers that are dead: some 40 MB. What is cut off beyond is counted in `outbox_dropped`."""


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
    judged: Mapping[Partition, int] = field(default_factory=dict)
    """Changes of `Evaluation.judged`."""


NOTHING_KEPT = Kept()


class Evaluation:
    """Lease, decisions and alerts. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._keys = keys

    def lease(self, token: str, ttl_s: float) -> bool:
        """Take or keep the evaluator's lease; False while another holds it."""
        return self._lease(token, max(1, int(ttl_s * 1000)))

    def release(self, token: str) -> None:
        """Give the lease up, if it is ours."""
        self._lease(token, 0)

    def _lease(self, token: str, ttl_ms: int) -> bool:
        keys = [self._keys.key(name) for name in ("tenure", "evaluator", "lease")]
        return bool(self._connection.run(SCRIPTS["lease"], keys, token, ttl_ms, SCHEMA, TTL_S))

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
        fields = ("version", "bucket", "outbox_dropped")
        version, bucket, dropped = self._connection.read("HMGET", self._keys.key("evaluator"), *fields)
        return EvaluatorState(int(version or 0), None if bucket is None else int(bucket), int(dropped or 0))

    def judged(self) -> dict[Partition, int]:
        """Offset of each partition up to which its images are judged, as far as they count in decided buckets."""
        found = self._connection.read("HGETALL", self._keys.key("judged"))
        return {partition_of(name.decode()): int(offset) for name, offset in found.items()}

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
            "judged": [(name_of(partition), str(offset)) for partition, offset in kept.judged.items()],
            "outbox_limit": OUTBOX_LIMIT,
            "ttl_s": TTL_S,
        }
        keys = [self._keys.key(name) for name in ("evaluator", "alerts", "outbox", FIRING_DOCUMENTS, "judged")]
        return bool(self._connection.run(SCRIPTS["decide"], keys, msgpack.packb(body, use_bin_type=False)))


def _stored(alert: Alert) -> str | bool:
    return False if alert.phase is AlertPhase.INACTIVE else alert_state.to_json(alert)
