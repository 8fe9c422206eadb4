"""What the consumer last did: read by the watchdog and the readiness page, from other threads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from monitor.store import StoreError
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)


class ConsumerHealth:
    """Written by the consumer alone; times are of the monotonic clock."""

    def __init__(self) -> None:
        self.polled_s = time.monotonic()
        """When the source was last polled, or work in flight was being finished without polling."""
        self.moved_s = time.monotonic()
        """When work was last applied, or there was none, or readiness said what it waits for."""
        self.joined = False
        self.redis_ok = True

    def applied(self) -> None:
        """Redis has answered an apply."""
        metrics.LAST_APPLY.set_to_current_time()
        self.redis_ok = True
        self.moved_s = time.monotonic()

    def redis_failed(self, during: str, error: StoreError) -> None:
        """Redis does not answer; whatever was to be written is tried again."""
        metrics.REDIS_ERRORS.inc()
        self.moved_s = time.monotonic()
        if self.redis_ok:
            log.warning("redis.away", during=during, error=str(error))
        self.redis_ok = False

    def why_unready(self, reasons: Sequence[str]) -> str:
        """Why the consumer does not read and apply; empty where it does. `reasons`: of sinks and partitions."""
        if not self.joined:
            return "not joined to the source yet"
        if not self.redis_ok:
            return "Redis does not answer"
        return reasons[0] if reasons else ""
