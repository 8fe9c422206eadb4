"""Rolls the history of counts up as it grows old, a little at a time; see `monitor/core/steps.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

from monitor.core.types import Partition
from monitor.store import Store

LOOK_S = 60.0
"""Between looks for buckets that are old enough: the length of the second step."""
WORK_S = 0.2
"""Of each turn of the evaluator: no bucket waits longer for its verdicts. What is left is done in the next turn."""


class Aging:
    """Used by the evaluator's thread while it holds the lease.

    Args:
        now_s: the monotonic clock.
    """

    def __init__(self, store: Store, now_s: Callable[[], float] = time.monotonic) -> None:
        self._store, self._now_s = store, now_s
        self._looked_s = float("-inf")
        self._decided_ms = -1
        self._until_ms = -1
        """The last bucket decided at the look before: counters read what is newer bucket by bucket, also where event
        time goes on by hours in a minute, through a backlog."""
        self._waiting: list[Partition] = []

    def turn(self, partitions: tuple[Partition, ...], decided_ms: int) -> None:
        """Go on with what is to be rolled up, for `WORK_S` at most; StoreError where Redis does not answer."""
        now_s = self._now_s()
        if now_s - self._looked_s >= LOOK_S and not self._waiting:
            self._looked_s, self._until_ms, self._decided_ms = now_s, self._decided_ms, decided_ms
            self._waiting = list(partitions) if self._until_ms >= 0 else []
        end_s = time.monotonic() + WORK_S
        while self._waiting and (left_s := end_s - time.monotonic()) > 0:
            if self._store.rollup.run(self._waiting[-1], self._decided_ms, self._until_ms, left_s):
                self._waiting.pop()
