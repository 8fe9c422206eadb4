"""One receiver's work: what is due, in the order of each alert.

    fetch -> not due, or behind an earlier document of the same alert: wait
          -> not wanted or silenced: settle
          -> send -> 2xx: settle | retry: postpone, after the last try bury | refused: bury
    visit -> what fires and is not delivered, nor waits above: send; a minute to an hour after a failed try

The end of an alert follows its beginning: sent in spite of a silence where the beginning was sent, so that no incident
stays open for ever, and withheld where the beginning was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog

from monitor.core.silences import Silence
from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.delivery.still_firing import SENT, WITHHELD, StillFiring
from monitor.notify.receivers.notice import FIRING, RESOLVED, Notice, NoticeError
from monitor.notify.receivers.protocol import Delivered, Receiver, Refused, Retry
from monitor.notify.self_alerts import delivery_alert
from monitor.store import outbox
from monitor.store.outbox import OutboxEntry
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)


class Worker:
    """Serves one receiver; one thread calls `round` until the context is over."""

    def __init__(self, receiver: Receiver, context: DeliveryContext) -> None:
        self.receiver = receiver
        self._name = receiver.name
        self._context = context
        self._outbox = context.of_shard().outbox
        self._own = context.store.outbox  # with what the monitor says about itself, whichever shard noticed it
        self._still_firing = StillFiring(receiver, context)
        self._pause_until_ms = 0
        self._delivered: dict[str, tuple[str, str]] = {}  # entry -> (alert, what to hold): still to be settled
        self._reached = False

    def round(self) -> None:
        """Try everything that is due once.

        Raises:
            StoreError: Redis is away; a later round records what was delivered meanwhile.
        """
        self._record_success()
        now_ms = self._context.steady_ms()
        if now_ms < self._pause_until_ms:
            return
        # read before the entries: whatever fires then has its entry among them, or has had it
        firing = self._still_firing.firing_if_due()
        seen, complete = self._deliver(now_ms)
        if firing is not None and self._still_firing.visit(firing, seen, complete):
            self._reached = True

    def _deliver(self, now_ms: int) -> tuple[set[str], bool]:
        """(alerts with an entry that this round looked at, whether it looked at all entries)."""
        waiting: dict[str, int] = {}  # alert -> when its first open document is due
        seen: set[str] = set()
        entries = self._outbox.fetch(self._name, now_ms)
        silences = self._context.silences() if any(entry.document for entry in entries) else []
        for entry in entries:
            if self._context.over() or now_ms < self._pause_until_ms:
                return seen, False
            if not entry.document:
                seen.add(entry.alert_id)
                waiting.setdefault(entry.alert_id, entry.not_before_ms)
                continue
            try:
                notice = Notice.parse(entry.document)
            except NoticeError as error:
                self._bury(entry, "", Refused(str(error)), 0.0)
                continue
            seen.add(notice.alert_id)
            if notice.alert_id in waiting:
                due_ms = waiting[notice.alert_id]
                self._outbox.postpone(self._name, entry.id, entry.attempts, due_ms, notice.alert_id)
            elif (next_ms := self._handle(entry, notice, silences)) is not None:
                waiting[notice.alert_id] = next_ms
        return seen, len(entries) < outbox.FETCH_ENTRIES

    def _handle(self, entry: OutboxEntry, notice: Notice, silences: Sequence[Silence]) -> int | None:
        """Settle, send or bury; returns when to try again where the entry stays open."""
        if self._is_unwanted(notice):
            self._outbox.settle(self._name, entry.id, notice.alert_id)
            return None
        if self._is_silenced(notice, silences):
            self._outbox.settle(self._name, entry.id, notice.alert_id, self._still_firing.text(WITHHELD, notice))
            self._context.observe(self._name, "silenced", 0.0)
            log.info("notify.silenced", receiver=self._name, id=notice.id)
            return None
        outcome, took_s = self._context.attempt(partial(self.receiver.send, notice))
        match outcome:
            case None:
                return entry.not_before_ms  # the next holder of the lease goes on
            case Delivered():
                self._succeed(entry, notice, took_s)
            case Refused():
                self._bury(entry, notice.alert_id, outcome, took_s)
            case Retry():
                return self._retry(entry, notice.alert_id, outcome, took_s)
        return None

    def _is_unwanted(self, notice: Notice) -> bool:
        return self._still_firing.is_about_itself(notice) or (
            notice.type == RESOLVED and not self.receiver.send_resolved
        )

    def _is_silenced(self, notice: Notice, silences: Sequence[Silence]) -> bool:
        if notice.type == RESOLVED and (state := self._still_firing.state(notice.alert_id)):
            return state == WITHHELD
        return self._context.hides(notice, silences)

    # ---------------------------------------------------------------- outcomes

    def _succeed(self, entry: OutboxEntry, notice: Notice, took_s: float) -> None:
        alert_id = notice.alert_id if notice.type in {FIRING, RESOLVED} else ""
        self._delivered[entry.id] = (alert_id, self._still_firing.text(SENT, notice))
        self._reached = True
        self._still_firing.answers_again()
        self._context.observe(self._name, "delivered", took_s)
        log.info("notify.delivered", receiver=self._name, id=notice.id, tries=entry.attempts + 1)
        failpoint("after_send")
        # also when the context is over: the next holder of the lease need not send it again
        self._record_success()

    def _record_success(self) -> None:
        for entry_id, (alert_id, hold) in list(self._delivered.items()):
            self._outbox.settle(self._name, entry_id, alert_id, hold)
            del self._delivered[entry_id]
            failpoint("after_settle")
        if not self._reached or self._context.over():
            return
        if opened := self._own.failing().get(self._name):
            self._context.end_delivery_alert(self._name, opened)
        self._reached = False

    def _retry(self, entry: OutboxEntry, alert_id: str, outcome: Retry, took_s: float) -> int | None:
        now_ms, failed = self._context.steady_ms(), entry.attempts + 1
        next_ms = self._context.timing.next_try_ms(now_ms, failed, outcome.after_s)
        if outcome.after_s:  # the receiver asked for a pause of all documents, not of this one alone
            self._pause_until_ms = now_ms + round(1000 * outcome.after_s)
        if next_ms is None:
            self._bury(entry, alert_id, outcome, took_s)
        elif not self._context.over():
            self._outbox.postpone(self._name, entry.id, failed, next_ms, alert_id)
            self._context.observe(self._name, "retried", took_s)
            wait_s = (next_ms - now_ms) / 1000
            log.warning("notify.failed", receiver=self._name, reason=outcome.reason, tries=failed, next_try_s=wait_s)
        return next_ms

    def _bury(self, entry: OutboxEntry, alert_id: str, why: Refused | Retry, took_s: float) -> None:
        """Give the document up; while its alert fires, `StillFiring` goes on trying."""
        if self._context.over():
            return
        self._open_delivery_alert(entry, why.reason)  # before the burial: a crash in between does not lose it
        self._outbox.bury(self._name, entry, why.reason, alert_id)
        if alert_id:
            self._still_firing.failed(alert_id, why)
        outcome = "refused" if isinstance(why, Refused) else "buried"
        self._context.observe(self._name, outcome, took_s)
        log.error("notify.given_up", receiver=self._name, reason=why.reason, tries=entry.attempts + 1, outcome=outcome)

    def _open_delivery_alert(self, entry: OutboxEntry, reason: str) -> None:
        entry_ms = int(entry.id.partition("-")[0])
        now_ms, tries = self._context.now_ms(), entry.attempts + 1
        document = delivery_alert(self._context.monitor, self._name, entry_ms, now_ms, tries, reason)
        self._own.raise_failing(self._name, document)
