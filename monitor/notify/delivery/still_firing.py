"""The firing alerts of one receiver: those to send again, and those that it does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
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
    Refused,
    Resending,
    Retry,
)
from monitor.notify.self_alerts import DELIVERY

log = structlog.get_logger(__name__)

# What is stored of a firing alert is one of these words, a line feed, and the document where it is needed again.
SENT = "told"
WITHHELD = "muted"
ACKNOWLEDGED = "acknowledged"

WAIT_S = (60.0, 3_600.0)
"""After a failed try outside the schedule: the first wait, twice as long after each further one, and the longest."""
ALL = ""
"""Stands for every alert in `Waits`: the receiver itself does not answer."""


class Waits:
    """What is not to be tried now. In memory: another process begins with the shortest wait."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._until: dict[str, tuple[int, float]] = {}  # name -> (ms, the wait that ends then)

    def over(self, name: str) -> bool:
        """Whether it may be tried."""
        return self._now_ms() >= self._until.get(name, (0, 0.0))[0]

    def failed(self, name: str, after_s: float = 0.0) -> None:
        """Begin the next wait, of at least `after_s`; one that has not ended stays."""
        if self.over(name):
            first, longest = WAIT_S
            wait_s = min(max(first, 2 * self._until.get(name, (0, 0.0))[1]), longest)
            self._until[name] = self._now_ms() + round(1000 * max(wait_s, after_s)), wait_s

    def end(self, name: str) -> None:
        """Begin with the shortest again."""
        self._until.pop(name, None)


class StillFiring:
    """Looks after alerts between the documents of their beginning and their end.

    An alert that fires and that the receiver does not have is sent, whatever the reason: a silence that has ended, a
    document that was given up or cut off, a receiver that is new. One that was sent and is silenced afterwards is
    acknowledged where the receiver keeps calling people.
    """

    def __init__(self, receiver: Receiver, context: DeliveryContext) -> None:
        self._receiver = receiver
        self._name = receiver.name
        self._context = context
        self._shard = context.of_shard()
        self._outbox = self._shard.outbox
        self._next_visit_ms = 0
        self._waits = Waits(context.steady_ms)

    def text(self, state: str, notice: Notice) -> str:
        """What to store of an alert in that state; empty for a notice that does not begin one."""
        if notice.type != FIRING:
            return ""
        needed_again = state != SENT or isinstance(self._receiver, Resending | Acknowledging)
        return f"{state}\n{notice.document if needed_again else ''}"

    def state(self, alert_id: str) -> str:
        """SENT, WITHHELD, ACKNOWLEDGED, or empty for an alert that is not stored."""
        return self._outbox.held(self._name).get(alert_id, "").partition("\n")[0]

    def is_about_itself(self, notice: Notice) -> bool:
        """Whether it says that this very receiver does not get its alerts."""
        return notice.rule == DELIVERY and notice.stream == self._name

    def failed(self, alert_id: str, why: Refused | Retry) -> None:
        """A try has failed for good: the next one waits."""
        if isinstance(why, Refused):
            self._waits.failed(alert_id)
        else:
            self._waits.failed(ALL, why.after_s or 0.0)

    def answers_again(self) -> None:
        """The receiver has accepted something: what it missed needs to wait no longer."""
        self._waits.end(ALL)

    # ---------------------------------------------------------------- visits

    def firing_if_due(self) -> Mapping[str, str] | None:
        """Where a visit is due: what fires now and has a document, as {alert id: document}, empty for alerts of rules;
        else None."""
        now_ms = self._context.steady_ms()
        if now_ms < self._next_visit_ms or self._context.over():
            return None
        interval_s = (
            self._receiver.resend_s if isinstance(self._receiver, Resending) else self._context.timing.revisit_s
        )
        self._next_visit_ms = now_ms + round(1000 * interval_s)
        own = [*self._outbox.self_alerts().values(), *self._outbox.failing().values()]
        rules = dict.fromkeys(self._outbox.firing_alerts(), "")
        return rules | {Notice.parse(document).alert_id: document for document in own}

    def visit(self, firing: Mapping[str, str], seen: Set[str], complete: bool) -> bool:
        """Send what is due again and what the receiver does not have; returns whether any of the latter arrived.

        Args:
            firing: as `firing_if_due` gave it before the entries of this round were read.
            seen: alerts that had an entry in this round; they were looked after.
            complete: whether `seen` has every alert with an open entry.

        Raises:
            StoreError: Redis is away.
        """
        held = self._outbox.held(self._name)
        missing = firing.keys() - held.keys() - seen if complete else set()
        if not held and not missing:
            return False
        silences = self._context.silences()
        again, late = [], []
        over = self._over(held.keys() - seen - firing.keys())
        # the document of its end is usually in the outbox; where nothing is, the outbox limit has cut it off
        for alert_id in over if over and self._outbox.backlog(self._name).entries == 0 else ():
            self._outbox.drop_held(self._name, alert_id)
        for alert_id in held.keys() - seen - over:
            state, _, document = held[alert_id].partition("\n")
            if not document:
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
        own = {alert_id: document for alert_id, document in firing.items() if document and alert_id in missing}
        documents = own | self._outbox.firing_documents(sorted(missing - own.keys()))
        notices = map(Notice.parse, documents.values())
        late += [n for n in notices if not self.is_about_itself(n) and not self._context.hides(n, silences)]
        self._resend(again)
        delivered = [self._send_late(notice) for notice in late]
        return any(delivered)

    def _over(self, alert_ids: Set[str]) -> Set[str]:
        """Those of them that do not fire."""
        if not alert_ids:
            return alert_ids
        # an alert that fires since before documents were kept has none
        alerts = self._shard.evaluation.alerts().values()
        return alert_ids - {alert.id for alert in alerts if alert.phase is AlertPhase.FIRING}

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
        if isinstance(receiver, Acknowledging):
            outcome = self._try(
                lambda: receiver.acknowledge(notice), "acknowledged", "notify.not_acknowledged", alerts=1
            )
            if isinstance(outcome, Delivered):
                self._hold(ACKNOWLEDGED, notice)

    def _send_late(self, notice: Notice) -> bool:
        if not self._waits.over(ALL) or not self._waits.over(notice.alert_id):
            return False
        outcome = self._try(partial(self._receiver.send, notice), "delivered", "notify.failed", tries=1)
        if isinstance(outcome, Delivered):
            self._hold(SENT, notice)
            self._waits.end(notice.alert_id)
            self.answers_again()
            log.info("notify.delivered", receiver=self._name, id=notice.id, late=True)
            return True
        if outcome is not None:
            self.failed(notice.alert_id, outcome)
        return False

    def _try(self, request: Callable[[], Outcome], done: str, failed_event: str, **facts: int) -> Outcome | None:
        outcome, took_s = self._context.attempt(request)
        if isinstance(outcome, Delivered):
            self._context.observe(self._name, done, took_s)
        elif outcome is not None:
            self._context.observe(self._name, "retried", took_s)
            log.warning(failed_event, receiver=self._name, reason=outcome.reason, **facts)
        return outcome
