"""Closes buckets and judges them: seal, judge, decide. Runs on the one replica that holds the lease.

Nothing here looks at a clock but the lease and the rule `silence`. A bucket is decided by one fenced write that holds
everything it changes (alerts, rule states, documents for the receivers), so a crash anywhere repeats the bucket from
the same sealed counts, with the same outcome and the same ids.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from monitor.core import alert_state as alerts
from monitor.core.alert_state import UNDER_WAY, Transition
from monitor.core.buckets import Layout
from monitor.core.event_time import bucket_of, closable, fleet_watermark
from monitor.core.types import Alert, AlertPhase, Partition, Vector, Verdict
from monitor.core.windows import Windows
from monitor.evaluate.presentation import Presentation, Presenter
from monitor.rules import Silence
from monitor.rules.ruleset import BoundRule, SequentialStates, drift_since, judge_windows
from monitor.rules.sequential import Sequential
from monitor.store import EvaluatorState, Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

LEASE_S = 15.0
"""A dead evaluator is replaced after this; a live one renews it every look."""
LOOK_S = 0.5
"""Between looks for buckets to close: small against a bucket, so an alert is late by little."""
SILENCE_LOOK_S = 5.0
HEARTBEAT_GAP_S = 60.0
"""A restart within this does not start the silence clock anew."""
KEEP_RESOLVED_MS = 7 * 86_400_000


@dataclass(slots=True)
class _Decision:
    """Everything that one closed bucket changes."""

    alerts: dict[tuple[str, str], Alert] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    documents: list[str] = field(default_factory=list)
    phases: list[tuple[str, str]] = field(default_factory=list)


class Evaluator:
    """Judges closed buckets while it holds the lease; `run` returns after `stop`.

    Args:
        layouts: fingerprint -> layout of the profiles loaded here; those of other replicas are read from Redis.
        on_lease: called with True when the lease is won and with False when it is lost or given up.
        rates: (bucket_ms, lateness_ms).
    """

    def __init__(
        self,
        store: Store,
        rules: tuple[BoundRule, ...],
        layouts: Mapping[str, Layout],
        rates: tuple[int, int],
        presentation: Presentation,
        on_lease: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._store, self._rules, self._layouts = store, rules, dict(layouts)
        self._bucket_ms, self._lateness_ms = rates
        self._heard, self._on_lease = presentation.heard, on_lease
        self._presenter = Presenter(store, self._layouts, self._bucket_ms, presentation)
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._silence_looked_s = 0.0
        self.holds_lease = False
        self.seen_s = time.monotonic()
        """When it last looked, by the monotonic clock: for the watchdog."""
        self._state = EvaluatorState()
        self._muted = False  # lost counts are being rebuilt: what happens now was known before
        self._alerts: dict[tuple[str, str], Alert] = {}
        self._sequential = SequentialStates()
        self._windows = self._no_windows()

    def stop(self) -> None:
        """Let `run` give the lease up and return."""
        self._stop.set()

    def run(self) -> None:
        """Look for buckets to close until `stop`; Redis being away is waited out."""
        while not self._stop.is_set():
            self.seen_s = time.monotonic()
            try:
                self._keep_lease()
                if self.holds_lease:
                    self.look()
            except StoreError as error:
                metrics.REDIS_ERRORS.inc()
                log.warning("evaluator.redis_away", error=str(error))
                self._lose_lease()
            self._stop.wait(LOOK_S)
        if self.holds_lease:
            self._lose_lease()
            try:
                self._store.evaluation.release(self._token)
            except StoreError as error:
                log.warning("evaluator.lease_kept", error=str(error))

    # ---------------------------------------------------------------- lease

    def _keep_lease(self) -> None:
        held = self._store.evaluation.lease(self._token, LEASE_S)
        if held and not self.holds_lease:
            self.load()
            self.holds_lease = True
            log.info("evaluator.lease_taken", decided=self._state.bucket_ms, version=self._state.version)
            self._on_lease(True)
        elif not held:
            self._lose_lease()
        metrics.LEASE.set(self.holds_lease)

    def _lose_lease(self) -> None:
        if self.holds_lease:
            self.holds_lease = False
            metrics.LEASE.set(0)
            log.info("evaluator.lease_lost")
            self._on_lease(False)

    def load(self) -> None:
        """Take up the state as the last decided bucket left it."""
        store = self._store
        self._state = store.evaluation.state()
        for fingerprint, layout in store.catalog.layouts().items():
            self._layouts.setdefault(fingerprint, layout)
        self._alerts = store.evaluation.alerts()
        self._sequential = SequentialStates()
        self._windows = self._no_windows()
        for rule in self._rules:
            if isinstance(rule.judge, Sequential):
                for fingerprint in self._layouts:
                    rows = store.evaluation.rule_states(rule.name, fingerprint)
                    self._sequential.load(rule.name, fingerprint, rows)
        if self._state.bucket_ms is None:
            return
        until_ms = self._state.bucket_ms + 1
        since_ms = self._state.bucket_ms - self._reach_ms
        partitions = store.catalog.partitions()
        held: dict[int, dict[str, dict[str, Vector]]] = {}
        for fingerprint in self._layouts:
            buckets = store.counts.buckets(partitions, fingerprint, since_ms, until_ms, ("closed",))
            for start, streams in buckets.items():
                held.setdefault(start, {})[fingerprint] = streams
        for start in sorted(held):
            self._windows.add(start, held[start])

    @property
    def _reach_ms(self) -> int:
        return max([rule.evidence_ms for rule in self._rules], default=self._bucket_ms)

    def _no_windows(self) -> Windows:
        return Windows(self._reach_ms)

    # ---------------------------------------------------------------- buckets

    def look(self) -> None:
        """Close and decide every bucket that is due, oldest first; then look for silent streams."""
        if self._store.evaluation.state() != self._state:
            log.warning("evaluator.state_moved", had=self._state.version)  # lost or set back: Redis is the truth
            self.load()
        self._withdraw_unwatched()
        partitions = self._store.catalog.partitions()
        for bucket_ms in self._due(partitions):
            if self._stop.is_set() or not self._store.evaluation.lease(self._token, LEASE_S):
                return
            started = time.perf_counter()
            sealed = self._store.partitions.seal(partitions, bucket_ms)  # 1. from now on its counts never change
            failpoint("after_seal")
            decision = self._judge(partitions, bucket_ms, sealed)  # 2. what they mean
            if not self._decide(bucket_ms, decision):  # 3. all of it or nothing
                return
            metrics.BUCKETS_CLOSED.inc()
            metrics.EVALUATION_SECONDS.observe(time.perf_counter() - started)
        if self._untold and not self._muted:
            self._tell_muted(partitions)
        if time.monotonic() - self._silence_looked_s > SILENCE_LOOK_S:
            self._silence_looked_s = time.monotonic()
            self._judge_silence(partitions)

    def _withdraw_unwatched(self) -> None:
        """End what the configuration has left behind: nothing would ever judge it again, and it would fire for ever."""
        rules = {rule.name: rule for rule in self._rules}
        decision = _Decision()
        for key, alert in self._alerts.items():
            rule = rules.get(alert.rule)
            if alert.phase not in UNDER_WAY or (rule is not None and rule.settings.watches(alert.stream)):
                continue
            after, transition = alerts.withdraw(alert, (self._state.bucket_ms or 0) + self._bucket_ms)
            decision.alerts[key] = after
            if transition is not None and not alert.untold:
                decision.phases.append((alert.rule, str(transition.phase)))
                decision.documents.append(self._presenter.of_withdrawal(rule, transition, after))
            log.info("alert.withdrawn", rule=alert.rule, stream=alert.stream, id=alert.id)
        if decision.alerts:
            self._decide(self._state.bucket_ms if self._state.bucket_ms is not None else -1, decision)

    def _due(self, partitions: tuple[Partition, ...]) -> list[int]:
        """Buckets that the watermark has passed, and those that an evaluator sealed and did not live to decide."""
        cursors = self._store.partitions.cursors(partitions)
        self._muted = any(cursor and cursor.next_offset < cursor.rebuild_until for cursor in cursors.values())
        metrics.MUTED.set(self._muted)
        watermark = fleet_watermark(cursors.values(), self._lateness_ms)
        metrics.WATERMARK.set((watermark or 0) / 1000)
        opened = {start for found in self._store.partitions.open_buckets(partitions).values() for _, start in found}
        decided = -1 if self._state.bucket_ms is None else self._state.bucket_ms
        due = {start for start in closable(opened, watermark, self._bucket_ms) if start > decided}
        return sorted(due | set(self._store.partitions.sealed_buckets(partitions, decided)))

    def _judge(
        self, partitions: tuple[Partition, ...], bucket_ms: int, sealed: Mapping[str, Mapping[str, Vector]]
    ) -> _Decision:
        self._know(sealed)
        self._windows.add(bucket_ms, sealed)
        decision = _Decision()
        for rule in self._rules:
            if isinstance(rule.judge, Silence):
                continue
            for fingerprint, streams in self._watched(rule, sealed).items():
                for stream, verdict in self._verdicts(rule, fingerprint, streams, bucket_ms, decision):
                    self._step(rule, fingerprint, stream, verdict, bucket_ms, partitions, decision)
        return decision

    def _know(self, fingerprints: Iterable[str]) -> None:
        """Read the layouts of profiles that another replica has begun to use."""
        if any(fingerprint not in self._layouts for fingerprint in fingerprints):
            for fingerprint, layout in self._store.catalog.layouts().items():
                self._layouts.setdefault(fingerprint, layout)

    def _watched(
        self, rule: BoundRule, sealed: Mapping[str, Mapping[str, Vector]]
    ) -> dict[str, dict[str, Vector | None]]:
        """{fingerprint: {stream: its counts in this bucket}} of the streams the rule judges now.

        These are the streams with counts in the bucket, and those with an alert under way: their window moves on too.
        """
        watched: dict[str, dict[str, Vector | None]] = {}
        for fingerprint, streams in sealed.items():
            if fingerprint in self._layouts:
                watched[fingerprint] = {s: vector for s, vector in streams.items() if rule.settings.watches(s)}
        present = {stream for streams in watched.values() for stream in streams}
        for (name, stream), alert in self._alerts.items():
            if name == rule.name and alert.phase in UNDER_WAY and stream not in present:
                fingerprint = self._windows.fingerprint_of(stream) or ""
                if fingerprint in self._layouts:
                    watched.setdefault(fingerprint, {})[stream] = None
        return watched

    def _verdicts(
        self,
        rule: BoundRule,
        fingerprint: str,
        streams: Mapping[str, Vector | None],
        bucket_ms: int,
        decision: _Decision,
    ) -> Iterable[tuple[str, Verdict]]:
        layout = self._layouts[fingerprint]
        if not isinstance(rule.judge, Sequential):
            return judge_windows(rule, layout, self._windows, fingerprint, streams, bucket_ms)
        counted = {stream: vector for stream, vector in streams.items() if vector is not None}
        verdicts, rows = self._sequential.advance(rule, fingerprint, layout, bucket_ms, counted)
        decision.rows[rule.name, fingerprint] = rows
        return verdicts.items()

    def _step(
        self,
        rule: BoundRule,
        fingerprint: str,
        stream: str,
        verdict: Verdict,
        bucket_ms: int,
        partitions: tuple[Partition, ...],
        decision: _Decision,
    ) -> None:
        """One stream's alert one bucket further, with its document if a person should hear of it."""
        before = self._alerts.get((rule.name, stream), Alert(rule.name, stream))
        after, transition = alerts.step(before, verdict, bucket_ms, rule.policy)
        if after == before:
            return
        if transition is not None and transition.phase is AlertPhase.FIRING:
            after = replace(after, untold=self._muted)
        if transition is not None and transition.phase is AlertPhase.FIRING and fingerprint:
            row = decision.rows.get((rule.name, fingerprint), {}).get(stream)
            buckets = self._windows.buckets(fingerprint, stream)
            since_ms = drift_since(rule, self._layouts[fingerprint], row, buckets, after.since_ms)
            after = replace(after, since_ms=since_ms)
        decision.alerts[rule.name, stream] = after
        if transition is None:
            return
        decision.phases.append((rule.name, str(transition.phase)))
        if transition.phase in {AlertPhase.FIRING, AlertPhase.RESOLVED} and not after.untold:
            decision.documents.append(
                self._presenter.of_change(rule, fingerprint, transition, after, bucket_ms, self._windows, partitions)
            )
            log.info(f"alert.{transition.phase}", rule=rule.name, stream=stream, id=after.id, summary=verdict.summary)

    @property
    def _untold(self) -> list[Alert]:
        return [alert for alert in self._alerts.values() if alert.untold and alert.phase is AlertPhase.FIRING]

    def _tell_muted(self, partitions: tuple[Partition, ...]) -> None:
        """The counts are rebuilt: tell of what began meanwhile and still fires. Told before, it has the same id."""
        rules = {rule.name: rule for rule in self._rules}
        decision = _Decision()
        for alert in self._untold:
            decision.alerts[alert.rule, alert.stream] = told = replace(alert, untold=False)
            if rule := rules.get(alert.rule):
                at_ms = alert.fired_ms
                change = Transition(alert.id, alert.rule, alert.stream, AlertPhase.PENDING, AlertPhase.FIRING, at_ms)
                fingerprint = self._windows.fingerprint_of(alert.stream) or ""
                decision.documents.append(
                    self._presenter.of_change(
                        rule, fingerprint, change, told, at_ms - self._bucket_ms, self._windows, partitions
                    )
                )
                log.info("alert.told_after_rebuild", rule=alert.rule, stream=alert.stream, id=alert.id)
        self._decide(self._state.bucket_ms if self._state.bucket_ms is not None else -1, decision)

    def _decide(self, bucket_ms: int, decision: _Decision) -> bool:
        """Commit; False when the state had moved on, which is then loaded anew."""
        oldest_ms = bucket_ms - KEEP_RESOLVED_MS
        for key, alert in self._alerts.items():
            if alert.phase is AlertPhase.RESOLVED and alert.resolved_ms < oldest_ms and key not in decision.alerts:
                decision.alerts[key] = Alert(*key)
        documents = decision.documents if self._heard else []
        failpoint("before_decide")
        done = self._store.evaluation.decide(
            self._state.version, bucket_ms, decision.alerts.values(), decision.rows, documents
        )
        failpoint("after_decide")
        if not done:
            # another evaluator was faster, or the reply of this very call was lost: what stands in Redis is the truth
            log.warning("evaluator.conflict", bucket_ms=bucket_ms)
            self.load()
            return False
        self._state = EvaluatorState(self._state.version + 1, bucket_ms, self._state.outbox_dropped)
        self._alerts.update(decision.alerts)
        for key, alert in decision.alerts.items():
            if alert.phase is AlertPhase.INACTIVE:
                self._alerts.pop(key, None)
        self._sequential.keep(decision.rows)
        for rule, phase in decision.phases:
            metrics.TRANSITIONS.labels(rule, phase).inc()
        return True

    # ---------------------------------------------------------------- silence

    def _judge_silence(self, partitions: tuple[Partition, ...]) -> None:
        """The one decision about the clock of the machine: streams from which nothing has come for long."""
        rules = [rule for rule in self._rules if isinstance(rule.judge, Silence)]
        now_ms = time.time_ns() // 1_000_000
        running_since_ms = self._store.evaluation.heartbeat(now_ms, HEARTBEAT_GAP_S)
        if not rules:
            return
        seen: dict[str, int] = {}
        for partition in partitions:
            for stream, facts in self._store.partitions.facts(partition).items():
                seen[stream] = max(seen.get(stream, 0), facts.seen_ms)
        decision = _Decision()
        bucket_ms = bucket_of(now_ms, self._bucket_ms)
        for rule in rules:
            assert isinstance(rule.judge, Silence)  # noqa: S101 - chosen above
            for stream, seen_ms in seen.items():
                if rule.settings.watches(stream):
                    verdict = rule.judge.judge(seen_ms or None, now_ms, running_since_ms)
                    self._step(rule, "", stream, verdict, bucket_ms, partitions, decision)
        if decision.alerts:
            self._decide(self._state.bucket_ms if self._state.bucket_ms is not None else -1, decision)
