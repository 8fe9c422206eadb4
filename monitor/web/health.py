"""Health of the monitor itself, for the health page and the API."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from monitor.core.alert_document import rfc3339
from monitor.core.types import Cursor, Partition
from monitor.fleet.overview import Overview
from monitor.store import Store
from monitor.web.answers import Answer, Count, Time, optional_time


@dataclass(frozen=True)
class Undelivered:
    """An alert that was never delivered to a receiver."""

    receiver: str
    alert: str
    reason: str


@dataclass(frozen=True)
class MonitorHealth:
    """State of the monitor at one moment."""

    unready: str
    """What keeps this process from its work; empty when it is ready."""
    redis_ms: float
    """Round trip."""
    high_ms: int
    watermark_ms: int | None
    decided_ms: int | None
    """Start of the last bucket that was judged."""
    cursors: Mapping[Partition, Cursor | None]
    failing: Sequence[str]
    """Receivers to which delivery fails."""
    undelivered: Sequence[Undelivered]
    outbox_dropped: int
    over_limit: int
    behind: int
    """Sealed buckets that the pages have still to read."""
    version: str


def read_health(store: Store, overview: Overview, unready: str) -> MonitorHealth:
    """Read the health of the monitor.

    Raises:
        StoreError: Redis does not answer.
    """
    started_s = time.perf_counter()
    store.ping()
    redis_ms = 1000 * (time.perf_counter() - started_s)
    state, evaluator = overview.snapshot().state, store.evaluation.state()
    return MonitorHealth(
        unready=unready,
        redis_ms=redis_ms,
        high_ms=state.high_ms,
        watermark_ms=state.watermark_ms,
        decided_ms=evaluator.bucket_ms,
        cursors=state.cursors,
        failing=sorted(store.outbox.failing()),
        undelivered=[
            Undelivered(dead.receiver, _id(dead.document), dead.reason) for dead in store.outbox.dead_alerts()
        ],
        outbox_dropped=evaluator.outbox_dropped,
        over_limit=store.counts.streams_over_limit(state.partitions),
        behind=overview.behind,
        version=version("layerwatch"),
    )


def _id(document: str) -> str:
    try:
        return str(json.loads(document)["id"])
    except (ValueError, KeyError, TypeError):
        return "?"


class PartitionJson(Answer):
    partition: str
    next_offset: int | None
    newest_event: Time | None
    idle: bool


class UndeliveredJson(Answer):
    receiver: str
    alert: str
    reason: str


class HealthJson(Answer):
    ready: bool
    reason: str
    version: str
    redis_ms: float
    newest_event: Time | None
    watermark: Time | None
    decided_bucket: Time | None
    partitions: list[PartitionJson]
    failing_receivers: list[str]
    undelivered: list[UndeliveredJson]
    outbox_dropped: Count
    images_over_stream_limit: Count

    @classmethod
    def of(cls, health: MonitorHealth) -> HealthJson:
        """The answer about the monitor itself."""
        return cls(
            ready=not health.unready,
            reason=health.unready,
            version=health.version,
            redis_ms=round(health.redis_ms, 3),
            newest_event=optional_time(health.high_ms),
            watermark=None if health.watermark_ms is None else rfc3339(health.watermark_ms),
            decided_bucket=None if health.decided_ms is None else rfc3339(health.decided_ms),
            partitions=[
                PartitionJson(
                    partition=str(partition),
                    next_offset=cursor.next_offset if cursor else None,
                    newest_event=optional_time(cursor.high_ms) if cursor else None,
                    idle=cursor.idle if cursor else False,
                )
                for partition, cursor in health.cursors.items()
            ],
            failing_receivers=list(health.failing),
            undelivered=[UndeliveredJson.model_validate(dead) for dead in health.undelivered],
            outbox_dropped=health.outbox_dropped,
            images_over_stream_limit=health.over_limit,
        )
