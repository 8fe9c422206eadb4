"""Judges the closed buckets of one shard: seal, judge, decide.

Only the rules that read the clock depend on time. A bucket is decided by one fenced write with all that it changes
(alerts, documents for the receivers), so a crash anywhere repeats the bucket from the same sealed counts, with the same
outcome and the same ids. The rules' states follow from the counts; `rule_states.py` stores them. `replica.py` has the
leases, and the shards that a process judges in turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from monitor.core import alert_state as alerts
from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.core.conditions import OVERALL
from monitor.core.event_time import bucket_of
from monitor.core.types import Alert, AlertPhase, Partition
from monitor.evaluate.aging import Aging
from monitor.evaluate.closing import Closing
from monitor.evaluate.memory import Change, Decision, Memory
from monitor.evaluate.presentation import Presentation
from monitor.rules.judging import Closed, Found, step, verdicts_of
from monitor.rules.rule import LastSeen, Rule
from monitor.store import Kept, Sealed, Shard, Store
from monitor.store.shards import whole_state
from monitor.telemetry import metrics
from monitor.telemetry.clock import wall_ms
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

SILENCE_LOOK_S = 5.0
SETTLE_MS = 3_600_000
"""After an outage every stream gets this time to send again before it is taken for dead."""
FORGET_LOOK_S = 600.0
"""Between looks for dead streams: short compared with the retention, and a look reads the facts of every stream."""
UNUSED_MS = 7 * 86_400_000
"""Rules give up a profile that had no counts and that no process had loaded for so long. In a week each condition or
product that comes by the day of the week has come, and whoever rolls back has done so."""
HEARTBEAT_GAP_S = 60.0
"""A restart within this does not restart the measurement of silence."""
KEEP_RESOLVED_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class HeldShard:
    """A shard as its holder has it.

    Args:
        renew: keeps the lease; False where it is lost. Without a lease (a replay) nothing is lost.
        alive: called now and then while the state is read.
    """

    shard: Shard
    renew: Callable[[], bool] = lambda: True
    alive: Callable[[], None] = lambda: None
    lives_on: bool = False
    """Whether the fleet goes on after this: streams that send no more are forgotten then."""


class Evaluator:
    """Judges the closed buckets of one shard; the first shard's also closes them, for all shards.

    Args:
        layouts: fingerprint -> layout of the profiles loaded here; those of other replicas are read from Redis.
        closing: used by the first shard's alone, but for what others ask it.
        held: None judges all streams, without a lease.
    """

    def __init__(
        self,
        store: Store,
        rules: tuple[Rule, ...],
        layouts: Mapping[str, Layout],
        closing: Closing,
        presentation: Presentation,
        held: HeldShard | None = None,
    ) -> None:
        self._store, self._rules = store, {rule.name: rule for rule in rules}
        self._held = held or HeldShard(store.first)
        self._shard = self._held.shard
        self._closing, self._bucket_ms = closing, closing.bucket_ms
        self._policies = {
            rule.name: Policy(
                monitor=presentation.monitor,
                bucket_len_ms=self._bucket_ms,
                for_ms=round(rule.for_s * 1000),
                keep_firing_for_ms=round(rule.keep_firing_for_s * 1000),
            )
            for rule in rules
        }
        self.memory = Memory(store, self._shard, rules, layouts, self._bucket_ms)
        self._presentation, self._aging = presentation, Aging(store)
        self._sealed = Sealed()
        self._silence_looked_s = -math.inf
        self._forgot_s = -math.inf  # the clock may count from when the machine was started, a minute ago

    def load(self) -> None:
        """Read the state as the last decided bucket left it."""
        self.memory.load(self._held.alive)

    # ---------------------------------------------------------------- buckets

    def look(self, most: int | None = None) -> bool:
        """Decide the buckets that are due, oldest first; look for silent streams; roll history up.

        Args:
            most: buckets decided at most; None decides all.

        Returns:
            Whether more are due.
        """
        memory = self.memory
        if memory.is_ahead or self._shard.evaluation.state() != memory.state:
            log.warning("evaluator.state_moved", had=memory.state.version)  # lost or set back: Redis is right
            self.load()
        self._withdraw_unwatched()
        partitions = self._store.catalog.partitions()
        due: list[int] = []
        self._sealed = self._store.sealing.read()
        if not self._shard.number:
            self._sealed, due = self._closing.due(partitions, self._sealed)
        before = self._closing.judgeable(partitions, memory.decided_ms, self._sealed)
        if before is None:
            return False
        # before anything is judged: what resolves now must have been told to fire
        if not self._is_muted(memory.decided_ms + 1) and not self._publish_suppressed():
            return False
        for bucket_ms in [*before, *due][:most]:
            if not self._held.renew() or not self._close(partitions, bucket_ms):
                return False
        if most is not None and len(before) + len(due) > most:
            return True
        if time.monotonic() - self._silence_looked_s > SILENCE_LOOK_S:
            self._silence_looked_s = time.monotonic()
            self._judge_clock(partitions)
        if not self._shard.number:
            self._aging.turn(partitions, self._slowest_ms())
        return False

    def _close(self, partitions: tuple[Partition, ...], bucket_ms: int) -> bool:
        """Decide one bucket; False where another process goes on."""
        started = time.perf_counter()
        if bucket_ms > self._sealed.bucket_ms:  # 1. counts never change again
            sealed = self._closing.seal(partitions, bucket_ms, self._sealed)
            if sealed is None:
                return False
            self._sealed = sealed
        failpoint("before_judge")
        decision = self._judge(bucket_ms)  # 2. verdicts and alerts
        if not self._decide(bucket_ms, decision):  # 3. one transaction
            return False
        failpoint("before_checkpoint")
        if not self.memory.store_rows(decision):  # 4. some of what the rules remember
            return False
        if not self._shard.number:
            metrics.BUCKETS_CLOSED.inc()
        metrics.EVALUATION_SECONDS.observe(time.perf_counter() - started)
        return True

    def _is_muted(self, bucket_ms: int) -> bool:
        """Whether what begins to fire in that bucket is held back: lost counts are being rebuilt."""
        return self._sealed.muted or bucket_ms <= self._sealed.muted_until_ms

    def _slowest_ms(self) -> int:
        """The last bucket that every shard has decided; -1 before the first."""
        if self._shard.of == 1:
            return self.memory.decided_ms
        decided_ms = whole_state(self._store.shards.states()).bucket_ms
        return -1 if decided_ms is None else decided_ms

    def _withdraw_unwatched(self) -> None:
        """Resolve the alerts that no configured rule judges any more: they would fire for ever."""
        decision = Decision()
        at_ms = (self.memory.state.bucket_ms or 0) + self._bucket_ms
        for key, alert in self.memory.alerts.items():
            rule = self._rules.get(alert.rule)
            if alert.phase not in alerts.UNDER_WAY or (rule and rule.watches(alert.stream)):
                continue
            decision.alerts[key] = after = alerts.withdraw(alert, at_ms)
            decision.end(alert, at_ms)
            if after.phase is AlertPhase.RESOLVED and not alert.suppressed:
                decision.add(Change(rule, "", self.memory.decided_ms, after))
            log.info("alert.withdrawn", rule=alert.rule, stream=alert.stream, id=alert.id)
        if decision.alerts:
            self._decide(self.memory.decided_ms, decision)

    def _judge(self, bucket_ms: int) -> Decision:
        memory, decision = self.memory, Decision()
        memory.is_ahead = True
        sealed: Closed = memory.read_bucket(bucket_ms)
        for rule in self._rules.values():
            if rule.reads_clock:
                continue
            for stream, found in verdicts_of(rule, memory, bucket_ms, sealed).items():
                self._step(rule, stream, found, bucket_ms, decision)
        return decision

    def _step(self, rule: Rule, stream: str, found: Mapping[str, Found], bucket_ms: int, decision: Decision) -> None:
        """Advance one stream's alert by one bucket; `found` is by condition."""
        stepped = step(rule, stream, found, self.memory, bucket_ms, self._policies[rule.name])
        if stepped is None:
            return
        before, after, by = stepped.before, stepped.after, stepped.by
        changed = after.phase is not before.phase
        if changed and after.phase is AlertPhase.FIRING:
            after = replace(after, suppressed=self._is_muted(bucket_ms))
            change = Change(rule, by.fingerprint, bucket_ms, after)
            after = self.memory.with_onset(rule, change, by.row, alerts.calm_since_ms(before))
        decision.alerts[rule.name, stream] = after
        if before.phase in alerts.UNDER_WAY and after.phase not in alerts.UNDER_WAY:
            decision.end(before, after.resolved_ms or bucket_ms + self._bucket_ms)
        if changed and decision.add(Change(rule, by.fingerprint, bucket_ms, after)):
            summary = after.verdict.summary if after.verdict else ""
            log.info(f"alert.{after.phase}", rule=rule.name, stream=stream, id=after.id, summary=summary)

    def _publish_suppressed(self) -> bool:
        """After a rebuild: publish the alerts that began during it and still fire; False as `_decide`.

        A document that was published before the rebuild keeps its id.
        """
        decision = Decision()
        for key, alert in self.memory.alerts.items():
            if not alert.suppressed or alert.phase is not AlertPhase.FIRING:
                continue
            decision.alerts[key] = after = replace(alert, suppressed=False)
            if rule := self._rules.get(alert.rule):
                fingerprint = self.memory.judging(alert.stream, alert.condition)
                decision.published.append(Change(rule, fingerprint, alert.fired_ms - self._bucket_ms, after))
                log.info("alert.told_after_rebuild", rule=alert.rule, stream=alert.stream, id=alert.id)
        return not decision.alerts or self._decide(self.memory.decided_ms, decision)

    def _decide(self, bucket_ms: int, decision: Decision) -> bool:
        """Commit the decision; False if the lease is lost, or the state in Redis has changed, which is then loaded."""
        memory = self.memory
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
        if not self._held.renew():
            log.warning("evaluator.not_decided", bucket_ms=bucket_ms, reason="the lease is lost")
            return False
        done = self._shard.evaluation.decide(
            memory.state.version, bucket_ms, decision.alerts.values(), outbox, Kept(firing, decision.ended)
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
        found = self._store.partitions.dead(partitions, now_ms)
        dead = {stream: facts for stream, facts in found.items() if self._shard.owns(stream)}
        if dead:
            self.memory.forget(dead.keys())
            self._store.partitions.forget(dead)
            log.info("streams.forgotten", streams=len(dead), first=min(dead))

    def give_up_unused(self) -> None:
        """Drop what the rules keep under profiles that nobody uses any more; one that comes back begins anew."""
        for key in self.memory.unused(UNUSED_MS, self._store.catalog.in_use(UNUSED_MS)):
            if not self._held.renew() or not self.memory.rule_states.give_up(self.memory.state.version, key):
                return  # another evaluator goes on
            log.info("rule_states.given_up", rule=key[0], profile=key[1])

    def _judge_clock(self, partitions: tuple[Partition, ...]) -> None:
        """Judge the rules that read the clock of the machine instead of event time."""
        now_ms = wall_ms()
        running_since_ms = self._store.evaluation.heartbeat(now_ms, HEARTBEAT_GAP_S)
        settled = self._held.lives_on and now_ms - running_since_ms >= SETTLE_MS
        if settled and time.monotonic() - self._forgot_s > FORGET_LOOK_S:
            self._forgot_s = time.monotonic()
            self.forget_dead(partitions, now_ms)
            self.give_up_unused()
        rules = [rule for rule in self._rules.values() if rule.reads_clock]
        if not rules:
            return
        seen: dict[str, int] = {}
        for partition in partitions:
            for stream, facts in self._store.partitions.facts(partition).items():
                if self._shard.owns(stream):
                    seen[stream] = max(seen.get(stream, 0), facts.seen_ms)
        decision = Decision()
        bucket_ms = bucket_of(now_ms, self._bucket_ms)
        for rule in rules:
            watched = {stream: seen_ms or None for stream, seen_ms in seen.items() if rule.watches(stream)}
            for stream, verdict in rule.judge_clock(LastSeen(watched, now_ms, running_since_ms)).items():
                self._step(rule, stream, {OVERALL: Found(verdict)}, bucket_ms, decision)
        if decision.alerts:
            self._decide(self.memory.decided_ms, decision)
