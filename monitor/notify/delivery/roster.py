"""For which receivers the outbox is kept: those of the configuration, and for a while those that were in one."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.self_alerts import RECEIVER, SelfAlerts

log = structlog.get_logger(__name__)

FORGET_AFTER_S = 86_400.0
"""A process with an older configuration may hold the lease for a while (a roll-out, a replica that was left behind): it
must not destroy what waits for a receiver that it does not know. A day is longer than such a time."""
LOOK_S = 60.0


class Roster:
    """Keeps the outbox for the configured receivers, and gives up those that no configuration names any more.

    Only time during which a holder of the lease lacked the receiver counts; a holder that has it starts the count
    again.

    Args:
        names: of the receivers in this process' configuration.
    """

    def __init__(self, context: DeliveryContext, names: Iterable[str]) -> None:
        self._context = context
        self._names = frozenset(names)
        shard = context.of_shard()
        self._outbox, self._own = shard.outbox, context.store.outbox
        # each shard is delivered by another process, which may know other receivers
        self._place = f" (shard {shard.number})" if shard.number else ""
        self._alerts = SelfAlerts(context.store, context.monitor, True, context.now_ms)
        self._looked_ms: int | None = None
        self._lock = threading.Lock()

    def look(self) -> None:
        """Do what is due; every worker calls it before it delivers, and none goes on before the first look is done."""
        with self._lock:
            now_ms = self._context.steady_ms()
            passed_s = 0.0 if self._looked_ms is None else (now_ms - self._looked_ms) / 1000
            if self._context.over() or (self._looked_ms is not None and passed_s < LOOK_S):
                return
            for name in self._outbox.keep_receivers(self._names):
                log.info("notify.receiver_added", receiver=name)
            self._alerts.end(map(self._subject, self._names), RECEIVER, why="it is configured")
            for name, document in self._own.failing().items():
                if name not in self._names:
                    self._context.end_delivery_alert(name, document)
            for name in sorted(self._outbox.receivers() - self._names):
                self._look_at_absent(name, passed_s)
            self._looked_ms = now_ms

    def _look_at_absent(self, name: str, passed_s: float) -> None:
        if self._outbox.add_absence(name, passed_s) >= FORGET_AFTER_S:
            buried = self._outbox.bury_all(name, "the receiver is in no configuration any more")
            for _ in range(buried):
                self._context.observe(name, "buried", 0.0)
            log.warning("notify.receiver_forgotten", receiver=name, given_up=buried)
            # forgotten last: after a crash before that the next holder goes on here, and the alert does not stay open
            given_up = f"{buried} documents for it" if buried else "the documents for it"
            self._alerts.end([self._subject(name)], RECEIVER, why=f"it was forgotten; {given_up} were given up")
            self._outbox.forget_receiver(name)
        elif not self._alerts.is_open(RECEIVER, self._subject(name)) and (
            waiting := self._outbox.backlog(name).entries
        ):
            hours = FORGET_AFTER_S / 3600
            self._alerts.raise_alert(
                RECEIVER,
                self._subject(name),
                f"receiver {name} is not in the configuration, and alerts wait for it ({waiting} now): they are given "
                f"up unless it is configured again within {hours:.0f} hours",
            )

    def _subject(self, name: str) -> str:
        return f"{name}{self._place}"
