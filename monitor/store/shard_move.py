"""Changes the number of shards: what the old ones hold is moved to the new ones, each thing once, whatever dies then.

    begin: fence the old shards, note the new number and where all stand; from now on nobody judges or delivers
    run:   copy to the new shards what becomes theirs, remove it from the old ones, end

Nothing changes while state is moved, so whoever goes on after a crash does the same again from the start: hashes are
written again with what they hold, and entries of the outboxes carry marks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from monitor.core import alert_state
from monitor.store.checkpoints import SLICES, StateKey
from monitor.store.connection import SCHEMA, SCRIPTS, Call, Connection, StoreError, Value
from monitor.store.evaluation import FIRING_DOCUMENTS
from monitor.store.keyspace import TTL_S, expiry
from monitor.store.past_alerts import PAST_ALERTS, SINCE_FIELD, unpacked
from monitor.store.shards import Shard, ShardLayout, Shards, shard_of
from monitor.telemetry.failpoints import failpoint

PAGE = 200
"""Entries and fields moved together."""
OF_RULES = ("alert.firing", "alert.resolved")
Pair = tuple[bytes, bytes]


class ShardMove:
    """For the process that holds the leases. Every method may raise StoreError, after which it can be called again."""

    def __init__(self, connection: Connection, shards: Shards) -> None:
        self._connection, self._shards = connection, shards

    def begin(self, token: str, layout: ShardLayout, shards: int) -> bool:
        """Change the number of shards; False where they do not stand at one bucket, or not all are held.

        Args:
            token: that of the leases.
            layout: the one that is in force.
        """
        old = [self._shards.shard(number, layout.shards) for number in range(layout.shards)]
        evaluators = [shard.keys.key("evaluator") for shard in old]
        # whoever believes to hold one of them decides nothing from here on
        fences = [command for key in evaluators for command in (("HINCRBY", key, "version", 1), expiry(key))]
        self._connection.read_many(fences)
        states = [shard.evaluation.state() for shard in old]
        decided = {-1 if state.bucket_ms is None else state.bucket_ms for state in states}
        if len(decided) > 1:
            return False
        leases = self._shards.lease_keys(layout.shards)
        bucket_ms = "" if decided == {-1} else decided.pop()
        version = 1 + max(state.version for state in states)
        args = (token, layout.epoch, shards, bucket_ms, version, TTL_S)
        return bool(self._connection.run(SCRIPTS["change_shards"], [old[0].keys.key("shards"), *leases], *args))

    def run(self, states: Iterable[StateKey], alive: Callable[[], None]) -> None:
        """Move what `begin` has divided anew, and end; does nothing where that is done.

        Args:
            states: what rules keep; of others the rows are given up.
            alive: called now and then.
        """
        layout = self._shards.layout()
        if not layout.moving_from:
            return
        failpoint("shards_changed")
        old = [self._shards.shard(number, layout.moving_from) for number in range(layout.moving_from)]
        new = [self._shards.shard(number, layout.shards) for number in range(layout.shards)]
        record = new[0].keys.key("shards")
        bucket, version = (value.decode() for value in self._connection.read("HMGET", record, "bucket", "version"))
        known_ms = self._shards.past_alerts_of(old).known_since_ms
        self._set_states(old[len(new) :], {}, version)
        past = {} if known_ms is None else {SINCE_FIELD: known_ms, "past_bucket": bucket}
        self._set_states(new, {"bucket": bucket, **past} if bucket else {}, version)
        receivers = set[str]().union(*(shard.outbox.receivers() for shard in old))
        for shard in new:
            shard.outbox.keep_receivers(receivers)
        moves = [_Move(self._connection, source, new, layout.epoch) for source in old]
        known = list(states)
        for move in moves:
            move.copy_rows(known, int(version), alive)
            move.copy(receivers)
            alive()
        failpoint("shards_copied")
        for move in moves:
            move.remove(receivers, known)
            alive()
        failpoint("shards_removed")
        for source in old[len(new) :]:
            self._delete(source, receivers, known)
        if bucket:
            for shard in new:
                shard.checkpoints.write(int(version), {}, dict.fromkeys(range(SLICES), int(bucket)))
        self._connection.read("HDEL", record, "from")
        self._connection.read_many([("DEL", shard.keys.key("adopted")) for shard in new])

    def _set_states(self, shards: Sequence[Shard], place: Mapping[str, Value], version: str) -> None:
        for shard in shards:
            key = shard.keys.key("evaluator")
            fields = {"version": version, "schema": SCHEMA, **place}
            written = ("HSET", key, *(value for pair in fields.items() for value in pair))
            gone = [("HDEL", key, "bucket")] if not place else []
            self._connection.read_many([*gone, written, expiry(key)])

    def _delete(self, shard: Shard, receivers: Iterable[str], states: Iterable[StateKey]) -> None:
        """What a shard held that there is no more; its version stays, as a fence."""
        of_receivers = [f"outbox:{kind}:{name}" for name in receivers for kind in ("retry", "held")]
        rows = [f"rows:{fingerprint}:{rule}:{i}" for rule, fingerprint in states for i in range(SLICES)]
        names = ["alerts", "outbox", FIRING_DOCUMENTS, PAST_ALERTS, "outbox:dead", "outbox:receivers", "checkpoints"]
        for name in (*names, *of_receivers, *rows):
            self._connection.read("DEL", shard.keys.key(name))


class _Move:
    """What one shard holds, and where it goes."""

    def __init__(self, connection: Connection, source: Shard, new: Sequence[Shard], epoch: int) -> None:
        self._connection, self._source, self._new, self._epoch = connection, source, new, epoch
        self._alert_owner: dict[str, int] = {}
        """Shard by id of an alert."""
        self._fields: dict[str, dict[int, list[Pair]]] = {}
        """What goes elsewhere of each hash, by shard."""
        self._entries: list[bytes] = []
        """Of the outbox, likewise."""
        self._past: list[bytes] = []
        """Of the alerts that ended, likewise."""

    def copy(self, receivers: Iterable[str]) -> None:
        """Write to the new shards what becomes theirs."""
        for text in self._source.keys.texts("alerts").all().values():
            alert = alert_state.from_json(text)
            self._alert_owner[alert.id] = shard_of(alert.stream, len(self._new))
        for _, fields in self._pages("outbox"):
            self._owner_of(fields[b"document"].decode())
        self._copy_hash("alerts", lambda _, text: self._owner_of_stream(alert_state.from_json(text).stream))
        self._copy_hash(FIRING_DOCUMENTS, lambda _, text: self._owner_of(text))
        self._copy_entries()
        self._copy_past()
        here = self._source.number % len(self._new)
        for receiver in receivers:
            self._copy_hash(f"outbox:held:{receiver}", lambda name, _: self._alert_owner.get(name, here))
        if self._source.number >= len(self._new):
            self._adopt_all("outbox:dead", self._new[0])

    def copy_rows(self, states: Iterable[StateKey], version: int, alive: Callable[[], None]) -> None:
        """Likewise for what the rules remember."""
        marks, _ = self._source.checkpoints.marks()
        for state in states:
            for rows in self._source.checkpoints.read(state, marks):
                for target in self._others():
                    mine = {s: kept for s, kept in rows.items() if self._owner_of_stream(s) == target.number}
                    if mine and not target.checkpoints.write(version, {state: mine}, {}):
                        raise StoreError("redis: somebody judges a shard while the number of shards changes")
                alive()

    def remove(self, receivers: Iterable[str], states: Iterable[StateKey]) -> None:
        """Remove it here; first what the rest is needed to find."""
        for name in (*(f"outbox:held:{receiver}" for receiver in receivers), FIRING_DOCUMENTS, "alerts"):
            gone = [pair[0] for pairs in self._fields.get(name, {}).values() for pair in pairs]
            self._by_page(("HDEL", self._source.keys.key(name)), gone)
        self._by_page(("XDEL", self._source.keys.key("outbox")), self._entries)
        self._by_page(("ZREM", self._source.keys.key(PAST_ALERTS)), self._past)
        marks, _ = self._source.checkpoints.marks()
        for state in states:
            for rows in self._source.checkpoints.read(state, marks):
                self._source.checkpoints.drop(
                    state, (s for s in rows if self._owner_of_stream(s) != self._source.number)
                )

    # ---------------------------------------------------------------- hashes

    def _copy_hash(self, name: str, owner: Callable[[str, str], int]) -> None:
        by_shard = self._fields.setdefault(name, {})
        for field, value in self._connection.read("HGETALL", self._source.keys.key(name)).items():
            by_shard.setdefault(owner(field.decode(), value.decode()), []).append((field, value))
        by_shard.pop(self._source.number, None)
        for number, pairs in by_shard.items():
            key = self._new[number].keys.key(name)
            self._by_page(("HSET", key), [value for pair in pairs for value in pair])
            self._connection.read(*expiry(key))

    def _copy_past(self) -> None:
        by_shard: dict[int, list[Value]] = {}
        self._past = []
        for member in self._connection.read("ZRANGE", self._source.keys.key(PAST_ALERTS), 0, -1):
            alert = unpacked(member)
            owner = self._owner_of_stream(alert.stream)
            if owner != self._source.number:
                by_shard.setdefault(owner, []).extend((alert.until_ms, member))
                self._past.append(member)
        for number, pairs in by_shard.items():
            key = self._new[number].keys.key(PAST_ALERTS)
            self._by_page(("ZADD", key), pairs)
            self._connection.read(*expiry(key))

    # ---------------------------------------------------------------- entries

    def _copy_entries(self) -> None:
        reply = self._connection.run(SCRIPTS["owed"], [self._source.keys.key("outbox")])
        owed = {name.decode(): (_place(last), set(pending)) for name, last, *pending in reply}
        retries = {name: self._connection.read("HGETALL", self._retries(self._source, name)) for name in owed}
        self._entries = []
        for entry, fields in self._pages("outbox"):
            document = fields[b"document"].decode()
            target = self._new[self._owner_of(document)]
            if target.number == self._source.number:
                continue
            self._entries.append(entry)
            before = fields.get(b"for")
            names = [n for n, (last, pending) in owed.items() if _place(entry) > last or entry in pending]
            names = [n for n in names if before is None or n in before.decode().split("\n")]
            if names or not owed:
                # those that every receiver is owed go to receivers that come later, too
                only = () if before is None and len(names) == len(owed) else ("for", "\n".join(names))
                tried = {self._retries(target, n): retries[n][entry] for n in names if entry in retries[n]}
                self._adopt("outbox", target, entry, ("document", document, *only), tried)

    def _adopt_all(self, name: str, target: Shard) -> None:
        for entry, fields in self._pages(name):
            self._adopt(name, target, entry, [value for pair in fields.items() for value in pair], {})

    def _adopt(
        self, name: str, target: Shard, entry: bytes, fields: Sequence[Value], retries: Mapping[str, bytes]
    ) -> None:
        keys = [target.keys.key(name), target.keys.key("adopted"), *retries]
        mark = f"{self._epoch}:{self._source.number}:{name}:{entry.decode()}"
        args = (mark, TTL_S, len(fields), *fields, *retries.values())
        self._connection.run_many([Call(SCRIPTS["adopt"], keys, args)])

    def _pages(self, name: str) -> Iterable[tuple[bytes, dict[bytes, bytes]]]:
        """Every entry of a stream, oldest first."""
        first = "-"
        while page := self._connection.read("XRANGE", self._source.keys.key(name), first, "+", "COUNT", PAGE):
            yield from page
            first = f"({page[-1][0].decode()}"

    # ---------------------------------------------------------------- who owns what

    def _others(self) -> list[Shard]:
        return [shard for shard in self._new if shard.number != self._source.number]

    def _owner_of_stream(self, stream: str) -> int:
        return shard_of(stream, len(self._new))

    def _owner_of(self, document: str) -> int:
        """The shard of an alert document; the first for what is about the monitor itself, and what cannot be read."""
        try:
            tree = json.loads(document)
            data, is_of_rule = tree["data"], tree["type"] in OF_RULES
            if not is_of_rule or data["rule"].startswith(alert_state.OWN_RULES):
                return 0
            owner = self._owner_of_stream(data["stream"])
            self._alert_owner[data["alert_id"]] = owner
        except (ValueError, KeyError, TypeError):
            return 0
        return owner

    def _retries(self, shard: Shard, receiver: str) -> str:
        return shard.keys.key(f"outbox:retry:{receiver}")

    def _by_page(self, command: tuple[str, ...], values: Sequence[Value]) -> None:
        for at in range(0, len(values), PAGE):
            self._connection.read(*command, *values[at : at + PAGE])


def _place(entry: bytes) -> tuple[int, int]:
    ms, _, number = entry.partition(b"-")
    return int(ms), int(number or 0)
