"""The clocks of the machine: one that people and other systems read, one for how long things last.

Event time comes from the records, never from here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ms() -> int:
    """Milliseconds since the epoch. An operator or NTP may set it forward or back."""
    return time.time_ns() // 1_000_000


def elapsed_s() -> float:
    """Seconds since some moment; never set, and it goes on while the machine is suspended. Only differences mean
    anything."""
    return time.clock_gettime(_SINCE_BOOT)


class SteadyClock:
    """Milliseconds that begin where another clock stands and that nobody sets afterwards; safe to share."""

    def __init__(self, read_ms: Callable[[], int]) -> None:
        """`read_ms` is asked at the first call; what it raises passes, and the next call asks again."""
        self._read_ms = read_ms
        self._begin: tuple[int, float] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            if self._begin is None:
                self._begin = self._read_ms(), elapsed_s()
            begin_ms, begin_s = self._begin
            return begin_ms + round(1000 * (elapsed_s() - begin_s))
