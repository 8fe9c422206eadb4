"""How the images of an archive differ from the profile's: their counts in buckets, and what the rules say of these.

Counts add up in any order, so the shards are read one by one and nothing is sorted. The buckets then go through the
daemon's own store and evaluator, in a Redis of this process: an alert of the report is the document that a receiver
would have got. The rules `silence` and `frozen` are left out: an archive has no clock, and no order within a bucket.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import SecretStr

from monitor.cli.archive.results import Results
from monitor.cli.archive.tables import P_VALUE
from monitor.cli.replay import sent_documents
from monitor.config.loading import checked_rules
from monitor.config.schema import Config
from monitor.core.aggregate import unusual_p
from monitor.core.buckets import REJECTED, Layout, empty, fill_groups, sum_vectors
from monitor.core.types import Delta, Partition, Vector
from monitor.daemon import limits_of, presentation_of
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.rule import Rule
from monitor.rules.stream_health import FrozenRule
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis

PARTITION, TOKEN = Partition("archive", 0), "archive"
BUCKETS_AT_ONCE = 200
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


def judged_rules(settings: Config) -> tuple[Rule, ...]:
    """The configured rules that can judge an archive."""
    return tuple(r for r in checked_rules(settings) if not r.reads_clock and not isinstance(r, FrozenRule))


def documents_of(counted: Counted, fingerprint: str, settings: Config, progress: Progress) -> list[dict[str, Any]]:
    """The alert documents, oldest first.

    Raises:
        ChildError, StoreError: the private Redis does not start or answer.
    """
    buckets, lateness_ms = settings.buckets, settings.buckets.lateness_ms
    presentation = replace(presentation_of(settings), has_receivers=True)
    with PrivateRedis() as server:
        redis = settings.redis.model_copy(update={"mode": "single", "url": SecretStr(server.url)})
        with closing(open_store(redis, settings.monitor, limits_of(settings))) as store:
            store.catalog.put_layouts({fingerprint: counted.layout})
            store.catalog.register_partitions([PARTITION])
            store.partitions.start(PARTITION, 1, TOKEN, 0)
            closed = Closing(store, buckets, SelfAlerts(store, settings.monitor, has_receivers=False))
            evaluator = Evaluator(store, judged_rules(settings), {fingerprint: counted.layout}, closed, presentation)
            evaluator.load()
            starts = [(at, dict(some)) for at, some in _by_start(counted.buckets)]
            for done, (at, vectors) in enumerate(starts):
                # the event time that closes this bucket: all of its images are counted
                high_ms = at + buckets.length_ms + lateness_ms
                counts = {(fingerprint, at, stream): vector for stream, vector in vectors.items()}
                store.partitions.apply([Delta(PARTITION, TOKEN, done, done + 1, high_ms, counts)])
                if done % BUCKETS_AT_ONCE == BUCKETS_AT_ONCE - 1 or done + 1 == len(starts):
                    evaluator.look()
                    progress((done + 1) / len(starts))
            return [json.loads(document) for document in sent_documents(store)]


def _by_start(buckets: Mapping[tuple[int, str], Vector]) -> Iterable[tuple[int, list[tuple[str, Vector]]]]:
    for start, some in groupby(sorted(buckets), key=lambda key: key[0]):
        yield start, [(stream, buckets[start, stream]) for _, stream in some]
