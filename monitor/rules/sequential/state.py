"""What the sequential rule remembers of each stream: one packed row whose types are those it is stored in.

So it makes no difference between which buckets a row was stored. lr_j = ln R_j is kept in float32: every row travels to
Redis and back with every bucket, and with its 104 bets per signal it would be near twice the size in float64. The
rounding (6e-8 of a number near 15) could, if it always went one way, change R by 6 % over a week of 10 s buckets; the
bound has more slack than that. The reference bounds decide what is bet and stay in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import Layout
from monitor.rules.sequential.rule import BETS, CLEAR_BETS, Sequential, plan_of

State = NDArray[np.void]
"""(K,) rows; make them with `initial` or `unpack`."""

VERSION = 1


@lru_cache(maxsize=64)
def row_dtype(cuts: int) -> np.dtype[np.void]:
    """One stream's row: 598 bytes for one signal with eight cuts."""
    return np.dtype(
        [
            ("version", "<u2"),
            ("cause", "<u2"),  # cut * bets + bet, of the last alarm
            ("epoch", "u1"),  # tightenings done
            ("firing", "?"),
            ("digest", "<u8"),
            ("bucket_ms", "<i8"),  # last bucket advanced
            ("images", "<i8"),  # M: of the clean past
            ("passed", "<i8", (cuts,)),  # C
            ("lower", "<f8", (cuts,)),
            ("upper", "<f8", (cuts,)),
            ("since", "<i8"),  # images since the last reset or alarm
            ("since_passed", "<i8"),  # of these, beyond the cut of the cause; counted while firing
            ("alarm_share", "<f4"),  # estimated share of drifted images at the alarm
            ("lr", "<f4", (cuts, BETS)),
            ("clear_lr", "<f4", (len(CLEAR_BETS),)),
        ]
    )


def initial(rule: Sequential, layout: Layout, streams: int = 1) -> State:
    """(K,) rows of streams that have not been seen yet."""
    plan = plan_of(rule, layout)
    state = np.zeros(streams, dtype=row_dtype(len(plan.cuts)))
    state["version"] = VERSION
    state["digest"] = plan.digest
    state["bucket_ms"] = np.iinfo(np.int64).min
    state["lower"], state["upper"] = plan.start
    state["lr"] = -np.inf
    state["clear_lr"] = -np.inf
    return state


def pack(state: State) -> list[bytes]:
    """One string of bytes a stream (little-endian, fixed length)."""
    packed, size = state.tobytes(), state.dtype.itemsize
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def unpack(rule: Sequential, layout: Layout, rows: Sequence[bytes | None]) -> State:
    """Inverse of `pack`. A stream without a row starts with `initial`, and so does one whose row was written by another
    version, for other signals or for another calibration: what it holds means nothing here.
    """
    plan, first = plan_of(rule, layout), initial(rule, layout)
    blank = first.tobytes()
    known = [row if row is not None and len(row) == len(blank) else blank for row in rows]
    state: State = np.frombuffer(b"".join(known), dtype=first.dtype).copy()
    state[(state["version"] != VERSION) | (state["digest"] != plan.digest)] = first
    return state
