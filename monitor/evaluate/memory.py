"""The evaluator's copy of its state in Redis, as of the last decided bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import Layout, sum_vectors
from monitor.core.shadow import is_shadow
from monitor.core.types import Alert, AlertPhase, PastAlert, Vector
from monitor.core.windows import EVERY, Windows, merged
from monitor.evaluate.rule_states import RuleStates
from monitor.fleet.evidence import REACH_MS
from monitor.rules.judging import AlertKey, Closed, JudgingState
from monitor.rules.rule import Rule
from monitor.store import EvaluatorState, Shard, Store
from monitor.store.checkpoints import StateKey
from monitor.store.keyspace import Member


@dataclass(frozen=True, slots=True)
class Change:
    """An alert whose phase has changed: all that its document needs."""

    rule: Rule | None
    """None where the configuration no longer has a rule of that name."""
    fingerprint: str
    """Of the profile whose counts caused it; empty where none did: then there is no evidence to show."""
    bucket_ms: int
    alert: Alert
    """Its state after the change."""


@dataclass(slots=True)
class Decision:
    """Everything that one closed bucket changes, but for the rows of the rules; written in one transaction."""

    alerts: dict[AlertKey, Alert] = field(default_factory=dict)
    published: list[Change] = field(default_factory=list)
    """Changes that go to the receivers."""
    phases: list[tuple[AlertKey, str]] = field(default_factory=list)
    """((rule, stream), phase) of every change of phase."""
    ended: list[PastAlert] = field(default_factory=list)
    """Alerts that are under way no more."""

    def end(self, alert: Alert, until_ms: int) -> None:
        """Note an alert that was pending or firing until then."""
        self.ended.append(PastAlert(alert.rule, alert.stream, alert.id, alert.since_ms, until_ms))

    def add(self, change: Change) -> bool:
        """Count the change of phase, and publish it where receivers should get it; returns whether they do."""
        phase = change.alert.phase
        self.phases.append(((change.alert.rule, change.alert.stream), str(phase)))
        publish = phase in {AlertPhase.FIRING, AlertPhase.RESOLVED} and not change.alert.suppressed
        if publish:
            self.published.append(change)
        return publish


class Memory(JudgingState):
    """The state of one shard as it is stored; `load` reads it, `take_up` adds a committed decision.

    Args:
        layouts: fingerprint -> layout of the profiles loaded here; those of other replicas are read from Redis.
        bucket_ms: length of a bucket.
    """

    def __init__(
        self, store: Store, shard: Shard, rules: tuple[Rule, ...], layouts: Mapping[str, Layout], bucket_ms: int
    ) -> None:
        # half of it: what is rolled up cannot be replayed
        stored = RuleStates(shard.checkpoints, rules, store.counts.fine_ms // 2, shard.of)
        super().__init__(rules, layouts, bucket_ms, stored)
        self.rule_states: RuleStates = stored
        self._store, self._shard, self._rules = store, shard, rules
        self.state = EvaluatorState()
        self.is_ahead = False
        """A bucket has been judged that is not decided: the rule states are not those of `state`."""

    @property
    def decided_ms(self) -> int:
        """The last bucket decided; -1 before the first."""
        return -1 if self.state.bucket_ms is None else self.state.bucket_ms

    def load(self, alive: Callable[[], None] = lambda: None) -> None:
        """Read the state; StoreError where Redis does not answer.

        Args:
            alive: called every fraction of a second: with ten thousand streams it takes some seconds.
        """
        store, evaluation = self._store, self._shard.evaluation
        self.state, self.is_ahead = evaluation.state(), False
        self._read_layouts()
        self.alerts = evaluation.alerts()
        self.windows = Windows(self.reach_ms)
        stored_ms = self.rule_states.load(
            self.state.version, lambda rule: self.layouts if rule.reads_images else self.any_layout(), alive
        )
        if self.state.bucket_ms is None:
            return
        since_ms = min(self.state.bucket_ms - self.reach_ms, stored_ms) + 1
        found = store.counts.members(store.catalog.partitions(), since_ms, ("closed",), self.state.bucket_ms + 1)
        of_start: dict[int, list[Member]] = {}
        for member in found:
            if member[1] in self.layouts or is_shadow(member[1]):
                of_start.setdefault(member[2], []).append(member)
        stateful = [rule for rule in self._rules if rule.keeps_state]
        for start_ms in sorted(of_start):
            sealed = store.counts.tables(of_start[start_ms], self._shard)
            self.windows.add(start_ms, sealed)
            for rule in stateful:
                bucket = start_ms, self.bucket_ms
                self.rule_states.replay(bucket, self.counted(rule, sealed), rule, self.windows)
            alive()

    def read_bucket(self, bucket_ms: int) -> Closed:
        """Read a sealed bucket and add it; reads the layouts of profiles that another replica has begun to use, too."""
        partitions, counts = self._store.catalog.partitions(), self._store.counts
        sealed = counts.tables(counts.members(partitions, bucket_ms, ("closed",), bucket_ms + 1), self._shard)
        if any(fingerprint not in self.layouts for fingerprint in sealed if not is_shadow(fingerprint)):
            self._read_layouts()
        self.windows.add(bucket_ms, sealed)
        return sealed

    def held_since_ms(self, until_ms: int) -> int:
        """Start of the oldest bucket that is still held here when the bucket that ends then is judged."""
        return max(self.decided_ms + self.bucket_ms, until_ms) - self.reach_ms

    def buckets(self, fingerprint: str, stream: str, span_ms: tuple[int, int]) -> list[tuple[int, Vector]]:
        """(start ms, counts) of the stream's closed buckets with since <= start < until, oldest first.

        Args:
            span_ms: (since, until). Buckets that are no longer held here are read from Redis.

        Raises:
            StoreError: Redis does not answer.
        """
        since_ms, until_ms = span_ms
        if since_ms >= self.held_since_ms(until_ms):
            held = self.windows.buckets(fingerprint, stream)
            return [(start, vector) for start, vector in held if since_ms <= start < until_ms]
        partitions, counts = self._store.catalog.partitions(), self._store.counts
        wanted = self.layouts if fingerprint == EVERY else (fingerprint,)
        found = [counts.of_stream(partitions, name, stream, span_ms, ("closed",)).items() for name in wanted]
        return list(found[0]) if len(found) == 1 else merged(item for items in found for item in items)

    def with_onset(self, rule: Rule, change: Change, row: bytes | None, calm_ms: int) -> Alert:
        """The alert that has just begun to fire, with the time when the change began and a verdict on what came since.

        Args:
            row: the stream's packed state after the bucket that fired.
            calm_ms: since when the alert before it was calm. What came earlier belongs to that one: two changes with a
                short calm between them can look like one long change that is half as strong.
        """
        alert, layout = change.alert, self.layouts.get(change.fingerprint)
        if layout is None or alert.verdict is None:
            return alert
        counted = change.fingerprint if rule.reads_images else EVERY
        held = [item for item in self.windows.buckets(counted, alert.stream) if item[0] >= calm_ms]
        onset_ms = rule.onset_ms(layout, row, held)
        # a sudden change, which many streams may have at once, lies near the end; another may have begun before
        if held and onset_ms is not None and onset_ms <= held[-1][0] - self.reach_ms // 4:
            until_ms = change.bucket_ms + self.bucket_ms
            held = self.buckets(counted, alert.stream, (max(until_ms - REACH_MS, calm_ms), until_ms))
            onset_ms = rule.onset_ms(layout, row, held)
        if onset_ms is None:
            return alert
        window = sum_vectors(vector for start, vector in held if start >= onset_ms)
        verdict = rule.verdict_since_onset(layout, row, alert.verdict, window)
        return replace(alert, since_ms=onset_ms, verdict=verdict)

    def take_up(self, decision: Decision, bucket_ms: int) -> None:
        """Apply a decision that has just been committed."""
        self.state = EvaluatorState(self.state.version + 1, bucket_ms, self.state.outbox_dropped)
        self.put(decision.alerts)
        self.is_ahead = False

    def store_rows(self, decision: Decision) -> bool:
        """Store some rows after a bucket's decision was committed; False where another evaluator moved on meanwhile."""
        changed = {key for key, _ in decision.phases}
        return self.rule_states.store(self.state.version, self.decided_ms, changed)

    def forget(self, streams: Set[str]) -> None:
        """Drop the rule states of streams that are dead, but for those with an alert under way."""
        self.rule_states.forget(streams, self._is_under_way)

    def unused(self, age_ms: int, in_use: Set[str]) -> list[StateKey]:
        """What the rules keep under profiles that are not in use and had no counts for that time.

        A profile that raised an alert under way counts as in use.
        """
        under_way = (alert for alert in self.alerts.values() if alert.phase in UNDER_WAY)
        needed = {*in_use, *(name for alert in under_way for name in alert.breached_by)}
        return self.rule_states.unused(self.decided_ms - max(age_ms, self.reach_ms), needed)

    def _is_under_way(self, rule: str, stream: str) -> bool:
        alert = self.alerts.get((rule, stream))
        return alert is not None and alert.phase in UNDER_WAY

    def _read_layouts(self) -> None:
        for fingerprint, layout in self._store.catalog.layouts().items():
            self.layouts.setdefault(fingerprint, layout)
