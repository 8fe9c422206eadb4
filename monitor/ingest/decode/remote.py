"""What a decoder process needs from other servers: they may be slow or away, and that is no fault of the record."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

UNAVAILABLE = "unavailable"
"""Reason code of a record that waited for such a server in vain."""


class UnavailableError(Exception):
    """A server that the record needs does not answer: the record is tried again, not refused."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block with a TimeoutError after so long. Only for the main thread of a process.

    The libraries' own time limits are for one connection or one read; an answer that comes in drops passes them all.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no whole answer in {seconds:g} s")

    before, left_s = signal.signal(signal.SIGALRM, interrupt), 0.0
    try:  # around the timer too: on a busy machine the alarm may come before the block begins
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s)  # of somebody else's timer; 0 where there was none
        signal.signal(signal.SIGALRM, before)
