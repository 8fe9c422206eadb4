"""The configured rules, ready to judge: what a closed bucket means for every stream that each of them watches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitor.config.errors import ConfigError
from monitor.config.schema import Config
from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.core.types import Vector, Verdict
from monitor.core.windows import Windows
from monitor.rules import Frozen, Rate, Rejected, Shift, Silence, WindowRule, sequential
from monitor.rules.sequential import Sequential
from monitor.rules.settings import AnyRule, FrozenRule, RateRule, RejectedRule, SequentialRule, ShiftRule, SilenceRule

EVIDENCE_MS = 300_000
"""How far back the evidence of a rule without a window reaches: five minutes hold enough images to see what moved."""


@dataclass(frozen=True)
class BoundRule:
    """A configured rule with what judges for it. `window_ms` is 0 where it looks at the closed bucket alone."""

    settings: AnyRule
    judge: WindowRule | Sequential | Silence
    window_ms: int
    policy: Policy

    @property
    def name(self) -> str:
        """The rule's name in the configuration."""
        return self.settings.name

    @property
    def evidence_ms(self) -> int:
        """How far back its evidence reaches: over its own window, so that it shows what the rule judged."""
        return self.window_ms or EVIDENCE_MS


def bind_rules(settings: Config) -> tuple[BoundRule, ...]:
    """Every rule of the configuration.

    Raises:
        ConfigError: a rule's numbers do not go together; the line names the rule.
    """
    bound, wrong = [], []
    for i, rule in enumerate(settings.rules):
        policy = Policy(
            monitor=settings.monitor,
            bucket_len_ms=settings.buckets.seconds * 1000,
            for_ms=round(rule.for_s * 1000),
            keep_firing_for_ms=round(rule.keep_firing_for_s * 1000),
        )
        window_s = getattr(rule, "window_s", 0.0)
        try:
            bound.append(BoundRule(rule, _judge(rule, settings.buckets.seconds), round(window_s * 1000), policy))
        except ValueError as error:
            wrong.append(f"rules.{i} ({rule.name}): {error}")
    if wrong:
        raise ConfigError(wrong)
    return tuple(bound)


def _judge(rule: AnyRule, bucket_s: int) -> WindowRule | Sequential | Silence:
    match rule:
        case RateRule():
            return Rate(rule.signal, rule.level, rule.threshold, rule.min_images, rule.confidence)
        case ShiftRule():
            return Shift(rule.signals, rule.effect, rule.min_images, rule.confidence)
        case RejectedRule():
            return Rejected(rule.threshold, rule.min_images, rule.confidence)
        case FrozenRule():
            return Frozen(rule.run)
        case SilenceRule():
            return Silence(rule.after_s)
        case SequentialRule():
            period_s = (rule.false_alarm_days or 7) * sequential.DAY_S
            return Sequential(
                signals=rule.signals,
                bucket_s=bucket_s,
                seconds_per_false_alarm=(
                    rule.expected_streams * period_s
                    if rule.false_alarm_days
                    else sequential.fleet_budget_s(rule.expected_streams)
                ),
                delta=rule.delta,
                pi_min=rule.benign_share,
                reference=rule.reference,
                dependence=rule.dependence,
            )


def check_rules(rules: Iterable[BoundRule], layouts: Mapping[str, Layout]) -> list[str]:
    """One line per rule that a loaded profile cannot carry (unknown signal, too few calibration images)."""
    wrong = []
    for rule in rules:
        if isinstance(rule.judge, Silence):
            continue
        for fingerprint, layout in layouts.items():
            try:
                rule.judge.check(layout)
            except (KeyError, ValueError) as error:
                wrong.append(f"rules: {rule.name}: {error.args[0]} (profile {fingerprint})")
    return wrong


def drift_since(
    rule: BoundRule, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]], default_ms: int
) -> int:
    """Start of the bucket in which a drift most likely began, for a stream whose sequential rule has just fired.

    Args:
        row: the stream's packed state after the bucket that fired.
        buckets: (start ms, counts) of the stream, oldest first; a drift before the first cannot be seen.
        default_ms: the answer for rules that keep no state.
    """
    if not isinstance(rule.judge, Sequential) or row is None or not buckets:
        return default_ms
    state = sequential.unpack(rule.judge, layout, [row])
    if not state["firing"][0]:
        return default_ms
    return buckets[sequential.drift_start(rule.judge, layout, state, np.stack([v for _, v in buckets]))][0]


class SequentialStates:
    """State rows of the sequential rules, as they stand after the last decided bucket."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[str, bytes]] = {}

    def load(self, rule: str, fingerprint: str, rows: Mapping[str, bytes]) -> None:
        """Take up what is stored."""
        self._rows[rule, fingerprint] = dict(rows)

    def advance(
        self, rule: BoundRule, fingerprint: str, layout: Layout, bucket_ms: int, streams: Mapping[str, Vector]
    ) -> tuple[dict[str, Verdict], dict[str, bytes]]:
        """Verdicts of these streams after the bucket, and the rows that changed; nothing is kept until `keep`."""
        judge = rule.judge
        if not isinstance(judge, Sequential) or not streams:
            return {}, {}
        held = self._rows.get((rule.name, fingerprint), {})
        state = sequential.unpack(judge, layout, [held.get(stream) for stream in streams])
        state, verdicts = sequential.advance(judge, layout, state, bucket_ms, np.stack(list(streams.values())))
        return dict(zip(streams, verdicts, strict=True)), dict(zip(streams, sequential.pack(state), strict=True))

    def keep(self, rows: Mapping[tuple[str, str], Mapping[str, bytes]]) -> None:
        """Take up what has been committed."""
        for key, changed in rows.items():
            self._rows.setdefault(key, {}).update(changed)


def judge_windows(
    rule: BoundRule, layout: Layout, windows: Windows, fingerprint: str, streams: Iterable[str], bucket_ms: int
) -> Iterator[tuple[str, Verdict]]:
    """Verdict of a window rule on each stream after the bucket."""
    if isinstance(rule.judge, Sequential | Silence):
        return
    after_ms = bucket_ms - (rule.window_ms or rule.policy.bucket_len_ms)
    for stream in streams:
        yield stream, rule.judge.judge(layout, windows.sum(layout, fingerprint, stream, after_ms))
