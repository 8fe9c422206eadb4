"""The rows of many streams in memory: one array that is advanced in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from monitor.core.buckets import Layout
from monitor.core.table import Table
from monitor.core.types import Verdict
from monitor.rules.sequential.detector import Gains, gains, move, told
from monitor.rules.sequential.plan import Sequential, plan_of
from monitor.rules.sequential.rows import State, initial, pack, unpack


class RowTable:
    """Rows of one rule under one calibration, by stream; implements `rules.rule.Rows`.

    Beside each row lie the logarithms of its bets' likelihood ratios: they change only when its reference is tightened,
    and computing them costs more than all the rest. 12 + 7 KB a stream with 22 signals.
    """

    def __init__(self, rule: Sequential, layout: Layout) -> None:
        self._rule, self._layout = rule, layout
        self._place: dict[str, int] = {}
        self._state: State = initial(rule, layout, 0)
        self._gains: Gains = np.zeros((0, plan_of(rule, layout).bets), dtype=np.float32)

    def get(self, stream: str) -> bytes | None:
        """As `Rows`."""
        row = self._place.get(stream)
        return None if row is None else pack(self._state[row : row + 1])[0]

    def put(self, packed: Mapping[str, bytes]) -> None:
        """As `Rows`; see `unpack`."""
        if packed:
            rows = self._rows_of(list(packed))
            self._state[rows] = unpack(self._rule, self._layout, list(packed.values()))
            self._gains[rows] = gains(self._rule, plan_of(self._rule, self._layout), self._state[rows])

    def drop(self, streams: Iterable[str]) -> None:
        """As `Rows`."""
        gone = set(streams)
        kept = [(stream, row) for stream, row in self._place.items() if stream not in gone]
        rows = [row for _, row in kept]
        self._state, self._gains = self._state[rows], self._gains[rows]
        self._place = {stream: row for row, (stream, _) in enumerate(kept)}

    def advance(self, rule: Sequential, bucket_ms: int, counts: Table, asked: Set[str]) -> dict[str, Verdict]:
        """Advance the streams of a closed bucket.

        Args:
            rule: as at the beginning, but for what rows do not depend on (the length of a bucket).
            counts: as `detector.advance`.
            asked: streams whose verdict is wanted although they do not fire.

        Returns:
            The verdicts of the streams that fire, that have just cleared, and of those asked for; each has counts.
        """
        rows, used = self._rows_of(counts.streams), len(self._place)
        vectors, present = counts.counts, np.zeros(used, dtype=bool)
        if not np.array_equal(rows, np.arange(used)):
            vectors = np.zeros((used, self._layout.size), dtype=np.uint32)
            vectors[rows] = counts.counts
        present[rows] = True
        state = self._state[:used]
        moved = move(rule, self._layout, state, bucket_ms, vectors, self._gains[:used])
        wanted = present & (state["firing"] | moved.fired)
        wanted[[self._place[stream] for stream in asked if stream in counts]] = True
        found = np.flatnonzero(wanted[rows])
        verdicts = told(rule, self._layout, state, moved, rows[found])
        return dict(zip((counts.streams[i] for i in found.tolist()), verdicts, strict=True))

    def _rows_of(self, streams: Sequence[str]) -> NDArray[np.intp]:
        """(K,) rows of these streams; new ones begin with `initial`."""
        place, before = self._place, len(self._place)
        for stream in streams:
            place.setdefault(stream, len(place))
        if len(place) > len(self._state):
            more = initial(self._rule, self._layout, len(place) + len(place) // 4 - len(self._state))
            plan = plan_of(self._rule, self._layout)
            alike = np.broadcast_to(gains(self._rule, plan, more[:1]), (len(more), plan.bets))
            self._state = np.concatenate([self._state[:before], more])
            self._gains = np.concatenate([self._gains[:before], alike])
        return np.array([place[stream] for stream in streams], dtype=np.intp)
