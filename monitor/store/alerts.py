"""The evaluator's state: lease, alerts, rule states, silences. One fenced commit per closed bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgpack

from monitor.core.types import Partition
from monitor.store.connection import Call, Connection
from monitor.store.partitions import CURSOR_TTL_S

OUTBOX_LIMIT = 10_000
"""Entries kept for receivers that are dead: some 40 MB. What is cut off beyond is counted in `outbox_dropped`."""
SEPARATOR = "\x00"
"""Between rule and stream in field names: rule names have no such character, so the first one separates."""


@dataclass(frozen=True, slots=True)
class EvaluatorState:
    """Where the evaluation stands: grows by one version per committed bucket."""

    version: int = 0
    bucket_ms: int | None = None
    """The last bucket decided; None before the first."""
    outbox_dropped: int = 0


class AlertState:
    """Reads and writes the keys under `{lw:<monitor>:alerts}`."""

    def __init__(self, connection: Connection, monitor: str) -> None:
        self._connection = connection
        self._alerts_prefix = f"{{lw:{monitor}:alerts}}"

    def _key(self, *parts: str) -> str:
        return ":".join((self._alerts_prefix, *parts))

    # ---------------------------------------------------------------- who

    def lease(self, token: str, ttl_s: float) -> bool:
        """Take or keep the evaluator's lease; False while another holds it."""
        return bool(self._connection.run(Call("lease", [self._key("lease")], (token, max(1, int(ttl_s * 1000))))))

    def release(self, token: str) -> None:
        """Give the lease up, if it is ours."""
        self._connection.run(Call("lease", [self._key("lease")], (token, 0)))

    def register_partitions(self, partitions: Iterable[Partition]) -> None:
        """Make partitions known to the evaluator, wherever it runs."""
        members = [f"{p.topic}{SEPARATOR}{p.index}" for p in partitions]
        if members:
            key = self._key("partitions")
            self._connection.read_many([("SADD", key, *members), ("EXPIRE", key, CURSOR_TTL_S)])

    def known_partitions(self) -> tuple[Partition, ...]:
        """Every partition registered so far, in order."""
        (members,) = self._connection.read_many([("SMEMBERS", self._key("partitions"))])
        pairs = [member.decode().rpartition(SEPARATOR) for member in members]
        return tuple(sorted(Partition(topic, int(index)) for topic, _, index in pairs))

    def heartbeat(self, now_ms: int, gap_s: float) -> int:
        """Say that the fleet is evaluating; returns since when it has done so without a break longer than `gap_s`."""
        call = Call("heartbeat", [self._key("heartbeat")], (now_ms, int(gap_s * 1000), CURSOR_TTL_S))
        return int(self._connection.run(call))

    # ---------------------------------------------------------------- profiles

    def put_layouts(self, layouts: Mapping[str, str]) -> None:
        """{profile fingerprint: JSON of its layout}: lets anyone read the vectors without loading the profile."""
        key = self._key("layouts")
        commands = [("HSET", key, fingerprint, text) for fingerprint, text in layouts.items()]
        self._connection.read_many([*commands, ("EXPIRE", key, CURSOR_TTL_S)])

    def layouts(self) -> dict[str, str]:
        """What `put_layouts` stored, of every profile that counted here lately."""
        return {name.decode(): text.decode() for name, text in self._hash("layouts").items()}

    def put_profiles(self, manifests: Mapping[str, str]) -> None:
        """{profile fingerprint: JSON of its manifest}: what the profile page shows."""
        key = self._key("profiles")
        commands = [("HSET", key, fingerprint, text) for fingerprint, text in manifests.items()]
        self._connection.read_many([*commands, ("EXPIRE", key, CURSOR_TTL_S)])

    def profiles(self) -> dict[str, str]:
        """What `put_profiles` stored, of every profile that counted here lately."""
        return {name.decode(): text.decode() for name, text in self._hash("profiles").items()}

    # ---------------------------------------------------------------- decisions

    def evaluator(self) -> EvaluatorState:
        """Where the evaluation stands."""
        fields = ("version", "bucket", "outbox_dropped")
        ((version, bucket, dropped),) = self._connection.read_many([("HMGET", self._key("evaluator"), *fields)])
        return EvaluatorState(int(version or 0), None if bucket is None else int(bucket), int(dropped or 0))

    def load_alerts(self) -> dict[tuple[str, str], str]:
        """{(rule, stream): JSON} of every alert that is kept."""
        return {_split(name): document.decode() for name, document in self._hash("alerts").items()}

    def load_rule_states(self, rule: str, fingerprint: str) -> dict[str, bytes]:
        """{stream: packed state} of one rule under one profile."""
        return {name.decode(): packed for name, packed in self._hash("rule", fingerprint, rule).items()}

    def decide(
        self,
        expect_version: int,
        bucket_ms: int,
        alerts: Mapping[tuple[str, str], str | None],
        rule_states: Mapping[tuple[str, str], Mapping[str, bytes]],
        outbox: Sequence[str],
    ) -> bool:
        """Commit all that a closed bucket decides, in one call: alerts (None deletes), rule states, outbox entries.

        Args:
            expect_version: what `evaluator()` gave; it is one higher afterwards.
            rule_states: {(rule, fingerprint): {stream: packed state}}.
            outbox: JSON documents of transitions, in order.

        Returns:
            False on conflict: another evaluator moved on (or this very call was made before and its reply was lost);
            nothing was written, and the caller loads the state again.
        """
        body = {
            "expect": str(expect_version),
            "bucket": str(bucket_ms),
            "alerts": [(f"{rule}{SEPARATOR}{stream}", text or False) for (rule, stream), text in alerts.items()],
            "rule_states": [list(states.items()) for states in rule_states.values()],
            "outbox": list(outbox),
            "outbox_limit": OUTBOX_LIMIT,
            "ttl_s": CURSOR_TTL_S,
        }
        keys = [self._key(name) for name in ("evaluator", "alerts", "outbox")]
        keys += [self._key("rule", fingerprint, rule) for rule, fingerprint in rule_states]
        return bool(self._connection.run(Call("decide", keys, [msgpack.packb(body, use_bin_type=False)])))

    # ---------------------------------------------------------------- silences

    def put_silence(self, silence_id: str, document: str) -> None:
        """Add or replace a silence (JSON); it stays listed until it is removed."""
        key = self._key("silences")
        self._connection.read_many([("HSET", key, silence_id, document), ("EXPIRE", key, CURSOR_TTL_S)])

    def silences(self) -> dict[str, str]:
        """{id: JSON} of all silences, ended ones too: who reads them compares the times."""
        return {name.decode(): document.decode() for name, document in self._hash("silences").items()}

    def remove_silence(self, silence_id: str) -> bool:
        """Forget a silence; False where there is none of that id."""
        (removed,) = self._connection.read_many([("HDEL", self._key("silences"), silence_id)])
        return bool(removed)

    def _hash(self, *parts: str) -> dict[bytes, bytes]:
        return self._connection.read_hash(self._key(*parts))


def _split(field: bytes) -> tuple[str, str]:
    rule, _, stream = field.decode().partition(SEPARATOR)
    return rule, stream
