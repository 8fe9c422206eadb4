"""What the workers of one dispatcher share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from monitor.core.silences import Silence, from_json, silenced
from monitor.notify.delivery.schedule import Timing
from monitor.notify.receivers.notice import Notice
from monitor.store import Store

log = structlog.get_logger(__name__)

Observe = Callable[[str, str, float], None]


def unobserved(receiver: str, outcome: str, seconds: float) -> None:
    """Looks away: the `Observe` of those who count nothing."""


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """The store, the clock, and whether to go on."""

    store: Store
    monitor: str
    timing: Timing
    now_ms: Callable[[], int]
    over: Callable[[], bool]
    """True once we were stopped or another replica may be delivering: nothing is begun any more."""
    observe: Observe
    _unreadable: set[str] = field(default_factory=set)

    def silences(self) -> list[Silence]:
        """All that are stored; one that cannot be read is said once and hides nothing."""
        found = []
        for silence_id, text in self.store.silences.all().items():
            try:
                found.append(from_json(text))
            except ValueError as error:
                if silence_id not in self._unreadable:
                    self._unreadable.add(silence_id)
                    log.warning("notify.silence_unreadable", id=silence_id, error=str(error))
        return found

    def hides(self, notice: Notice, stored: list[Silence]) -> bool:
        """Whether one of the silences hides it now."""
        document = {"type": notice.type, "data": notice.fields}
        return silenced(document, stored, self.now_ms()) is not None
