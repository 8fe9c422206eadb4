"""Transitions on their way to the receivers: a Redis stream with one group per receiver.

An entry leaves when every receiver has settled it: delivered, or dead after its last try. Redis also holds when each
try is due, so a restart continues the schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.store.connection import SCRIPTS, Value
from monitor.store.evaluation import FIRING_DOCUMENTS
from monitor.store.keyspace import TTL_S, MonitorKeys, TextHash, expiry

FETCH_ENTRIES = 256
"""Looked at together per receiver. Those behind them wait; each leaves after its schedule (three days)."""
BACKLOG_PAGE = 200
"""Entries counted in one step: a full outbox of 10,000 holds the server a few milliseconds at a time."""
DEAD_LETTERS_KEPT = 1_000
EVER_MS = 2**52


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
    """As given to `postpone`; empty before the first try."""


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
    at_ms: int = 0
    """When it was given up, by the clock of Redis."""


class Outbox:
    """Transitions and what each receiver has of them. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection = keys.connection
        self._outbox = keys.key("outbox")
        self._firing = keys.key(FIRING_DOCUMENTS)

    def append(self, document: str) -> str:
        """Add one document that no closed bucket decided (a test alert); returns the entry's id."""
        key = self._outbox
        entry_id, _ = self._connection.read_many([("XADD", key, "*", "document", document), expiry(key)])
        return str(entry_id, "ascii")

    # ---------------------------------------------------------------- alerts about the monitor itself

    def raise_self_alert(self, name: str, document: str) -> bool:
        """Send the receivers an alert about the monitor itself; False where an episode of that name is open."""
        return bool(self._run("own", "own", args=(name, document, TTL_S)))

    def self_alerts(self) -> dict[str, str]:
        """{name: document given to `raise_self_alert`} of the open episodes."""
        return self._texts("own").all()

    def end_self_alert(self, name: str, opened: str, document: str) -> bool:
        """Close the episode that `opened` began and send `document`; False where it is closed already."""
        return bool(self._run("own_end", "own", args=(name, opened, document)))

    # ---------------------------------------------------------------- delivery

    def now_ms(self) -> int:
        """The time of Redis."""
        return int(self._run("clock", args=()))

    def firing_alerts(self) -> list[str]:
        """Ids of the alerts of rules that fire now and have a document."""
        return [name.decode() for name in self._connection.read("HKEYS", self._firing)]

    def firing_documents(self, alert_ids: Sequence[str]) -> dict[str, str]:
        """{alert id: the document with which it began to fire} of those alerts of rules that fire now."""
        if not alert_ids:
            return {}
        found = self._connection.read("HMGET", self._firing, *alert_ids)
        return {name: text.decode() for name, text in zip(alert_ids, found, strict=True) if text is not None}

    def fetch(self, receiver: str, now_ms: int) -> list[OutboxEntry]:
        """What the receiver has not settled yet, oldest first; without the document where it is not due at `now_ms`."""
        entries = []
        args = (receiver, FETCH_ENTRIES, now_ms, TTL_S)
        for entry_id, document, retry in self._run("fetch", f"retry:{receiver}", args=args):
            attempts, not_before, alert_id = (retry or b"0:0:").decode().split(":", 2)
            entries.append(OutboxEntry(entry_id.decode(), document.decode(), int(attempts), int(not_before), alert_id))
        return entries

    def postpone(self, receiver: str, entry_id: str, attempts: int, not_before_ms: int, alert_id: str = "") -> None:
        """Store how many tries failed, when the next one is due, and which alert waits with it."""
        self._texts(f"retry:{receiver}").put(entry_id, f"{attempts}:{not_before_ms}:{alert_id}")

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
        args: tuple[Value, ...] = (receiver, entry_id, *outcome, TTL_S, DEAD_LETTERS_KEPT)
        return bool(self._run("settle", f"retry:{receiver}", f"held:{receiver}", "dead", args=args))

    def hold(self, receiver: str, alert_id: str, text: str) -> None:
        """Change what is kept of an alert that is held already."""
        self._texts(f"held:{receiver}").put(alert_id, text)

    def held(self, receiver: str) -> dict[str, str]:
        """{alert id: text given to `settle` or `hold`} of the alerts that fire as far as the receiver has seen."""
        return self._texts(f"held:{receiver}").all()

    def drop_held(self, receiver: str, alert_id: str) -> None:
        """Remove one that was held."""
        self._texts(f"held:{receiver}").remove(alert_id)

    def dead_alerts(self, limit: int = 100) -> list[DeadAlert]:
        """What receivers never got, newest first."""
        reply = self._connection.read("XREVRANGE", self._of("dead"), "+", "-", "COUNT", limit)
        rows = [(at, {k.decode(): v.decode() for k, v in fields.items()}) for at, fields in reply]
        return [
            DeadAlert(r["receiver"], r["entry"], r["reason"], r["document"], int(at.partition(b"-")[0]))
            for at, r in rows
        ]

    # ---------------------------------------------------------------- receivers

    def raise_failing(self, receiver: str, document: str) -> bool:
        """Send the alert that a receiver does not get its alerts; False where that is open."""
        return bool(self._run("own", "failing", args=(receiver, document, TTL_S)))

    def end_failing(self, receiver: str, opened: str, document: str) -> bool:
        """End what `opened` began, and send the document that says so; False where it is over already."""
        return bool(self._run("own_end", "failing", args=(receiver, opened, document)))

    def failing(self) -> dict[str, str]:
        """{receiver: document given to `raise_failing`} of those that are open."""
        return self._texts("failing").all()

    def keep_receivers(self, receivers: Iterable[str]) -> list[str]:
        """Keep the outbox for these; to be called before any of them settles an entry. Returns those that are new.

        A new one gets what is in the outbox now.
        """
        known, absent = self.receivers(), self._of("receivers")
        added = sorted(set(receivers) - known)
        commands: list[tuple[Value, ...]] = [
            ("XGROUP", "CREATE", self._outbox, name, "0", "MKSTREAM") for name in added
        ]
        commands += [("HSET", absent, name, 0) for name in receivers]
        if commands:
            self._connection.read_many([*commands, expiry(self._outbox), expiry(absent)])
        return added

    def receivers(self) -> set[str]:
        """All for which entries are kept, whichever process has them in its configuration."""
        if not self._connection.read("EXISTS", self._outbox):
            return set()
        return {group["name"].decode() for group in self._connection.read("XINFO GROUPS", self._outbox)}

    def add_absence(self, receiver: str, seconds: float) -> float:
        """Count that the receiver was in no configuration for that long; returns for how long since it last was."""
        key = self._of("receivers")
        absent_ms, _ = self._connection.read_many([("HINCRBY", key, receiver, round(1000 * seconds)), expiry(key)])
        return int(absent_ms) / 1000

    def bury_all(self, receiver: str, reason: str) -> int:
        """Bury what waits for the receiver; returns how many were buried."""
        buried = empty = 0
        while empty < 2:  # the first empty one may have dropped entries that the limit had cut off, before others
            entries = self.fetch(receiver, EVER_MS)
            empty = 0 if entries else empty + 1
            buried += sum(self.bury(receiver, entry, reason) for entry in entries)
        return buried

    def forget_receiver(self, receiver: str) -> None:
        """Keep nothing for the receiver any more; `bury_all` comes first."""
        gone = ("DEL", self._of(f"retry:{receiver}"), self._of(f"held:{receiver}"))
        forgotten = ("HDEL", self._of("receivers"), receiver)
        self._connection.read_many([("XGROUP", "DESTROY", self._outbox, receiver), gone, forgotten])

    def backlog(self, receiver: str) -> Backlog:
        """How much the receiver still has to get, and since when; counted in steps, between which others are served."""
        entries, oldest, last = self._run("backlog", args=(receiver, "", BACKLOG_PAGE))
        while last:
            more, _, last = self._run("backlog", args=(receiver, last, BACKLOG_PAGE))
            entries += more
        return Backlog(int(entries), int(oldest.decode().partition("-")[0]) if oldest else None)

    def _run(self, script: str, *names: str, args: Sequence[Value]) -> Any:
        """Run a script whose keys are the outbox and those of these names, in that order."""
        return self._connection.run(SCRIPTS[script], [self._outbox, *map(self._of, names)], *args)

    def _texts(self, name: str) -> TextHash:
        return TextHash(self._connection, self._of(name))

    def _of(self, name: str) -> str:
        return f"{self._outbox}:{name}"
