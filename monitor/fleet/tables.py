"""NumPy tables with one row per stream: one array for the whole fleet instead of thousands of small ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.integer[Any])
Rows = NDArray[np.intp]
"""(K,) row numbers."""


class StreamRows:
    """Gives every stream a row of its own, in the order in which streams appear."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, stream: str) -> bool:
        return stream in self._row

    @property
    def names(self) -> list[str]:
        """The streams, by row."""
        return list(self._row)

    def of(self, streams: Iterable[str]) -> Rows:
        """(K,) rows of these streams; a new stream gets the next row."""
        return np.array([self._row.setdefault(stream, len(self._row)) for stream in streams], dtype=np.intp)


def added(table: NDArray[Number], rows: Rows, counts: NDArray[np.integer[Any]]) -> NDArray[Number]:
    """The (N, ...) table with (K, ...) counts added to K different rows; it grows where it has too few."""
    table = grown(table, max(rows, default=-1) + 1)
    table[rows] += counts
    return table


def grown(table: NDArray[Number], rows: int) -> NDArray[Number]:
    """The (N, ...) table with at least `rows` rows; the added rows are zero."""
    missing = rows - len(table)
    return np.pad(table, [(0, missing)] + [(0, 0)] * (table.ndim - 1)) if missing > 0 else table
