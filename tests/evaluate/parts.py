"""Parts of the tests of the evaluator."""

from __future__ import annotations

import time
from collections.abc import Callable

from monitor.core.settings import BucketSettings
from monitor.evaluate.closing import Closing
from monitor.notify.self_alerts import SelfAlerts
from monitor.store import Store


def closing_of(
    store: Store, seconds: int = 10, lateness_s: float = 10.0, now_s: Callable[[], float] = time.monotonic
) -> Closing:
    """As the daemon has it, with receivers."""
    buckets = BucketSettings(seconds=seconds, lateness_s=lateness_s)
    return Closing(store, buckets, SelfAlerts(store, "closing", has_receivers=True), now_s)
