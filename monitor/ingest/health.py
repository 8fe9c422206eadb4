"""State of the consumer for the watchdog and the readiness probe, which read it from other threads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from monitor.store import StoreError
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)


class ConsumerHealth:
    """Written by the consumer only; times are monotonic."""

    def __init__(self) -> None:
        self.polled_s = time.monotonic()
        """Last poll of the source, or last round of finishing work without polling."""
        self.moved_s = time.monotonic()
        """Last time that work was applied, that there was none, or that readiness said what it waits for."""
        self.joined = False
        self.redis_ok = True

    def applied(self) -> None:
        """Redis has answered an apply."""
        metrics.LAST_APPLY.set_to_current_time()
        self.redis_ok = True
        self.moved_s = time.monotonic()

    def redis_failed(self, during: str, error: StoreError) -> None:
        """Redis does not answer; the caller retries."""
        metrics.REDIS_ERRORS.inc()
        self.moved_s = time.monotonic()
        if self.redis_ok:
            log.warning("redis.away", during=during, error=str(error))
        self.redis_ok = False

    def why_unready(self, reasons: Sequence[str]) -> str:
        """Why the consumer does not read and apply; empty if it does. `reasons`: of sinks, stopped partitions."""
        if not self.joined:
            return "not joined to the source yet"
        if not self.redis_ok:
            return "Redis does not answer"
        return reasons[0] if reasons else ""
