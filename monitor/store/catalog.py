"""What the fleet publishes about itself: the partitions it reads and the profiles that count in it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace

from monitor.core.buckets import LEVELS, Layout
from monitor.core.readers import Absence, Sign, Unread
from monitor.core.replicas import GONE_S, Replica
from monitor.core.types import Partition
from monitor.store.connection import ADVICE, SCRIPTS, StoreConfigError
from monitor.store.keyspace import TTL_S, MonitorKeys, name_of, partition_of


class Catalog:
    """Partitions, layouts and profiles of one monitor. Every method may raise StoreError."""

    def __init__(self, keys: MonitorKeys) -> None:
        self._connection, self._keys = keys.connection, keys
        self._partitions, self._registrations = keys.key("partitions"), keys.key("registrations")
        self._left_out, self._absences, self._judged = (
            keys.texts("left_out"),
            keys.texts("absences"),
            keys.key("judged"),
        )
        self._first_read = keys.key("first_read")
        self._layouts, self._profiles = keys.texts("layouts"), keys.texts("profiles")
        self._replicas, self._shadows = keys.texts("replicas"), keys.texts("shadow_layouts")
        self._in_use = keys.texts("in_use")

    def register_partitions(self, partitions: Iterable[Partition]) -> None:
        """Make partitions known to the evaluator, wherever it runs; each call is a sign that they are configured."""
        members = map(name_of, partitions)
        self._connection.run(SCRIPTS["register"], [self._partitions, self._registrations], TTL_S, *members)

    def partitions(self) -> tuple[Partition, ...]:
        """Every partition registered so far, in order."""
        members = self._connection.read("SMEMBERS", self._partitions)
        return tuple(sorted(partition_of(member.decode()) for member in members))

    def first_read_with(self, topic: str) -> int | None:
        """How many partitions the topic had when it was first read; None where that is not known."""
        found = self._connection.read("HGET", self._first_read, topic)
        return None if found is None else int(found)

    def keep_first_read(self, topic: str, partitions: int) -> int:
        """Store that number unless another process has; returns what is stored."""
        key = self._first_read
        commands = [("HSETNX", key, topic, partitions), ("EXPIRE", key, TTL_S), ("HGET", key, topic)]
        return int(self._connection.read_many(commands)[-1])

    def registrations(self, partitions: Iterable[Partition]) -> dict[Partition, Sign]:
        """What changes at least every few seconds while a process is configured to read the partition."""
        counts = self._connection.read("HGETALL", self._registrations)
        return {partition: (counts.get(name_of(partition).encode()),) for partition in partitions}

    def left_out(self) -> dict[Partition, Unread]:
        """The partitions that hold no bucket open, because nobody reads them."""
        return {partition_of(member): Unread(state) for member, state in self._left_out.all().items()}

    def leave_out(self, partition: Partition, state: Unread) -> None:
        """Let the partition hold no bucket open any more."""
        self._left_out.put(name_of(partition), state)

    def take_back(self, partition: Partition) -> None:
        """Undo `leave_out`."""
        self._left_out.remove(name_of(partition))

    def absences(self) -> dict[Partition, Absence]:
        """The partitions without signs of an owner, as the last observer saw them."""
        return {partition_of(member): Absence(**json.loads(text)) for member, text in self._absences.all().items()}

    def keep_absences(self, before: Iterable[Partition], after: Mapping[Partition, Absence]) -> None:
        """Store these absences in the place of those that `before` names."""
        for partition in set(before) - after.keys():
            self._absences.remove(name_of(partition))
        if after:
            self._absences.put_all({name_of(p): json.dumps(asdict(absence)) for p, absence in after.items()})

    def forget(self, partition: Partition) -> None:
        """Remove a partition of which no state is left; a registration makes it known again."""
        member = name_of(partition)
        hashes = (self._registrations, self._judged)
        self._connection.read_many([("SREM", self._partitions, member), *(("HDEL", key, member) for key in hashes)])
        self.take_back(partition)

    def put_layouts(self, layouts: Mapping[str, Layout]) -> None:
        """{profile fingerprint: layout}: what is needed to read the vectors without loading the profile.

        Raises:
            StoreConfigError: one of the fingerprints has counts of another layout; nothing is stored.
        """
        stored = self._layouts.all()
        for name, layout in layouts.items():
            before = Layout.from_json(stored[name]) if name in stored else layout
            if not layout.adds_up_with(before):
                raise StoreConfigError(_differs(name, before, layout))
        self._layouts.put_all({name: layout.to_json() for name, layout in layouts.items()})

    def layouts(self) -> dict[str, Layout]:
        """What `put_layouts` stored, of every profile that counted here lately with the levels of this version."""
        layouts = {name: Layout.from_json(text) for name, text in self._layouts.all().items()}
        return {name: layout for name, layout in layouts.items() if layout.levels == LEVELS}

    def put_shadows(self, layouts: Mapping[str, Layout]) -> None:
        """{fingerprint as `shadow_of` gives it: layout}, for a comparison alone."""
        if layouts:
            self._shadows.put_all({name: layout.to_json() for name, layout in layouts.items()})

    def shadows(self) -> dict[str, Layout]:
        """What `put_shadows` stored, of every profile that was in shadow here lately."""
        return {name: Layout.from_json(text) for name, text in self._shadows.all().items()}

    def put_profiles(self, manifests: Mapping[str, str]) -> None:
        """{profile fingerprint: JSON of its manifest}: what the profile page shows."""
        self._profiles.put_all(manifests)

    def profiles(self) -> dict[str, str]:
        """What `put_profiles` stored, of every profile that counted here lately."""
        return self._profiles.all()

    def put_replica(self, replica: Replica, in_use: Iterable[str] = ()) -> None:
        """Store what a process says of itself, in the place of what it said before.

        Args:
            in_use: fingerprints of all that it has loaded, also for a condition or in shadow.
        """
        now_ms = self._now_ms()
        self._replicas.put(replica.name, replace(replica, seen_ms=now_ms).to_json())
        self._in_use.put_all({fingerprint: str(now_ms) for fingerprint in in_use})

    def in_use(self, within_ms: int) -> set[str]:
        """Fingerprints of what a process had loaded within that time, by the clock of Redis."""
        since_ms = self._now_ms() - within_ms
        loaded = {fingerprint for fingerprint, at_ms in self._in_use.all().items() if int(at_ms) >= since_ms}
        # a process of a version that does not say all that it has loaded says this much
        return loaded.union(*(replica.fingerprints for replica in self.replicas()))

    def replicas(self) -> list[Replica]:
        """What the processes said that run, by name; what those said that have ended is removed."""
        now_ms, found = self._now_ms(), []
        for name, text in sorted(self._replicas.all().items()):
            with suppress(ValueError, TypeError):  # of another version of the program
                replica = Replica.from_json(text)
                if now_ms - replica.seen_ms <= 1000 * GONE_S:
                    found.append(replica)
                else:
                    self._replicas.remove(name)
        return found

    def _now_ms(self) -> int:
        return int(self._connection.run(SCRIPTS["clock"], [self._keys.key("replicas")]))

    def put_examples(self, fingerprint: str, examples: Mapping[str, bytes]) -> None:
        """{name: JPEG} of the profile's reference, for the pages.

        Called every few seconds, as Redis may have lost them: what is there is not written again.
        """
        kept = self._keys.texts("examples", fingerprint)
        if (names := kept.names()) != examples.keys():
            for name in names - examples.keys():  # the folder was deleted, so that nobody should see them
                kept.remove(name)
            if examples:
                kept.put_all({name: b64encode(picture).decode() for name, picture in examples.items()})
        elif examples:
            kept.renew()

    def examples(self, fingerprint: str, signal: str) -> dict[str, str]:
        """{"low-1": base64 of a JPEG, ...} of the reference at both ends of a coordinate; empty where none is kept."""
        found = self._keys.texts("examples", fingerprint).all()
        mine = {name.partition("-"): picture for name, picture in found.items()}
        return {place: picture for (of, _, place), picture in mine.items() if of == signal}


def _differs(fingerprint: str, before: Layout, layout: Layout) -> str:
    """What is wrong with that profile, and what to do."""
    parts = [
        f"{what} {', '.join(map(str, theirs))}; here: {', '.join(map(str, ours))}"
        for what, theirs, ours in (
            ("signals", before.signals, layout.signals),
            ("levels", before.levels, layout.levels),
        )
        if theirs != ours
    ]
    return f"redis: profile {fingerprint} has counts of another layout ({'; '.join(parts)}); {ADVICE}"
