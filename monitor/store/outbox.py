"""Transitions on their way to the receivers: a Redis stream with one group per receiver.

An entry leaves when every receiver has settled it: delivered, or dead after its last try. When each try is due stands
in Redis too, so a restart continues the schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from monitor.store.connection import Call, Connection
from monitor.store.partitions import CURSOR_TTL_S

FETCH_ENTRIES = 256
"""Looked at together per receiver. Those behind them wait; each leaves after its schedule (three days)."""
DEAD_LETTERS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One transition for one receiver; `id` is the same for all receivers and all tries."""

    id: str
    document: str
    attempts: int = 0
    not_before_ms: int = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a receiver still has to get."""

    entries: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class DeadAlert:
    """A transition that a receiver never got."""

    receiver: str
    entry_id: str
    reason: str
    document: str


class Outbox:
    """Reads and writes the outbox under `{lw:<monitor>:alerts}`."""

    def __init__(self, connection: Connection, monitor: str) -> None:
        self._connection = connection
        self._outbox_prefix = f"{{lw:{monitor}:alerts}}"

    def append_outbox(self, document: str) -> str:
        """Add one document that no closed bucket decided (a test alert); returns the entry's id."""
        (entry_id,) = self._connection.read_many([("XADD", self._outbox(), "*", "document", document)])
        return str(entry_id.decode())

    def fetch(self, receiver: str) -> list[OutboxEntry]:
        """What the receiver has not settled yet, oldest first, due or not."""
        call = Call("fetch", [self._outbox(), self._of("retry", receiver)], (receiver, FETCH_ENTRIES))
        entries = []
        for entry_id, document, retry in self._connection.run(call):
            attempts, _, not_before = (retry or b"0:0").decode().partition(":")
            entries.append(OutboxEntry(entry_id.decode(), document.decode(), int(attempts), int(not_before)))
        return entries

    def postpone(self, receiver: str, entry_id: str, attempts: int, not_before_ms: int) -> None:
        """Remember that a try failed and when the next one is due."""
        key = self._of("retry", receiver)
        state = f"{attempts}:{not_before_ms}"
        self._connection.read_many([("HSET", key, entry_id, state), ("EXPIRE", key, CURSOR_TTL_S)])

    def settle(self, receiver: str, entry_id: str, alert_id: str = "", hold: str = "") -> None:
        """The receiver has it. With `alert_id`, `hold` is kept for re-sending (see `held`), or dropped where empty."""
        self._settle(receiver, entry_id, alert_id, hold, "", "")

    def bury(self, receiver: str, entry: OutboxEntry, reason: str) -> None:
        """The receiver will never get it: keep it among the dead letters."""
        self._settle(receiver, entry.id, "", "", reason, entry.document)

    def _settle(self, receiver: str, entry_id: str, *outcome: str) -> None:
        keys = [self._outbox(), self._of("retry", receiver), self._of("held", receiver), self._of("dead")]
        self._connection.run(Call("settle", keys, (receiver, entry_id, *outcome, CURSOR_TTL_S, DEAD_LETTERS_KEPT)))

    def held(self, receiver: str) -> dict[str, str]:
        """{alert id: document} of what the receiver wants to hear again while it fires."""
        return {k.decode(): v.decode() for k, v in self._connection.read_hash(self._of("held", receiver)).items()}

    def drop_held(self, receiver: str, alert_id: str) -> None:
        """Stop re-sending that alert."""
        self._connection.read_many([("HDEL", self._of("held", receiver), alert_id)])

    def retain_receivers(self, receivers: Iterable[str]) -> list[str]:
        """Forget receivers that are no longer configured: they would hold the outbox back. Returns their names."""
        kept = set(receivers)
        if not self._connection.read_many([("EXISTS", self._outbox())])[0]:
            return []
        groups = self._connection.read_many([("XINFO", "GROUPS", self._outbox())])[0]
        names = {_group_name(group) for group in groups}
        gone = sorted(names - kept)
        for name in gone:
            self._connection.read_many(
                [
                    ("XGROUP", "DESTROY", self._outbox(), name),
                    ("DEL", self._of("retry", name), self._of("held", name)),
                ]
            )
        return gone

    def backlog(self, receiver: str) -> Backlog:
        """How much the receiver still has to get, and since when."""
        entries, oldest = self._connection.run(Call("backlog", [self._outbox()], (receiver,)))
        return Backlog(int(entries), int(oldest.decode().partition("-")[0]) if oldest else None)

    def dead_alerts(self, limit: int = 100) -> list[DeadAlert]:
        """What receivers never got, newest first."""
        (reply,) = self._connection.read_many([("XREVRANGE", self._of("dead"), "+", "-", "COUNT", limit)])
        rows = [{k.decode(): v.decode() for k, v in _fields(fields).items()} for _, fields in reply]
        return [DeadAlert(r["receiver"], r["entry"], r["reason"], r["document"]) for r in rows]

    def _outbox(self) -> str:
        return f"{self._outbox_prefix}:outbox"

    def _of(self, *parts: str) -> str:
        return ":".join((self._outbox(), *parts))


def _fields(fields: object) -> dict[bytes, bytes]:
    from monitor.store.connection import pairs  # noqa: PLC0415

    return pairs(fields)


def _group_name(group: object) -> str:
    name = dict(group)[b"name"] if not isinstance(group, list) else group[1]  # type: ignore[call-overload]
    return str(name.decode())
