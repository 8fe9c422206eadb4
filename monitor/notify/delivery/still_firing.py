"""The alerts that fire as far as one receiver knows: what it must hear again, and what a silence has hidden from it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from monitor.core.types import AlertPhase
from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.receivers.notice import parse_notice
from monitor.notify.receivers.protocol import Acknowledging, Delivered, Outcome, Receiver, Resending

log = structlog.get_logger(__name__)

TOLD = "told"
MUTED = "muted"
ACKNOWLEDGED = "acknowledged"
UNMUTE_REST_MS = 60_000
"""After a failed try to tell what was muted; there is no schedule for it, it is tried while the alert fires."""


class StillFiring:
    """What the store holds per firing alert: its state, a line feed, and the document where it is needed again.

    An alert that is muted is told when the silence ends while it still fires. One that was told and is silenced then is
    acknowledged where the receiver calls people until somebody does.
    """

    def __init__(self, receiver: Receiver, around: DeliveryContext) -> None:
        self._receiver = receiver
        self._around = around
        self._store = around.store
        self._next_visit_ms = 0
        self._unmute_from_ms = 0

    def told(self, document: str) -> str:
        """What to hold of an alert that was delivered."""
        return f"{TOLD}\n{document if isinstance(self._receiver, Resending | Acknowledging) else ''}"

    def muted(self, document: str) -> str:
        """What to hold of an alert that a silence hides."""
        return f"{MUTED}\n{document}"

    def knows(self, alert_id: str) -> str:
        """TOLD, MUTED, ACKNOWLEDGED, or empty for an alert that is not held."""
        return self._store.outbox.held(self._receiver.name).get(alert_id, "").partition("\n")[0]

    def visit(self) -> bool:
        """Where it is time: send what must be heard again and what is no longer muted. True when one of those arrived.

        Raises:
            StoreError: Redis is away.
        """
        now_ms = self._around.now_ms()
        if now_ms < self._next_visit_ms or self._around.over():
            return False
        interval_s = self._receiver.resend_s if isinstance(self._receiver, Resending) else self._around.timing.revisit_s
        self._next_visit_ms = now_ms + round(1000 * interval_s)
        # in this order: an alert and its document are written together, so what is held and does not fire now is over
        held = self._store.outbox.held(self._receiver.name)
        firing = self._firing() if held else set()
        stored = self._around.silences() if held else []
        again, late = [], {}
        for alert_id, text in held.items():
            state, _, document = text.partition("\n")
            if alert_id not in firing:
                self._forget_lost(alert_id)
            elif document and self._around.hides(parse_notice(document), stored):
                if state == TOLD:
                    self._acknowledge(alert_id, document)
            elif document and state == MUTED:
                late[alert_id] = document
            elif document and state == ACKNOWLEDGED:  # the next silence says it again
                self._store.outbox.hold(self._receiver.name, alert_id, self.told(document))
            elif document:
                again.append(document)
        self._resend(again)
        arrived = [alert_id for alert_id, document in late.items() if self._unmute(alert_id, document)]
        return bool(arrived)

    def _firing(self) -> set[str]:
        kept = self._store.evaluation.alerts().values()
        delivery = [parse_notice(document).alert_id for document in self._store.outbox.failing().values()]
        return {alert.id for alert in kept if alert.phase is AlertPhase.FIRING} | set(delivery)

    def _forget_lost(self, alert_id: str) -> None:
        """Its end is usually on the way to us; where nothing is, the outbox limit has cut it off."""
        if self._store.outbox.backlog(self._receiver.name).entries == 0:
            self._store.outbox.drop_held(self._receiver.name, alert_id)

    def _resend(self, documents: Sequence[str]) -> None:
        if not documents or not isinstance(self._receiver, Resending) or self._around.over():
            return
        started = time.monotonic()
        outcome = self._receiver.resend(documents)
        self._observe(outcome, "resent", time.monotonic() - started, len(documents))

    def _acknowledge(self, alert_id: str, document: str) -> None:
        if not isinstance(self._receiver, Acknowledging) or self._around.over():
            return
        started = time.monotonic()
        outcome = self._receiver.acknowledge(document)
        self._observe(outcome, "acknowledged", time.monotonic() - started, 1)
        if isinstance(outcome, Delivered):
            self._store.outbox.hold(self._receiver.name, alert_id, f"{ACKNOWLEDGED}\n{document}")

    def _observe(self, outcome: Outcome, done: str, took_s: float, count: int) -> None:
        name = self._receiver.name
        if isinstance(outcome, Delivered):
            self._around.observe(name, done, took_s)
        else:
            self._around.observe(name, "retried", took_s)
            log.warning(f"notify.not_{done}", receiver=name, reason=outcome.reason, alerts=count)

    def _unmute(self, alert_id: str, document: str) -> bool:
        now_ms, name = self._around.now_ms(), self._receiver.name
        if now_ms < self._unmute_from_ms or self._around.over():
            return False
        started = time.monotonic()
        outcome = self._receiver.send(document, 1)
        took_s = time.monotonic() - started
        if isinstance(outcome, Delivered):
            self._store.outbox.hold(name, alert_id, self.told(document))
            self._around.observe(name, "delivered", took_s)
            return True
        self._unmute_from_ms = now_ms + UNMUTE_REST_MS
        self._around.observe(name, "retried", took_s)
        log.warning("notify.failed", receiver=name, reason=outcome.reason, tries=1)
        return False
