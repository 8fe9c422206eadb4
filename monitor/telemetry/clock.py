"""The clocks of the machine: one that people and other systems read, one for how long things last.

Event time comes from the records, never from here.
"""

from __future__ import annotations

import time

_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def wall_ms() -> int:
    """Milliseconds since the epoch. An operator or NTP may set it forward or back."""
    return time.time_ns() // 1_000_000


def elapsed_s() -> float:
    """Seconds since some moment; never set, and it goes on while the machine is suspended. Only differences mean
    anything."""
    return time.clock_gettime(_SINCE_BOOT)
