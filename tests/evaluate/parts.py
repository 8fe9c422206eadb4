"""Parts of the tests of the evaluator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from monitor.core.settings import BucketSettings
from monitor.evaluate.closing import Closing
from monitor.notify.self_alerts import SelfAlerts
from monitor.store import Shard, Store
from monitor.store.checkpoints import Kept


def closing_of(
    store: Store, seconds: int = 10, lateness_s: float = 10.0, now_s: Callable[[], float] = time.monotonic
) -> Closing:
    """As the daemon has it, with receivers."""
    buckets = BucketSettings(seconds=seconds, lateness_s=lateness_s)
    return Closing(store, buckets, SelfAlerts(store, "closing", has_receivers=True), now_s)


def stored_rows(store: Store | Shard, rule: str, fingerprint: str) -> dict[str, bytes]:
    """{stream: packed row} as Redis holds them."""
    found = store.checkpoints.read((rule, fingerprint), store.checkpoints.marks()[0])
    return {stream: kept.packed for part in found for stream, kept in part.items()}


def store_rows(store: Store | Shard, rule: str, fingerprint: str, rows: Mapping[str, bytes]) -> None:
    """As an evaluator stores them after the last decided bucket."""
    state = store.evaluation.state()
    kept = {stream: Kept(state.bucket_ms or 0, packed) for stream, packed in rows.items()}
    assert store.checkpoints.write(state.version, {(rule, fingerprint): kept}, {})
