"""The evaluator's lease, with a deadline that its holder keeps by its own clock.

Redis ends a lease by itself. A holder that was stopped meanwhile (SIGSTOP, a suspended machine, a long pause of the
network) would not know; so it counts from the moment before it asked, and is over before Redis can give the lease away.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

from monitor.store.evaluation import Evaluation
from monitor.telemetry.clock import elapsed_s

LEASE_S = 15.0
"""A dead evaluator is replaced after this; a live one renews it with every look."""
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


class Lease:
    """Takes, keeps and gives up the lease; for one thread. Every method but `drop` may raise StoreError."""

    def __init__(self, evaluation: Evaluation, clock: Callable[[], float] = elapsed_s) -> None:
        self._evaluation, self._clock = evaluation, clock
        self._token = uuid.uuid4().hex
        self._tenure: Tenure | None = None

    def renew(self) -> Tenure | None:
        """Take or keep it. The same tenure while it was never interrupted, else a new one; None while another holds it
        or where the answer came too late."""
        asked_s = self._clock()
        held = self._evaluation.lease(self._token, LEASE_S)
        until_s = asked_s + LEASE_S - MARGIN_S
        if not held:
            self.drop()
        elif self._tenure is None or not self._tenure.extend(until_s):
            self._tenure = Tenure(until_s, self._clock)
        return self._tenure if self._tenure and self._tenure.holds() else None

    @property
    def is_held(self) -> bool:
        """Whether it was, when last asked for."""
        return self._tenure is not None

    def drop(self) -> None:
        """Act no more under it; Redis is not asked."""
        if self._tenure:
            self._tenure.end()
            self._tenure = None

    def release(self) -> None:
        """Let another process take it now."""
        self.drop()
        self._evaluation.release(self._token)
