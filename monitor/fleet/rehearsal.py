"""The alerts that rules would have raised by closed buckets that are at hand, judged as the evaluator judges; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.core.types import Alert, AlertPhase
from monitor.rules.judging import Closed, JudgingState, PassingRows, step, verdicts_of
from monitor.rules.rule import Rule


def would_fire(
    rules: Sequence[Rule], layouts: Mapping[str, Layout], buckets: Mapping[int, Closed], bucket_ms: int, monitor: str
) -> Iterator[Alert]:
    """Each alert as it begins to fire, the earliest first. The rules begin at nothing with the first bucket.

    Rules that do not read images are left out, and those that cannot judge by one of the profiles.

    Args:
        layouts: of the profiles that counted.
        buckets: {bucket start ms: counts}.
        bucket_ms: length of a bucket.
        monitor: its name, for the ids.
    """
    fitting = [rule for rule in rules if rule.reads_images and not rule.reads_clock and _fits(rule, layouts)]
    state = JudgingState(fitting, layouts, bucket_ms, PassingRows())
    policies = {
        rule.name: Policy(monitor, bucket_ms, round(rule.for_s * 1000), round(rule.keep_firing_for_s * 1000))
        for rule in fitting
    }
    for start_ms in sorted(buckets):
        state.windows.add(start_ms, buckets[start_ms])
        changed: dict[tuple[str, str], Alert] = {}
        for rule in fitting:
            for stream, found in verdicts_of(rule, state, start_ms, buckets[start_ms]).items():
                stepped = step(rule, stream, found, state, start_ms, policies[rule.name])
                if stepped is not None:
                    changed[rule.name, stream] = stepped.after
                    if stepped.after.phase is AlertPhase.FIRING and stepped.before.phase is not AlertPhase.FIRING:
                        yield stepped.after
        state.put(changed)


def _fits(rule: Rule, layouts: Mapping[str, Layout]) -> bool:
    try:
        for layout in layouts.values():
            rule.check(layout)
    except (KeyError, ValueError):
        return False
    return True
