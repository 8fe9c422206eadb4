"""The row stored per stream: made, packed, and read again, also as version 1 wrote it.

The types of a row are those it is stored in, so it does not matter between which buckets it was stored; in memory they
are aligned, which is twice as fast. R_j and E_l are kept in float32: with its hundred bets per signal a row would be
nearly twice the size in float64. The rounding of a bucket (some 2e-7 of the number, with that of the exponential)
could, if it always went one way, change R by 1.5 % over a week of 10 s buckets; the bound has more slack than that.
The reference bounds decide what is bet and stay in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import LEVELS, Layout
from monitor.rules.sequential.plan import BETS, DOWN, UP, Plan, Sequential, plan_of

State = NDArray[np.void]
"""(K,) rows; make them with `initial` or `unpack`."""

VERSION = 2

CLEAR_SHARE = 0.01
"""No drift of a smaller share is told from none: an alert clears at this share even where half of its own is less."""

SLOTS = len(LEVELS)
"""Of the end of a drift: one per cut that its signal may have."""

MOST = 3e38
"""R_j beyond it is kept as this: it alarmed long before, and only waits for `min_images`."""


@lru_cache(maxsize=64)
def row_dtype(cuts: int, falling: int, align: bool = False) -> np.dtype[np.void]:
    """One stream's row: 518 bytes for one learned signal with eight cuts; aligned as it lies in memory."""
    return np.dtype(
        [
            ("version", "<u2"),
            ("cause", "<u2"),  # cut * BETS + bet, of the last alarm; downward bets come after the upward ones
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
            ("up", "<f4", (cuts, len(UP))),  # R
            ("down", "<f4", (falling, len(DOWN))),  # R
            ("left", "<f4", (SLOTS,)),  # per cut of the cause's signal, the share below which it ends; 0: not judged by
            ("ended", "<f4", (SLOTS,)),  # E: evidence that the share is smaller
        ],
        align=align,
    )


def bets_of(state: State) -> NDArray[np.float32]:
    """(K, bets) `up` and `down` of aligned rows as one array, the upward bets first; a view."""
    bets: NDArray[np.float32] = state.view(_bets_dtype(state.dtype))["bets"]
    return bets


@lru_cache(maxsize=64)
def _bets_dtype(row: np.dtype[np.void]) -> np.dtype[np.void]:
    count, offset = (row["up"].itemsize + row["down"].itemsize) // 4, (row.fields or {"up": (row, 0)})["up"][1]
    return np.dtype({"names": ["bets"], "formats": [("<f4", (count,))], "offsets": [offset], "itemsize": row.itemsize})


@lru_cache(maxsize=64)
def _row_dtype_1(cuts: int) -> np.dtype[np.void]:
    """As version 1 wrote it: logarithms, downward bets for every cut, and the end judged by the cut of the cause."""
    names = row_dtype(cuts, 0)
    fields = [(name, names[name]) for name in names.names or () if name not in ("up", "down", "left", "ended")]
    return np.dtype([*fields, ("lr", "<f4", (cuts, BETS)), ("clear_lr", "<f4", (4,))])


def initial(rule: Sequential, layout: Layout, streams: int = 1) -> State:
    """(K,) rows of new streams."""
    plan = plan_of(rule, layout)
    state = np.zeros(streams, dtype=row_dtype(len(plan.cuts), len(plan.falling), align=True))
    state["version"] = VERSION
    state["digest"] = plan.digest
    state["bucket_ms"] = np.iinfo(np.int64).min
    state["lower"], state["upper"] = plan.start
    return state


def pack(state: State) -> list[bytes]:
    """One row of bytes per stream (little-endian, fixed length)."""
    stored = row_dtype(state.dtype["lower"].shape[0], state.dtype["down"].shape[0])
    packed, size = state.astype(stored).tobytes(), stored.itemsize
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def unpack(rule: Sequential, layout: Layout, rows: Sequence[bytes | None]) -> State:
    """Inverse of `pack`. A stream without a row starts with `initial`, and so does one whose row was written by a later
    version, for other signals or for another calibration. Rows of version 1 go on: what fires keeps firing.
    """
    plan, first = plan_of(rule, layout), initial(rule, layout)
    (blank,), of_1 = pack(first), _row_dtype_1(len(plan.cuts))
    known = [row if row is not None and len(row) == len(blank) else blank for row in rows]
    stored = row_dtype(len(plan.cuts), len(plan.falling))
    state: State = np.zeros(len(known), dtype=first.dtype)  # not by `astype`: that leaves chance between the fields
    state[...] = np.frombuffer(b"".join(known), dtype=stored)
    state[(state["version"] != VERSION) | (state["digest"] != plan.digest)] = first
    older = [i for i, row in enumerate(rows) if row is not None and len(row) == of_1.itemsize != len(blank)]
    if older:
        before = np.frombuffer(b"".join(rows[i] or b"" for i in older), dtype=of_1)
        same = (before["version"] == 1) & (before["digest"] == plan.digest)
        state[np.array(older)[same]] = _from_version_1(plan, before[same], first)
    return state


def _from_version_1(plan: Plan, before: NDArray[np.void], first: State) -> State:
    state = np.repeat(first, len(before))
    for name in set(before.dtype.names or ()) - {"version", "lr", "clear_lr"}:
        state[name] = before[name]
    r = np.exp(np.minimum(before["lr"].astype(np.float64), np.log(MOST)))
    state["up"], state["down"] = r[..., : len(UP)], r[:, plan.falling, len(UP) :]
    firing = np.flatnonzero(state["firing"])
    cut = state["cause"][firing] // BETS
    state["left"][firing, cut - plan.first[cut]] = np.maximum(CLEAR_SHARE, state["alarm_share"][firing] / 2)
    return state
