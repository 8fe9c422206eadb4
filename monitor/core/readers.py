"""Which partitions somebody reads. Pure: signs of life and the monotonic time are arguments.

A partition that nobody reads must not hold the fleet's watermark back for ever: its topic was renamed, or no process
can claim it. There are two kinds of signs: those of its owner (claims, applies, a beat every few seconds) and the
registrations by processes that are configured to read it. A sign is only compared with the one before, so no clock
counts but the observer's. One observer goes on from what another one has seen: else a lease that moves every few
minutes would begin the measurement again each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from monitor.core.types import Partition

Sign = tuple[bytes | None, ...]
"""Differs from the one before when somebody has given a sign of life."""

UNREAD_AFTER_S = 300.0
"""Without a sign of an owner. An owner gives one every 5 s; a crashed one is replaced when its session is over (45 s by
default), one that hangs when the watchdog ends it (120 s), and then the group needs seconds to rebalance."""
RETIRED_AFTER_S = 3600.0
"""Without a registration, which each process makes every 10 s. Until then a person is alerted: a configuration that was
changed by mistake is set back within the hour."""
PAUSE_S = 60.0
"""After a pause of the observer (Redis was away, another process held the lease) every owner has so long to return, so
that its backlog is not late; only time that was observed counts. After a pause of all owners (the broker was away) the
measurement starts again."""


class Unread(StrEnum):
    """Why a partition is left out of the watermark."""

    UNREAD = "unread"
    """Nobody reads it."""
    RETIRED = "retired"
    """Nobody reads it, and nobody is configured to."""


@dataclass(frozen=True, slots=True)
class Absence:
    """A partition without signs of an owner, for the next observer: the last signs, and how long each is the last."""

    owner: str
    """Digest of the sign."""
    owner_s: float
    configured: str
    """Digest of the registration."""
    configured_s: float


@dataclass(slots=True)
class _Seen:
    """The last sign of one kind, and when it came."""

    sign: Sign
    at_s: float
    renewed: bool = False
    """It has changed since the measurement began; until then nothing is known of who gave it, and when."""


class Readers:
    """Decides which partitions are left out, from one observation to the next."""

    def __init__(self) -> None:
        self._owners: dict[Partition, _Seen] = {}
        self._configured: dict[Partition, _Seen] = {}
        self._observed_s = self._owned_s = float("-inf")  # the last observation, and the last sign of any owner
        self.absences: dict[Partition, Absence] = {}
        """Of the last observation: partitions that have been without an owner for longer than PAUSE_S."""

    def observe(
        self,
        now_s: float,
        owners: Mapping[Partition, Sign],
        configured: Mapping[Partition, Sign],
        left_out: Mapping[Partition, Unread],
        absences: Mapping[Partition, Absence],
    ) -> dict[Partition, Unread]:
        """Which partitions are left out from now on.

        Args:
            owners, configured: the latest sign of every known partition.
            left_out, absences: what the last observation gave, by whichever process made it.
        """
        if now_s - self._observed_s > PAUSE_S:
            self._resume(now_s, owners, configured, absences)
        self._observed_s = now_s
        returned = _renew(self._configured, configured, now_s)
        if _renew(self._owners, owners, now_s):
            if now_s - self._owned_s > PAUSE_S:
                for seen in self._owners.values():
                    seen.at_s = now_s
            self._owned_s = now_s
        if now_s - self._owned_s > PAUSE_S:  # nobody reads anything: no partition holds another one back
            self.absences = dict(absences)
            return {partition: left_out[partition] for partition in owners if partition in left_out}
        found = {}
        for partition in owners:
            before = left_out.get(partition)
            if before is Unread.RETIRED and partition in returned:
                self._owners[partition].at_s, before = now_s, None  # configured again: its owner gets time to come
            if state := self._state(partition, before, now_s):
                found[partition] = state
        absent = (p for p in owners if found.get(p) is not Unread.RETIRED and now_s - self._owners[p].at_s > PAUSE_S)
        self.absences = {partition: self._absence(partition, now_s) for partition in absent}
        return found

    def _resume(
        self,
        now_s: float,
        owners: Mapping[Partition, Sign],
        configured: Mapping[Partition, Sign],
        absences: Mapping[Partition, Absence],
    ) -> None:
        """Begin to observe: what has no other sign than the last observer saw is absent for as long as it said."""
        self._owners, self._configured, self._owned_s = {}, {}, now_s
        for partition, absence in absences.items():
            if partition not in owners or _digest(owners[partition]) != absence.owner:
                continue
            absent_s = min(absence.owner_s, UNREAD_AFTER_S - PAUSE_S)
            self._owners[partition] = _Seen(owners[partition], now_s - absent_s)
            if _digest(configured[partition]) == absence.configured:
                absent_s = min(absence.configured_s, RETIRED_AFTER_S - PAUSE_S)
                self._configured[partition] = _Seen(configured[partition], now_s - absent_s)

    def _absence(self, partition: Partition, now_s: float) -> Absence:
        owner, configured = self._owners[partition], self._configured[partition]
        return Absence(_digest(owner.sign), now_s - owner.at_s, _digest(configured.sign), now_s - configured.at_s)

    def _state(self, partition: Partition, before: Unread | None, now_s: float) -> Unread | None:
        owner, configured = self._owners[partition], self._configured[partition]
        if now_s - owner.at_s < UNREAD_AFTER_S and (owner.renewed or before is None):
            return None
        is_over = now_s - configured.at_s >= RETIRED_AFTER_S
        return Unread.RETIRED if is_over or before is Unread.RETIRED else Unread.UNREAD


def _digest(sign: Sign) -> str:
    return blake2b(repr(sign).encode(), digest_size=8).hexdigest()


def _renew(seen: dict[Partition, _Seen], signs: Mapping[Partition, Sign], now_s: float) -> set[Partition]:
    """Note the signs that have changed; returns whose."""
    changed = set()
    for partition, sign in signs.items():
        last = seen.get(partition)
        if last is None:
            seen[partition] = _Seen(sign, now_s)
        elif last.sign != sign:
            seen[partition] = _Seen(sign, now_s, renewed=True)
            changed.add(partition)
    _forget(seen, signs)
    return changed


def _forget(seen: dict[Partition, _Seen], known: Iterable[Partition]) -> None:
    for partition in seen.keys() - set(known):
        del seen[partition]
