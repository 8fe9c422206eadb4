"""Transitions on their way to the receivers: a Redis stream with one group per receiver.

An entry leaves when every receiver has settled it: delivered, or dead after its last try. When each try is due stands
in Redis too, so a restart continues the schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from monitor.store.connection import pairs
from monitor.store.keyspace import TTL_S, MonitorKeys, expiry
from monitor.store.scripts import STORE_SCRIPTS, Call

FETCH_ENTRIES = 256
"""Looked at together per receiver. Those behind them wait; each leaves after its schedule (three days)."""
DEAD_LETTERS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One transition for one receiver; `id` is the same for all receivers and all tries."""

    id: str
    document: str
    """Empty while the next try is not due: a dead receiver's backlog is not read again every second."""
    attempts: int = 0
    """Tries that failed."""
    not_before_ms: int = 0
    alert_id: str = ""
    """As `postpone` was told; empty before the first try."""


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
    """Transitions and what each receiver has of them. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._keys = keys
        self._outbox = keys.key("outbox")

    def append(self, document: str) -> str:
        """Add one document that no closed bucket decided (a test alert); returns the entry's id."""
        key = self._outbox
        entry_id, _ = self._connection.read_many([("XADD", key, "*", "document", document), expiry(key)])
        return str(entry_id.decode())

    def raise_self_alert(self, name: str, document: str) -> bool:
        """Tell the receivers of a trouble of the monitor's own; False where an episode of that name is open."""
        call = Call(STORE_SCRIPTS["own"], [self._of("own"), self._outbox], (name, document, TTL_S))
        return bool(self._connection.run(call))

    def self_alerts(self) -> dict[str, str]:
        """{name: document given to `raise_self_alert`} of the open episodes."""
        return self._keys.texts("outbox", "own")

    def end_self_alert(self, name: str, opened: str, document: str) -> bool:
        """Close the episode that `opened` began, telling the receivers; False where it is closed already."""
        call = Call(STORE_SCRIPTS["own_end"], [self._of("own"), self._outbox], (name, opened, document))
        return bool(self._connection.run(call))

    def fetch(self, receiver: str, now_ms: int) -> list[OutboxEntry]:
        """What the receiver has not settled yet, oldest first; without the document where it is not due at `now_ms`."""
        keys = [self._outbox, self._of("retry", receiver)]
        entries = []
        for entry_id, document, retry in self._connection.run(
            Call(STORE_SCRIPTS["fetch"], keys, (receiver, FETCH_ENTRIES, now_ms, TTL_S))
        ):
            attempts, not_before, alert_id = (retry or b"0:0:").decode().split(":", 2)
            entries.append(OutboxEntry(entry_id.decode(), document.decode(), int(attempts), int(not_before), alert_id))
        return entries

    def postpone(self, receiver: str, entry_id: str, attempts: int, not_before_ms: int, alert_id: str = "") -> None:
        """Remember how many tries failed, when the next one is due, and which alert waits with it."""
        state = f"{attempts}:{not_before_ms}:{alert_id}"
        self._keys.put_texts({entry_id: state}, "outbox", "retry", receiver)

    def settle(self, receiver: str, entry_id: str, alert_id: str = "", hold: str = "") -> bool:
        """The receiver is done with it. With `alert_id`, `hold` is kept (see `held`), or dropped where empty.

        Returns:
            False where it had been settled before; then what is held stays as it is.
        """
        return self._settle(receiver, entry_id, alert_id, hold, "", "")

    def bury(self, receiver: str, entry: OutboxEntry, reason: str, alert_id: str = "") -> bool:
        """The receiver will never get it: keep it among the dead letters, and hold that alert no longer."""
        return self._settle(receiver, entry.id, alert_id, "", reason, entry.document)

    def _settle(self, receiver: str, entry_id: str, *outcome: str) -> bool:
        keys = [self._outbox, self._of("retry", receiver), self._of("held", receiver), self._of("dead")]
        call = Call(STORE_SCRIPTS["settle"], keys, (receiver, entry_id, *outcome, TTL_S, DEAD_LETTERS_KEPT))
        return bool(self._connection.run(call))

    def hold(self, receiver: str, alert_id: str, text: str) -> None:
        """Change what is kept of an alert that is held already."""
        self._keys.put_texts({alert_id: text}, "outbox", "held", receiver)

    def held(self, receiver: str) -> dict[str, str]:
        """{alert id: text given to `settle` or `hold`} of the alerts that fire as far as the receiver has seen."""
        return self._keys.texts("outbox", "held", receiver)

    def drop_held(self, receiver: str, alert_id: str) -> None:
        """Forget one that was held."""
        self._keys.remove_text(alert_id, "outbox", "held", receiver)

    def set_failing(self, receiver: str, document: str) -> None:
        """Remember the alert that told of a receiver which does not get its alerts; empty: it gets them again."""
        if document:
            self._keys.put_texts({receiver: document}, "outbox", "failing")
        else:
            self._keys.remove_text(receiver, "outbox", "failing")

    def failing(self) -> dict[str, str]:
        """{receiver: document given to `set_failing`}."""
        return self._keys.texts("outbox", "failing")

    def retain_receivers(self, receivers: Iterable[str]) -> list[str]:
        """Make these the ones that the outbox is kept for; to be called before any of them settles an entry.

        A new one gets what is in the outbox now. One that is no longer configured is forgotten: it would hold the
        outbox back.

        Returns:
            The names of the forgotten.
        """
        kept, key = set(receivers), self._outbox
        (exists,) = self._connection.read_many([("EXISTS", key)])
        groups = self._connection.read_many([("XINFO", "GROUPS", key)])[0] if exists else []
        names = {_group_name(group) for group in groups}
        for name in sorted(kept - names):
            self._connection.read_many([("XGROUP", "CREATE", key, name, "0", "MKSTREAM"), expiry(key)])
        gone = sorted(names - kept)
        for name in gone:
            forget = ("DEL", self._of("retry", name), self._of("held", name))
            self._connection.read_many([("XGROUP", "DESTROY", key, name), forget])
        return gone

    def backlog(self, receiver: str) -> Backlog:
        """How much the receiver still has to get, and since when."""
        entries, oldest = self._connection.run(Call(STORE_SCRIPTS["backlog"], [self._outbox], (receiver,)))
        return Backlog(int(entries), int(oldest.decode().partition("-")[0]) if oldest else None)

    def dead_alerts(self, limit: int = 100) -> list[DeadAlert]:
        """What receivers never got, newest first."""
        (reply,) = self._connection.read_many([("XREVRANGE", self._of("dead"), "+", "-", "COUNT", limit)])
        rows = [{k.decode(): v.decode() for k, v in pairs(fields).items()} for _, fields in reply]
        return [DeadAlert(r["receiver"], r["entry"], r["reason"], r["document"]) for r in rows]

    def _of(self, *parts: str) -> str:
        return self._keys.key("outbox", *parts)


def _group_name(group: Any) -> str:
    """Of one row of XINFO GROUPS: a mapping or a flat list, by protocol version."""
    return str(pairs(group)[b"name"].decode())
