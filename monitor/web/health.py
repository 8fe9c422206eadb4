"""How the monitor itself fares, for the health page and the API."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from monitor.core.alert_document import rfc3339
from monitor.core.types import Cursor, Partition
from monitor.fleet.overview import Overview
from monitor.store import Store


@dataclass(frozen=True)
class Undelivered:
    """An alert that a receiver never got."""

    receiver: str
    alert: str
    reason: str


@dataclass(frozen=True)
class Health:
    """One look."""

    unready: str
    """What keeps this process from its work; empty when it is ready."""
    redis_ms: float
    """Round trip."""
    high_ms: int
    watermark_ms: int | None
    decided_ms: int | None
    """Start of the last bucket that was judged."""
    cursors: Sequence[tuple[Partition, Cursor | None]]
    failing: Sequence[str]
    """Receivers that do not get their alerts."""
    undelivered: Sequence[Undelivered]
    outbox_dropped: int
    over_limit: int
    behind: int
    """Sealed buckets that the pages have still to read."""
    version: str

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "ready": not self.unready,
            "reason": self.unready,
            "version": self.version,
            "redis_ms": round(self.redis_ms, 3),
            "newest_event": rfc3339(self.high_ms) if self.high_ms else None,
            "watermark": None if self.watermark_ms is None else rfc3339(self.watermark_ms),
            "decided_bucket": None if self.decided_ms is None else rfc3339(self.decided_ms),
            "partitions": [_cursor_json(partition, cursor) for partition, cursor in self.cursors],
            "failing_receivers": list(self.failing),
            "undelivered": [
                {"receiver": dead.receiver, "alert": dead.alert, "reason": dead.reason} for dead in self.undelivered
            ],
            "outbox_dropped": self.outbox_dropped,
            "images_over_stream_limit": self.over_limit,
        }


def look(store: Store, overview: Overview, unready: str) -> Health:
    """Look at everything.

    Raises:
        StoreError: Redis does not answer.
    """
    started_s = time.perf_counter()
    store.ping()
    redis_ms = 1000 * (time.perf_counter() - started_s)
    snapshot, state = overview.snapshot(), store.evaluation.state()
    return Health(
        unready=unready,
        redis_ms=redis_ms,
        high_ms=snapshot.high_ms,
        watermark_ms=snapshot.watermark_ms,
        decided_ms=state.bucket_ms,
        cursors=sorted(snapshot.cursors.items()),
        failing=sorted(store.outbox.failing()),
        undelivered=[
            Undelivered(dead.receiver, _name(dead.document), dead.reason) for dead in store.outbox.dead_alerts()
        ],
        outbox_dropped=state.outbox_dropped,
        over_limit=store.counts.streams_over_limit(snapshot.cursors),
        behind=overview.behind,
        version=version("layerwatch"),
    )


def _name(document: str) -> str:
    try:
        return str(json.loads(document)["id"])
    except (ValueError, KeyError, TypeError):
        return "?"


def _cursor_json(partition: Partition, cursor: Cursor | None) -> dict[str, Any]:
    return {
        "partition": str(partition),
        "next_offset": cursor.next_offset if cursor else None,
        "newest_event": rfc3339(cursor.high_ms) if cursor and cursor.high_ms else None,
        "idle": cursor.idle if cursor else False,
    }
