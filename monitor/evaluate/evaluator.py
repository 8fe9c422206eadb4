"""Closes buckets and judges them: seal, judge, decide. Runs on the replica that holds the lease.

Only the lease and the rules that read the clock depend on time. A bucket is decided by one fenced write with all that
it changes (alerts, documents for the receivers), so a crash anywhere repeats the bucket from the same sealed counts,
with the same outcome and the same ids. The rules' states follow from the counts; `rule_states.py` stores them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from monitor.core import alert_state as alerts
from monitor.core import conditions
from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.core.conditions import OVERALL
from monitor.core.event_time import bucket_of
from monitor.core.types import Alert, AlertPhase, Partition
from monitor.evaluate.aging import Aging
from monitor.evaluate.closing import Closing
from monitor.evaluate.judging import ConditionsOf, Found, held, raised_by, settling, verdicts_of
from monitor.evaluate.lease import Lease, Tenure
from monitor.evaluate.memory import Change, Decision, Memory, Sealed
from monitor.evaluate.presentation import Presentation
from monitor.rules.rule import LastSeen, Rule
from monitor.store import Kept, Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.clock import wall_ms
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

RENEW_S = 2.0
"""Between renewals of the lease while the state is read: ten thousand streams take some seconds."""
LOOK_S = 0.5
"""Between looks for buckets to close: short compared with a bucket, so that alerts are hardly delayed."""
SILENCE_LOOK_S = 5.0
SETTLE_MS = 3_600_000
"""After an outage every stream gets this time to send again before it is taken for dead."""
FORGET_LOOK_S = 600.0
"""Between looks for dead streams: short compared with the retention, and a look reads the facts of every stream."""
HEARTBEAT_GAP_S = 60.0
"""A restart within this does not restart the measurement of silence."""
KEEP_RESOLVED_MS = 7 * 86_400_000


class Evaluator:
    """Judges closed buckets while it holds the lease; `run` returns after `stop`.

    Args:
        layouts: fingerprint -> layout of the profiles loaded here; those of other replicas are read from Redis.
        on_lease: called with the tenure when the lease is won, and with None when it is lost or given up.
    """

    def __init__(
        self,
        store: Store,
        rules: tuple[Rule, ...],
        layouts: Mapping[str, Layout],
        closing: Closing,
        presentation: Presentation,
        on_lease: Callable[[Tenure | None], None] = lambda _: None,
    ) -> None:
        self._store, self._rules = store, {rule.name: rule for rule in rules}
        self._closing, self._bucket_ms = closing, closing.bucket_ms
        self._on_lease = on_lease
        self._policies = {
            rule.name: Policy(
                monitor=presentation.monitor,
                bucket_len_ms=self._bucket_ms,
                for_ms=round(rule.for_s * 1000),
                keep_firing_for_ms=round(rule.keep_firing_for_s * 1000),
            )
            for rule in rules
        }
        self._memory = Memory(store, rules, layouts, self._bucket_ms)
        self._presentation, self._aging, self._lease = presentation, Aging(store), Lease(store.evaluation)
        self._tenure: Tenure | None = None
        self._stop = threading.Event()
        self._silence_looked_s = 0.0
        self._forgot_s = 0.0
        self._renewed_s = 0.0
        self.conditions_of: ConditionsOf | None = None
        """The conditions that a stream is configured to have; None: whichever an alert names. An alert waits for calm
        images of its conditions only while they are configured."""
        self.seen_s = time.monotonic()
        """When it last looked, by the monotonic clock: for the watchdog."""

    def stop(self) -> None:
        """Make `run` release the lease and return."""
        self._stop.set()

    def run(self) -> None:
        """Look for buckets to close until `stop`; while Redis does not answer, keep trying."""
        while not self._stop.is_set():
            self.seen_s = time.monotonic()
            try:
                self._keep_lease()
                if self._tenure:
                    self.look()
            except StoreError as error:
                metrics.REDIS_ERRORS.inc()
                log.warning("evaluator.redis_away", error=str(error))
                self._lose_lease()
            self._stop.wait(LOOK_S)
        if self._tenure:
            self._lose_lease()
            try:
                self._lease.release()
            except StoreError as error:
                log.warning("evaluator.lease_kept", error=str(error))

    # ---------------------------------------------------------------- lease

    def _keep_lease(self) -> None:
        tenure = self._lease.renew()
        if tenure is not self._tenure:  # lost, won, or interrupted: then whatever worked under the old one must end
            self._lose_lease()
            if tenure:
                self.load()
                if self._lease.renew() is not tenure:  # to read took longer than the lease, and it went to another
                    return
                self._tenure = tenure
                state = self._memory.state
                log.info("evaluator.lease_taken", decided=state.bucket_ms, version=state.version)
                self._on_lease(tenure)
        metrics.LEASE.set(self._tenure is not None)

    def _lose_lease(self) -> None:
        if self._tenure:
            self._tenure.end()
            self._tenure = None
            metrics.LEASE.set(0)
            log.info("evaluator.lease_lost")
            self._on_lease(None)

    def load(self) -> None:
        """Read the state as the last decided bucket left it; the lease, where it is held, is kept meanwhile."""
        self._renewed_s = time.monotonic()
        self._memory.load(self._alive)

    def _alive(self) -> None:
        self.seen_s = time.monotonic()
        if self._lease.is_held and self.seen_s - self._renewed_s > RENEW_S:
            self._renewed_s = self.seen_s
            self._lease.renew()

    # ---------------------------------------------------------------- buckets

    def look(self) -> None:
        """Close and decide every bucket that is due, oldest first; look for silent streams; roll history up."""
        if self._memory.is_ahead or self._store.evaluation.state() != self._memory.state:
            log.warning("evaluator.state_moved", had=self._memory.state.version)  # lost or set back: Redis is right
            self.load()
        self._withdraw_unwatched()
        partitions = self._store.catalog.partitions()
        due = self._closing.due(partitions, self._memory)
        # before anything is judged: what resolves now must have been told to fire
        if not self._closing.muted and not self._publish_suppressed():
            return
        for bucket_ms in due:
            if self._stop.is_set() or not self._lease.renew():
                return
            started = time.perf_counter()
            sealed, judged = self._closing.seal(partitions, bucket_ms, self._memory)  # 1. counts never change again
            failpoint("after_seal")
            decision = self._judge(bucket_ms, sealed)  # 2. verdicts and alerts
            decision.judged = judged
            if not self._decide(bucket_ms, decision):  # 3. one transaction
                return
            failpoint("before_checkpoint")
            if not self._memory.store_rows(decision):  # 4. some of what the rules remember
                return
            metrics.BUCKETS_CLOSED.inc()
            metrics.EVALUATION_SECONDS.observe(time.perf_counter() - started)
        if time.monotonic() - self._silence_looked_s > SILENCE_LOOK_S:
            self._silence_looked_s = time.monotonic()
            self._judge_clock(partitions)
        self._aging.turn(partitions, self._memory.decided_ms)

    def _withdraw_unwatched(self) -> None:
        """Resolve the alerts that no configured rule judges any more: they would fire for ever."""
        decision = Decision()
        at_ms = (self._memory.state.bucket_ms or 0) + self._bucket_ms
        for key, alert in self._memory.alerts.items():
            rule = self._rules.get(alert.rule)
            if alert.phase not in alerts.UNDER_WAY or (rule and rule.watches(alert.stream)):
                continue
            decision.alerts[key] = after = alerts.withdraw(alert, at_ms)
            if after.phase is AlertPhase.RESOLVED and not alert.suppressed:
                decision.add(Change(rule, "", self._memory.decided_ms, after))
            log.info("alert.withdrawn", rule=alert.rule, stream=alert.stream, id=alert.id)
        if decision.alerts:
            self._decide(self._memory.decided_ms, decision)

    def _judge(self, bucket_ms: int, sealed: Sealed) -> Decision:
        memory, decision = self._memory, Decision()
        memory.is_ahead = True
        memory.add_bucket(bucket_ms, sealed)
        for rule in self._rules.values():
            if rule.reads_clock:
                continue
            for stream, found in verdicts_of(rule, memory, bucket_ms, sealed).items():
                self._step(rule, stream, found, bucket_ms, decision)
        return decision

    def _step(self, rule: Rule, stream: str, found: Mapping[str, Found], bucket_ms: int, decision: Decision) -> None:
        """Advance one stream's alert by one bucket; `found` is by condition."""
        known = self._memory.alerts.get((rule.name, stream), Alert(rule.name, stream))
        before, found = settling(rule, known, found)
        waits = held(before, found.keys(), self._memory, self.conditions_of)
        joint = conditions.joint(before, {c: one.verdict for c, one in found.items()}, waits)
        after = raised_by(rule, conditions.step(before, joint, bucket_ms, self._policies[rule.name]), found)
        if after == known:
            return
        # calm may have been shown earlier than in this bucket
        by = found.get(joint.condition) or Found(joint.verdict, self._memory.judging(stream, joint.condition))
        changed = after.phase is not before.phase
        if changed and after.phase is AlertPhase.FIRING:
            after = replace(after, suppressed=self._closing.muted)
            change = Change(rule, by.fingerprint, bucket_ms, after)
            after = self._memory.with_onset(rule, change, by.row, alerts.calm_since_ms(before))
        decision.alerts[rule.name, stream] = after
        if changed and decision.add(Change(rule, by.fingerprint, bucket_ms, after)):
            summary = after.verdict.summary if after.verdict else ""
            log.info(f"alert.{after.phase}", rule=rule.name, stream=stream, id=after.id, summary=summary)

    def _publish_suppressed(self) -> bool:
        """After a rebuild: publish the alerts that began during it and still fire; False as `_decide`.

        A document that was published before the rebuild keeps its id.
        """
        decision = Decision()
        for key, alert in self._memory.alerts.items():
            if not alert.suppressed or alert.phase is not AlertPhase.FIRING:
                continue
            decision.alerts[key] = after = replace(alert, suppressed=False)
            if rule := self._rules.get(alert.rule):
                fingerprint = self._memory.judging(alert.stream, alert.condition)
                decision.published.append(Change(rule, fingerprint, alert.fired_ms - self._bucket_ms, after))
                log.info("alert.told_after_rebuild", rule=alert.rule, stream=alert.stream, id=alert.id)
        return not decision.alerts or self._decide(self._memory.decided_ms, decision)

    def _decide(self, bucket_ms: int, decision: Decision) -> bool:
        """Commit the decision; False if the lease is lost, or the state in Redis has changed, which is then loaded."""
        memory = self._memory
        oldest_ms = bucket_ms - KEEP_RESOLVED_MS
        for key, alert in memory.alerts.items():
            if alert.phase is AlertPhase.RESOLVED and alert.resolved_ms < oldest_ms and key not in decision.alerts:
                decision.alerts[key] = Alert(*key)
        documents = self._presentation.documents(self._store, memory, decision)
        firing = {
            change.alert.id: documents[change.alert.id] if change.alert.phase is AlertPhase.FIRING else ""
            for change in decision.published
        }
        outbox = list(documents.values()) if self._presentation.has_receivers else []
        failpoint("before_decide")
        if not self._lease.renew():
            log.warning("evaluator.not_decided", bucket_ms=bucket_ms, reason="the lease is lost")
            return False
        done = self._store.evaluation.decide(
            memory.state.version,
            bucket_ms,
            decision.alerts.values(),
            outbox,
            Kept(firing, decision.judged),
        )
        failpoint("after_decide")
        if not done:
            # another evaluator was faster, or the reply to this call was lost: the state in Redis is right
            log.warning("evaluator.conflict", bucket_ms=bucket_ms)
            self.load()
            return False
        memory.take_up(decision, bucket_ms)
        for (rule, _), phase in decision.phases:
            metrics.TRANSITIONS.labels(rule, phase).inc()
        return True

    # ---------------------------------------------------------------- clock

    def forget_dead(self, partitions: tuple[Partition, ...], now_ms: int) -> None:
        """Forget the streams that have sent nothing for the retention, so that new ones find room.

        First what the rules keep of them, then their names: after a crash in between they are found again. An alert
        under way stays as it is, and keeps its rule's state.
        """
        dead = self._store.partitions.dead(partitions, now_ms)
        if dead:
            self._memory.forget(dead.keys())
            self._store.partitions.forget(dead)
            log.info("streams.forgotten", streams=len(dead), first=min(dead))

    def _judge_clock(self, partitions: tuple[Partition, ...]) -> None:
        """Judge the rules that read the clock of the machine instead of event time."""
        now_ms = wall_ms()
        running_since_ms = self._store.evaluation.heartbeat(now_ms, HEARTBEAT_GAP_S)
        settled = self._tenure is not None and now_ms - running_since_ms >= SETTLE_MS  # a replay holds no lease
        if settled and time.monotonic() - self._forgot_s > FORGET_LOOK_S:
            self._forgot_s = time.monotonic()
            self.forget_dead(partitions, now_ms)
        rules = [rule for rule in self._rules.values() if rule.reads_clock]
        if not rules:
            return
        seen: dict[str, int] = {}
        for partition in partitions:
            for stream, facts in self._store.partitions.facts(partition).items():
                seen[stream] = max(seen.get(stream, 0), facts.seen_ms)
        decision = Decision()
        bucket_ms = bucket_of(now_ms, self._bucket_ms)
        for rule in rules:
            watched = {stream: seen_ms or None for stream, seen_ms in seen.items() if rule.watches(stream)}
            for stream, verdict in rule.judge_clock(LastSeen(watched, now_ms, running_since_ms)).items():
                self._step(rule, stream, {OVERALL: Found(verdict)}, bucket_ms, decision)
        if decision.alerts:
            self._decide(self._memory.decided_ms, decision)
