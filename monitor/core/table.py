"""The counts of many streams as one array, read as a mapping {stream: vector}. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from monitor.core.types import Vector


def as_slice(rows: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """The same rows as a slice where they follow each other: arrays are then added to in place, three times as fast."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


class Table(Mapping[str, Vector]):
    """Counts of K streams under one layout; immutable.

    Args:
        streams: (K,) names, each once.
        counts: (K, V), in their order.
    """

    def __init__(self, streams: Sequence[str], counts: NDArray[np.uint32]) -> None:
        self.streams, self.counts = streams, counts

    @classmethod
    def of(cls, vectors: Mapping[str, Vector]) -> Table:
        """The same counts; vectors of one layout."""
        if isinstance(vectors, cls):
            return vectors
        counts = np.stack(list(vectors.values())) if vectors else np.zeros((0, 0), dtype=np.uint32)
        return cls(tuple(vectors), counts)

    @classmethod
    def added(cls, tables: Sequence[Table]) -> Table:
        """One or more tables of one layout, added up by stream; the last entry, the longest run, by maximum."""
        if len(tables) == 1:
            return tables[0]
        names = [name for table in tables for name in table.streams]
        counts = np.concatenate([table.counts for table in tables])
        place = dict(zip(names, range(len(names)), strict=True))
        if len(place) == len(names):  # each stream lies in one partition, as a rule
            return cls(names, counts)
        place = {name: row for row, name in enumerate(dict.fromkeys(names))}
        rows = np.array([place[name] for name in names])
        sums = np.zeros((len(place), counts.shape[1]), dtype=np.uint32)
        np.add.at(sums, rows, counts)
        sums[:, -1] = 0
        np.maximum.at(sums[:, -1], rows, counts[:, -1])
        return cls(tuple(place), sums)

    def rows(self, streams: Iterable[str]) -> NDArray[np.intp]:
        """Positions of these streams; KeyError for one that is not here."""
        place = self._place
        return np.array([place[stream] for stream in streams], dtype=np.intp)

    def chosen(self, mask: NDArray[np.bool_]) -> Table:
        """The streams where the (K,) mask is true; the table itself where it is true everywhere."""
        if mask.all():
            return self
        kept = np.flatnonzero(mask)
        return Table([self.streams[row] for row in kept.tolist()], self.counts[kept])

    def __getitem__(self, stream: str) -> Vector:
        vector: Vector = self.counts[self._place[stream]]
        return vector

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    def __contains__(self, stream: object) -> bool:
        return stream in self._place

    @cached_property
    def _place(self) -> dict[str, int]:
        return {stream: row for row, stream in enumerate(self.streams)}
