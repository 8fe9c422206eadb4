"""How the images of an archive differ from the profile's: their counts in buckets, and what the rules say of these.

Counts add up in any order, so the shards are read one by one and nothing is sorted. The buckets then are judged as in
`monitor.cli.judged`. The rules `silence` and `frozen` are left out: an archive has no clock, no order within a bucket.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from monitor.cli.archive.results import Results
from monitor.cli.archive.tables import P_VALUE
from monitor.core.aggregate import unusual_p
from monitor.core.buckets import REJECTED, Layout, empty, fill_groups, sum_vectors
from monitor.core.types import Vector

WORST = 12
"""Images of each stream that the report names."""

Progress = Callable[[float], None]


@dataclass
class Counted:
    """What an archive holds.

    buckets: {(start ms, stream): counts}. reasons: {(stream, code): images that could not be used}. worst: {stream:
    (minus the p-value of `unusual_p`, id, source) of the most unusual images}.
    """

    layout: Layout
    buckets: dict[tuple[int, str], Vector] = field(default_factory=dict)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: dict[str, list[tuple[float, str, str]]] = field(default_factory=lambda: defaultdict(list))

    def by_step(self, step_ms: int) -> dict[str, dict[int, Vector]]:
        """{stream: {start of the step: counts}}, in order of time."""
        found: dict[str, dict[int, list[Vector]]] = defaultdict(lambda: defaultdict(list))
        for (start, stream), vector in sorted(self.buckets.items()):
            found[stream][start // step_ms * step_ms].append(vector)
        return {stream: {at: sum_vectors(some) for at, some in steps.items()} for stream, steps in found.items()}

    def add(self, table: pa.Table, bucket_ms: int) -> None:
        """Count the images of one shard."""
        starts = table["event_time"].cast(pa.int64()).to_numpy() // bucket_ms * bucket_ms
        streams = np.array(table["stream"].to_pylist(), dtype=object)
        refused = ~np.asarray(table["reason"].is_null())
        reasons = table["reason"].drop_null().to_pylist()
        for stream, reason, start in zip(streams[refused], reasons, starts[refused], strict=True):
            self.reasons[stream, reason] += 1
            self._vector(int(start), stream)[REJECTED] += 1
        used = table.filter(table["reason"].is_null())
        if not used.num_rows:
            return
        p_values = np.stack([used[signal + P_VALUE].to_numpy() for signal in self.layout.signals], axis=1)
        keys = list(zip(starts[~refused].tolist(), streams[~refused].tolist(), strict=True))
        groups = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        rows = np.array([groups[key] for key in keys])
        for key, vector in zip(groups, fill_groups(self.layout, p_values, rows, len(groups)), strict=True):
            self.buckets[key] = sum_vectors([self._vector(*key), vector])
        for name, source, (_, stream), p in zip(
            used["id"].to_pylist(), used["source"].to_pylist(), keys, p_values, strict=True
        ):
            worst = self.worst[stream]
            push = heapq.heappush if len(worst) < WORST else heapq.heappushpop
            push(worst, (-unusual_p(p, self.layout), name, source))

    def _vector(self, start_ms: int, stream: str) -> Vector:
        return self.buckets.setdefault((start_ms, stream), empty(self.layout))


def count(results: Results, layout: Layout, bucket_ms: int, progress: Progress) -> Counted:
    """The counts of all finished shards; errors as `Results.tables`."""
    columns = ["id", "source", "stream", "event_time", "reason", *(signal + P_VALUE for signal in layout.signals)]
    counted, total = Counted(layout), len(results.finished())
    for done, table in enumerate(results.tables(columns)):
        counted.add(table, bucket_ms)
        progress((done + 1) / total)
    return counted
