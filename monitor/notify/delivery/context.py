"""What the workers of one dispatcher share."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from monitor.core.silences import Silence, read_all, silenced
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.protocol import Outcome, Retry
from monitor.notify.self_alerts import delivery_alert_end
from monitor.store import Shard, Store
from monitor.telemetry.clock import SteadyClock, wall_ms
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

STANDARD_WEBHOOKS_S = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Wait before each try, as the Standard Webhooks specification recommends: ten tries in a little over three days."""

Observe = Callable[[str, str, float], None]
"""Called with (receiver, outcome, seconds) after every try and for every silenced document."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often the dispatcher looks and how patient it is; the defaults are for production."""

    delays_s: tuple[float, ...] = STANDARD_WEBHOOKS_S
    """Wait before each try, the first included."""
    jitter: float = 0.2
    """Each wait grows by up to this share, so that what failed together is not tried again together."""
    poll_s: float = 1.0
    """Between two looks at the outbox."""
    revisit_s: float = 10.0
    """Between two looks at the alerts that fire while a silence hides them."""

    def next_try_ms(self, now_ms: int, failed: int, after_s: float | None = None) -> int | None:
        """When to try again after `failed` tries; None after the last.

        `after_s` is what the receiver asked for. It lengthens the wait and never shortens it: a receiver that always
        says "in one second" would use up its tries in ten.
        """
        if failed >= len(self.delays_s):
            return None
        wait_s = self.delays_s[failed] * (1 + self.jitter * random.random())
        return now_ms + round(1000 * max(wait_s, after_s or 0.0))


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """Store, clocks and schedule of one dispatcher, and whether its workers may go on.

    Args:
        holds_lease: asked before every step; without the lease another replica may be delivering.
        now_ms: the wall clock, for silences and documents.
        steady_ms: for waits, which a clock that is set back must not lengthen. Waits are kept in Redis and go on in
            other processes, so it begins at the time of Redis.
        observe: outcomes are delivered, retried, refused, buried, silenced, resent and acknowledged.
        shard: whose outbox is delivered; None: the first one's, where there is one.
    """

    store: Store
    monitor: str
    holds_lease: Callable[[], bool] = lambda: True
    now_ms: Callable[[], int] = wall_ms
    timing: Timing = Timing()
    observe: Observe = lambda *_: None
    steady_ms: Callable[[], int] = field(default_factory=lambda: SteadyClock(wall_ms))
    stopped: threading.Event = field(default_factory=threading.Event)
    shard: Shard | None = None
    _unreadable: set[str] = field(default_factory=set)

    def of_shard(self) -> Shard:
        """Whose outbox is delivered."""
        return self.shard or self.store.first

    def over(self) -> bool:
        """Whether the workers must not begin anything more."""
        return self.stopped.is_set() or not self.holds_lease()

    def attempt(self, request: Callable[[], Outcome]) -> tuple[Outcome | None, float]:
        """(outcome, seconds) of one request to a receiver; the outcome is None where the lease is lost: nothing is sent
        then."""
        started = time.monotonic()
        outcome: Outcome | None
        try:
            failpoint("before_send")
            # as late as can be: this thread may have stood still since its round began
            outcome = None if self.over() else request()
        except Exception as error:
            # A bug in one receiver's code must not end its deliveries. Reported by place, without text and variables:
            # those could hold its secrets.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            outcome = Retry(f"{type(error).__name__} in {frame.name}, line {frame.lineno}")
        return outcome, time.monotonic() - started

    def end_delivery_alert(self, receiver: str, opened: str) -> None:
        """Resolve the alert about a receiver that did not get its alerts; `opened` is its firing document."""
        self.store.outbox.end_failing(receiver, opened, delivery_alert_end(opened, receiver, self.now_ms()))

    def silences(self) -> list[Silence]:
        """All stored silences that can be read; each unreadable one is logged once."""
        found, unreadable = read_all(self.store.silences.all())
        for silence_id in unreadable.keys() - self._unreadable:
            self._unreadable.add(silence_id)
            log.warning("notify.silence_unreadable", id=silence_id, error=unreadable[silence_id])
        return found

    def hides(self, notice: Notice, silences: Sequence[Silence]) -> bool:
        """Whether one of the silences hides the alert now."""
        return silenced({"type": notice.type, "data": notice.data}, silences, self.now_ms()) is not None
