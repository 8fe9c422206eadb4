"""The firing alerts of one receiver: those to send again, and those that a silence has withheld."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from monitor.core.types import AlertPhase
from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.receivers.notice import FIRING, Notice
from monitor.notify.receivers.protocol import (
    RESENT_TOGETHER,
    Acknowledging,
    Delivered,
    Outcome,
    Receiver,
    Resending,
)

log = structlog.get_logger(__name__)

# What is stored of a firing alert is one of these words, a line feed, and the document where it is needed again.
SENT = "told"
WITHHELD = "muted"
ACKNOWLEDGED = "acknowledged"

RETRY_WITHHELD_MS = 60_000
"""After a failed try to send what was withheld; it follows no schedule but is tried while the alert fires."""


class StillFiring:
    """Looks after alerts between the documents of their beginning and their end.

    A withheld alert is sent when the silence ends while it still fires. One that was sent and is silenced afterwards is
    acknowledged where the receiver keeps calling people.
    """

    def __init__(self, receiver: Receiver, context: DeliveryContext) -> None:
        self._receiver = receiver
        self._name = receiver.name
        self._context = context
        self._outbox = context.store.outbox
        self._next_visit_ms = 0
        self._send_withheld_from_ms = 0

    def text(self, state: str, notice: Notice) -> str:
        """What to store of an alert in that state; empty for a notice that does not begin one."""
        if notice.type != FIRING:
            return ""
        needed_again = state != SENT or isinstance(self._receiver, Resending | Acknowledging)
        return f"{state}\n{notice.document if needed_again else ''}"

    def state(self, alert_id: str) -> str:
        """SENT, WITHHELD, ACKNOWLEDGED, or empty for an alert that is not stored."""
        return self._outbox.held(self._name).get(alert_id, "").partition("\n")[0]

    def visit(self) -> bool:
        """Send what is due again and what is no longer silenced; returns whether a withheld alert was delivered.

        Raises:
            StoreError: Redis is away.
        """
        now_ms = self._context.now_ms()
        if now_ms < self._next_visit_ms or self._context.over():
            return False
        interval_s = (
            self._receiver.resend_s if isinstance(self._receiver, Resending) else self._context.timing.revisit_s
        )
        self._next_visit_ms = now_ms + round(1000 * interval_s)
        # in this order: an alert and its document are written together, so what is held and does not fire now is over
        held = self._outbox.held(self._name)
        if not held:
            return False
        firing, silences = self._firing(), self._context.silences()
        again, late = [], []
        for alert_id, text in held.items():
            state, _, document = text.partition("\n")
            # the document of its end is usually in the outbox; where nothing is, the outbox limit has cut it off
            if alert_id not in firing and self._outbox.backlog(self._name).entries == 0:
                self._outbox.drop_held(self._name, alert_id)
            if alert_id not in firing or not document:
                continue
            notice = Notice.parse(document)
            if self._context.hides(notice, silences):
                if state == SENT:
                    self._acknowledge(notice)
            elif state == WITHHELD:
                late.append(notice)
            elif state == ACKNOWLEDGED:  # the next silence acknowledges it again
                self._hold(SENT, notice)
            else:
                again.append(notice)
        self._resend(again)
        delivered = [self._send_withheld(notice) for notice in late]
        return any(delivered)

    def _firing(self) -> set[str]:
        alerts = self._context.store.evaluation.alerts().values()
        delivery = [Notice.parse(document).alert_id for document in self._outbox.failing().values()]
        return {alert.id for alert in alerts if alert.phase is AlertPhase.FIRING} | set(delivery)

    def _hold(self, state: str, notice: Notice) -> None:
        self._outbox.hold(self._name, notice.alert_id, self.text(state, notice))

    def _resend(self, notices: list[Notice]) -> None:
        receiver = self._receiver
        if not isinstance(receiver, Resending):
            return
        for i in range(0, len(notices), RESENT_TOGETHER):
            part = notices[i : i + RESENT_TOGETHER]
            self._try(partial(receiver.resend, part), "resent", "notify.not_resent", alerts=len(part))

    def _acknowledge(self, notice: Notice) -> None:
        receiver = self._receiver
        if isinstance(receiver, Acknowledging) and self._try(
            lambda: receiver.acknowledge(notice), "acknowledged", "notify.not_acknowledged", alerts=1
        ):
            self._hold(ACKNOWLEDGED, notice)

    def _send_withheld(self, notice: Notice) -> bool:
        now_ms = self._context.now_ms()
        if now_ms < self._send_withheld_from_ms:
            return False
        delivered = self._try(lambda: self._receiver.send(notice), "delivered", "notify.failed", tries=1)
        if delivered:
            self._hold(SENT, notice)
        else:
            self._send_withheld_from_ms = now_ms + RETRY_WITHHELD_MS
        return delivered

    def _try(self, action: Callable[[], Outcome], done: str, failed_event: str, **facts: int) -> bool:
        if self._context.over():
            return False
        started = time.monotonic()
        outcome = action()
        took_s = time.monotonic() - started
        if isinstance(outcome, Delivered):
            self._context.observe(self._name, done, took_s)
            return True
        self._context.observe(self._name, "retried", took_s)
        log.warning(failed_event, receiver=self._name, reason=outcome.reason, **facts)
        return False
