"""The shards of the evaluation: slices of the streams, each with alerts, outbox and rule states under its own hash tag.

How many there are is state, not configuration: a process follows what is stored, and all who live must wish for another
number before it is changed (`shard_move.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b

from monitor.core import alert_state
from monitor.core.types import Alert
from monitor.store.checkpoints import Checkpoints
from monitor.store.connection import SCHEMA, SCRIPTS, Connection
from monitor.store.evaluation import STATE_FIELDS, Evaluation, EvaluatorState, state_of
from monitor.store.keyspace import TTL_S, MonitorKeys
from monitor.store.outbox import Backlog, DeadAlert, Outbox
from monitor.store.past_alerts import PAST_ALERTS, SINCE_FIELD, PastAlerts, joined


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How the streams are divided."""

    shards: int = 1
    epoch: int = 0
    """Grows with every change."""
    moving_from: int = 0
    """The number of shards before, while what they hold is being moved; then nobody judges or delivers. Else 0."""

    @property
    def holding(self) -> int:
        """Shards that hold state."""
        return max(self.shards, self.moving_from)


@dataclass(frozen=True, slots=True)
class Seats:
    """What a process holds, and what it should."""

    layout: ShardLayout = field(default_factory=ShardLayout)
    change_to: int = 0
    """All processes that live are configured for this number of shards, and it is another one; else 0."""
    target: int = 0
    """Shards that this process should hold."""
    processes: int = 0
    held: frozenset[int] = frozenset()


@lru_cache(maxsize=200_000)
def shard_of(stream: str, shards: int) -> int:
    """The shard that judges a stream; the same in every process and version."""
    # other bytes than those of `slice_of`: else a shard would hold few of its slices
    digest = blake2b(stream.encode("utf-8", "surrogateescape"), digest_size=8, person=b"shard").digest()
    return int.from_bytes(digest, "little") % shards


class Shard:
    """One of `of` shards."""

    def __init__(self, keys: MonitorKeys, number: int, of: int) -> None:
        self.keys, self.number, self.of = keys, number, of

    def owns(self, stream: str) -> bool:
        """Whether it judges the stream."""
        return self.of == 1 or shard_of(stream, self.of) == self.number

    @cached_property
    def evaluation(self) -> Evaluation:
        """Its alerts, and where it stands."""
        return Evaluation(self.keys)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """What its rules remember."""
        return Checkpoints(self.keys)

    @cached_property
    def outbox(self) -> Outbox:
        """Its alerts on their way to the receivers. The first one's has what the monitor says about itself, too."""
        return Outbox(self.keys)


class Shards:
    """Who holds which shard, and what is read of all of them. Every method may raise StoreError."""

    def __init__(self, connection: Connection, monitor: str) -> None:
        self._connection, self._monitor = connection, monitor
        self._keys = MonitorKeys(connection, monitor)

    # ---------------------------------------------------------------- leases

    def lease(self, token: str, ttl_s: float, wished: int = 1, give_up: Collection[int] = ()) -> Seats:
        """Keep the leases held with this token, take what is free up to this process' part, and show it that we live.

        Args:
            wished: shards that the process is configured for.
            give_up: of those that it holds.
        """
        return self._lease(token, max(1, int(ttl_s * 1000)), wished, give_up)

    def leave(self, token: str) -> None:
        """Let others take at once what is held with this token."""
        self._lease(token, 0, 1, ())

    def _lease(self, token: str, ttl_ms: int, wished: int, give_up: Iterable[int]) -> Seats:
        keys = [self._keys.key(name) for name in ("shards", "evaluator", "lease", "processes", "tenure")]
        reply = self._connection.run(SCRIPTS["lease"], keys, token, ttl_ms, SCHEMA, TTL_S, wished, *give_up)
        shards, epoch, moving_from, change_to, target, processes, *held = map(int, reply)
        return Seats(ShardLayout(shards, epoch, moving_from), change_to, target, processes, frozenset(held))

    def lease_keys(self, shards: int) -> list[str]:
        """The keys of the leases, which lease.lua names likewise."""
        return [self._keys.key("tenure", *([str(number)] if number else [])) for number in range(shards)]

    # ---------------------------------------------------------------- all of them

    def layout(self) -> ShardLayout:
        """How the streams are divided now."""
        found = self._connection.read("HMGET", self._keys.key("shards"), "shards", "epoch", "from")
        shards, epoch, moving_from = (int(value or 0) for value in found)
        return ShardLayout(shards or 1, epoch, moving_from)

    def shard(self, number: int, of: int) -> Shard:
        """One of them."""
        return Shard(MonitorKeys(self._connection, self._monitor, number), number, of)

    def all(self) -> list[Shard]:
        """Every one that holds state now."""
        layout = self.layout()
        return [self.shard(number, layout.shards) for number in range(layout.holding)]

    def states(self) -> list[EvaluatorState]:
        """Where each shard stands."""
        commands = [("HMGET", shard.keys.key("evaluator"), *STATE_FIELDS) for shard in self.all()]
        return [state_of(reply) for reply in self._connection.read_many(commands)]

    def held(self) -> list[bool]:
        """Whether some process holds each shard."""
        commands = [("GET", lease) for lease in self.lease_keys(self.layout().holding)]
        return [reply is not None for reply in self._connection.read_many(commands)]

    def alerts(self) -> dict[tuple[str, str], Alert]:
        """{(rule, stream): alert} of every alert that is kept, of all shards."""
        replies = self._connection.read_many([("HGETALL", shard.keys.key("alerts")) for shard in self.all()])
        alerts = [alert_state.from_json(text.decode()) for reply in replies for text in reply.values()]
        return {(alert.rule, alert.stream): alert for alert in alerts}

    def past_alerts(self) -> PastAlerts:
        """Which alerts were under way and are no more, of all shards."""
        return self.past_alerts_of(self.all())

    def past_alerts_of(self, shards: Iterable[Shard]) -> PastAlerts:
        """Likewise, of some."""
        keys = [shard.keys for shard in shards]
        since = self._connection.read_many([("HGET", of.key("evaluator"), SINCE_FIELD) for of in keys])
        members = [self._connection.read("ZRANGE", of.key(PAST_ALERTS), 0, -1) for of in keys]
        return joined(zip(since, members, strict=True))

    def dead_alerts(self, limit: int = 100) -> list[DeadAlert]:
        """What receivers never got, newest first."""
        found = [dead for shard in self.all() for dead in shard.outbox.dead_alerts(limit)]
        return sorted(found, key=lambda dead: dead.at_ms, reverse=True)[:limit]

    def backlog(self, receiver: str) -> Backlog:
        """How much a receiver still has to get, and since when."""
        found = [shard.outbox.backlog(receiver) for shard in self.all()]
        oldest = [backlog.oldest_ms for backlog in found if backlog.oldest_ms is not None]
        return Backlog(sum(backlog.entries for backlog in found), min(oldest, default=None))


def whole_state(states: Iterable[EvaluatorState]) -> EvaluatorState:
    """Where all shards stand together: decided is what every one has decided."""
    found = list(states)
    decided = [state.bucket_ms for state in found if state.bucket_ms is not None]
    return EvaluatorState(
        sum(state.version for state in found),
        min(decided) if decided and len(decided) == len(found) else None,
        sum(state.outbox_dropped for state in found),
    )
