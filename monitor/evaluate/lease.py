"""The leases of the shards, with deadlines that their holder keeps by its own clock.

Redis ends a lease by itself. A holder that was stopped meanwhile (SIGSTOP, a suspended machine, a long pause of the
network) would not know; so it counts from the moment before it asked, and is over before Redis can give the lease away.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Mapping

from monitor.store.shards import Seats, Shards
from monitor.telemetry.clock import elapsed_s

LEASE_S = 15.0
"""A dead process is replaced after this; a live one renews its leases with every look."""
MARGIN_S = 1.0
"""The holder stops so long before: the way from its check to the write or the request that follows."""


class Tenure:
    """One unbroken time of holding the lease. Safe to share between threads; once over, it stays over."""

    def __init__(self, until_s: float, clock: Callable[[], float] = elapsed_s) -> None:
        self._until_s, self._clock = until_s, clock
        self._lock = threading.Lock()

    def holds(self) -> bool:
        """Whether the lease is certainly still held; asks no server."""
        # The lock orders this before or after `extend`: once one caller has seen the end, no extension follows.
        with self._lock:
            return self._clock() < self._until_s

    def extend(self, until_s: float) -> bool:
        """Move the deadline; False where it has passed."""
        with self._lock:
            if self._clock() >= self._until_s:
                return False
            self._until_s = until_s
            return True

    def end(self) -> None:
        """Give it up at once."""
        with self._lock:
            self._until_s = float("-inf")


class Leases:
    """Takes, keeps and gives up the leases of one process; for one thread. Methods that ask Redis may raise StoreError.

    Args:
        wished: shards that the process is configured for.
    """

    def __init__(self, shards: Shards, wished: int = 1, clock: Callable[[], float] = elapsed_s) -> None:
        self._shards, self._wished, self._clock = shards, wished, clock
        self.token = uuid.uuid4().hex
        self.seats = Seats()
        """As of the last answer."""
        self._tenures: dict[int, Tenure] = {}

    def renew(self, give_up: Collection[int] = ()) -> Mapping[int, Tenure]:
        """Take or keep; returns the tenure of each shard that is held. It is the same while it was never interrupted,
        else a new one; there is none where the answer came too late.

        Args:
            give_up: shards whose tenure has ended here, so that another process may take them.
        """
        asked_s = self._clock()
        self.drop(give_up)
        self.seats = seats = self._shards.lease(self.token, LEASE_S, self._wished, give_up)
        until_s = asked_s + LEASE_S - MARGIN_S
        self.drop(self._tenures.keys() - seats.held)
        for number in seats.held:
            tenure = self._tenures.get(number)
            if tenure is None or not tenure.extend(until_s):
                self._tenures[number] = Tenure(until_s, self._clock)
        return {number: tenure for number, tenure in sorted(self._tenures.items()) if tenure.holds()}

    def drop(self, numbers: Collection[int]) -> None:
        """Act no more under these; Redis is not asked."""
        for number in tuple(numbers):
            if tenure := self._tenures.pop(number, None):
                tenure.end()

    def release(self) -> None:
        """Let other processes take all of them now."""
        self.drop(tuple(self._tenures))
        self._shards.leave(self.token)
