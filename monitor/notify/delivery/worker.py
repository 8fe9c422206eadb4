"""One receiver's work: what is due, in the order of each alert.

    fetch -> not due, or behind an earlier document of the same alert: wait
          -> not wanted or silenced: settle
          -> send -> 2xx: settle | retry: postpone, after the last try bury | refused: bury

The end of an alert follows its beginning: sent in spite of a silence where the receiver was told that it fires, so
that no incident stays open for ever, and kept from it where it was not.
"""

from __future__ import annotations

import time
import traceback

import structlog

from monitor.core.silences import Silence
from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.delivery.delivery_alert import DELIVERY_RULE, failing_document, recovered_document
from monitor.notify.delivery.still_firing import MUTED, StillFiring
from monitor.notify.receivers.notice import FIRING, RESOLVED, Notice, NoticeError, parse_notice
from monitor.notify.receivers.protocol import Delivered, Outcome, Receiver, Refused, Retry
from monitor.store.outbox import OutboxEntry
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)


class Worker:
    """Serves one receiver; one thread calls `round` until it is over."""

    def __init__(self, receiver: Receiver, around: DeliveryContext) -> None:
        self.receiver = receiver
        self._name = receiver.name
        self._around = around
        self._store = around.store
        self._still_firing = StillFiring(receiver, around)
        self._rest_until_ms = 0
        self._failing: str | None = None
        self._delivered: dict[str, tuple[str, str]] = {}  # entry -> (alert, what to hold): to be noted in the store
        self._reached = False

    def round(self) -> None:
        """Try everything that is due once.

        Raises:
            StoreError: Redis is away; what was delivered meanwhile is noted by a later round.
        """
        self._note_success()
        now_ms = self._around.now_ms()
        if now_ms < self._rest_until_ms:
            return
        self._deliver(now_ms)
        if self._still_firing.visit():
            self._reached = True

    def _deliver(self, now_ms: int) -> None:
        waiting: dict[str, int] = {}  # alert -> when its first open document is due
        entries = self._store.outbox.fetch(self._name, now_ms)
        stored = self._around.silences() if any(entry.document for entry in entries) else []
        for entry in entries:
            if self._around.over() or now_ms < self._rest_until_ms:
                return
            if not entry.document:
                waiting.setdefault(entry.alert_id, entry.not_before_ms)
                continue
            try:
                notice = parse_notice(entry.document)
            except NoticeError as error:
                self._bury(entry, "", str(error), "refused", 0.0)
                continue
            if notice.alert_id in waiting:
                due_ms = waiting[notice.alert_id]
                self._store.outbox.postpone(self._name, entry.id, entry.attempts, due_ms, notice.alert_id)
            elif (next_ms := self._handle(entry, notice, stored)) is not None:
                waiting[notice.alert_id] = next_ms

    def _handle(self, entry: OutboxEntry, notice: Notice, stored: list[Silence]) -> int | None:
        """Settle, send or bury; returns when to try again where it stays open."""
        if self._is_unwanted(notice):
            self._store.outbox.settle(self._name, entry.id, notice.alert_id)
            return None
        if self._is_silenced(notice, stored):
            hold = self._still_firing.muted(entry.document) if notice.type == FIRING else ""
            self._store.outbox.settle(self._name, entry.id, notice.alert_id, hold)
            self._around.observe(self._name, "silenced", 0.0)
            log.info("notify.silenced", receiver=self._name, id=notice.id)
            return None
        outcome, took_s = self._send(entry.document, entry.attempts + 1)
        match outcome:
            case Delivered():
                self._succeed(entry, notice, took_s)
            case Refused(reason):
                self._bury(entry, notice.alert_id, reason, "refused", took_s)
            case Retry():
                return self._retry(entry, notice.alert_id, outcome, took_s)
        return None

    def _is_unwanted(self, notice: Notice) -> bool:
        about_itself = notice.rule == DELIVERY_RULE and notice.stream == self._name
        return about_itself or (notice.type == RESOLVED and not self.receiver.send_resolved)

    def _is_silenced(self, notice: Notice, stored: list[Silence]) -> bool:
        if notice.type == RESOLVED and (known := self._still_firing.knows(notice.alert_id)):
            return known == MUTED
        return self._around.hides(notice, stored)

    def _send(self, document: str, attempt: int) -> tuple[Outcome, float]:
        started = time.monotonic()
        try:
            failpoint("before_send")
            outcome = self.receiver.send(document, attempt)
        except Exception as error:
            # A fault in one receiver's code must not end its deliveries. Said by place, without text and variables:
            # those could hold its secrets.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            outcome = Retry(f"{type(error).__name__} in {frame.name}, line {frame.lineno}")
        return outcome, time.monotonic() - started

    # ---------------------------------------------------------------- what became of it

    def _succeed(self, entry: OutboxEntry, notice: Notice, took_s: float) -> None:
        hold = self._still_firing.told(entry.document) if notice.type == FIRING else ""
        self._delivered[entry.id] = (notice.alert_id if notice.type in {FIRING, RESOLVED} else "", hold)
        self._reached = True
        self._around.observe(self._name, "delivered", took_s)
        log.info("notify.delivered", receiver=self._name, id=notice.id, tries=entry.attempts + 1)
        failpoint("after_send")
        # also when it is over: whoever delivers next need not do it again
        self._note_success()

    def _note_success(self) -> None:
        for entry_id, (alert_id, hold) in list(self._delivered.items()):
            self._store.outbox.settle(self._name, entry_id, alert_id, hold)
            del self._delivered[entry_id]
            failpoint("after_settle")
        if not self._reached or self._around.over():
            return
        if firing := self._failing_document():
            self._store.outbox.append(recovered_document(firing, self._around.now_ms()))
            self._store.outbox.set_failing(self._name, "")
            self._failing = ""
        self._reached = False

    def _retry(self, entry: OutboxEntry, alert_id: str, outcome: Retry, took_s: float) -> int | None:
        now_ms, failed = self._around.now_ms(), entry.attempts + 1
        next_ms = self._around.timing.next_try_ms(now_ms, failed, outcome.after_s)
        if outcome.after_s:  # it asked for a rest, and not from this document alone
            self._rest_until_ms = now_ms + round(1000 * outcome.after_s)
        if next_ms is None:
            self._bury(entry, alert_id, outcome.reason, "buried", took_s)
        elif not self._around.over():
            self._store.outbox.postpone(self._name, entry.id, failed, next_ms, alert_id)
            self._around.observe(self._name, "retried", took_s)
            wait_s = (next_ms - now_ms) / 1000
            log.warning("notify.failed", receiver=self._name, reason=outcome.reason, tries=failed, next_try_s=wait_s)
        return next_ms

    def _bury(self, entry: OutboxEntry, alert_id: str, reason: str, outcome: str, took_s: float) -> None:
        if self._around.over():
            return
        self._tell_failing(entry, reason)
        self._store.outbox.bury(self._name, entry, reason, alert_id)
        self._around.observe(self._name, outcome, took_s)
        log.error("notify.given_up", receiver=self._name, reason=reason, tries=entry.attempts + 1, outcome=outcome)

    def _tell_failing(self, entry: OutboxEntry, reason: str) -> None:
        """Before it is buried, so that a crash in between tells it twice, with the same id, and never not at all."""
        if self._failing_document():
            return
        entry_ms = int(entry.id.partition("-")[0])
        now_ms, tries = self._around.now_ms(), entry.attempts + 1
        document = failing_document(self._around.monitor, self._name, entry_ms, now_ms, tries, reason)
        self._store.outbox.append(document)
        self._store.outbox.set_failing(self._name, document)
        self._failing = document

    def _failing_document(self) -> str:
        if self._failing is None:
            self._failing = self._store.outbox.failing().get(self._name, "")
        return self._failing
