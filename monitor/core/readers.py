"""Which partitions somebody reads. Pure: signs of life and the monotonic time are arguments.

A partition that nobody reads must not hold the fleet's watermark back for ever: its topic was renamed, or no process
can claim it. There are two kinds of signs: those of its owner (claims, applies, a beat every few seconds) and the
registrations by processes that are configured to read it. A sign is only compared with the one before, so no clock
counts but the observer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

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
"""After a pause of the observer (Redis was away, another process held the lease) or of all owners (the broker was away)
the measurement starts again: every owner must have time to return, so that its backlog is not late."""


class Unread(StrEnum):
    """Why a partition is left out of the watermark."""

    UNREAD = "unread"
    """Nobody reads it."""
    RETIRED = "retired"
    """Nobody reads it, and nobody is configured to."""


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

    def observe(
        self,
        now_s: float,
        owners: Mapping[Partition, Sign],
        configured: Mapping[Partition, Sign],
        left_out: Mapping[Partition, Unread],
    ) -> dict[Partition, Unread]:
        """Which partitions are left out from now on.

        Args:
            owners, configured: the latest sign of every known partition.
            left_out: what the last observation gave, by whichever process made it.
        """
        if now_s - self._observed_s > PAUSE_S:
            self._owners, self._configured = {}, {}
        self._observed_s = now_s
        returned = _renew(self._configured, configured, now_s)
        if _renew(self._owners, owners, now_s):
            if now_s - self._owned_s > PAUSE_S:
                for seen in self._owners.values():
                    seen.at_s = now_s
            self._owned_s = now_s
        if now_s - self._owned_s > PAUSE_S:  # nobody reads anything: no partition holds another one back
            return {partition: left_out[partition] for partition in owners if partition in left_out}
        found = {}
        for partition in owners:
            before = left_out.get(partition)
            if before is Unread.RETIRED and partition in returned:
                self._owners[partition].at_s, before = now_s, None  # configured again: its owner gets time to come
            if state := self._state(partition, before, now_s):
                found[partition] = state
        return found

    def _state(self, partition: Partition, before: Unread | None, now_s: float) -> Unread | None:
        owner, configured = self._owners[partition], self._configured[partition]
        if now_s - owner.at_s < UNREAD_AFTER_S and (owner.renewed or before is None):
            return None
        is_over = now_s - configured.at_s >= RETIRED_AFTER_S
        return Unread.RETIRED if is_over or before is Unread.RETIRED else Unread.UNREAD


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
