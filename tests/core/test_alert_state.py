from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.core.alert_state import Policy, alert_id, from_json, step, to_json
from monitor.core.types import Alert, AlertPhase, Verdict

BUCKET = 10_000
INACTIVE, PENDING, FIRING, RESOLVED = AlertPhase


def verdict(breached: bool | None) -> Verdict:
    return Verdict(breached, 0.2, 0.15, 0.1, 500, "20 % beyond the cut", (0.1, 0.15, 0.2), "ood above the 5 % cut")


@dataclass
class Transition:
    """A change of phase, as `step` shows it by what goes in and what comes back."""

    before: Alert
    after: Alert

    @property
    def alert_id(self) -> str:
        return self.after.id or self.before.id

    @property
    def at_ms(self) -> int | None:
        return self.after.resolved_ms or self.after.fired_ms


def play(
    breaches: Sequence[bool | None], for_s: int = 0, keep_s: int = 0, alert: Alert | None = None
) -> tuple[list[AlertPhase], list[Transition], Alert]:
    """Phases after each bucket, the transitions, and the last alert."""
    alert = alert or Alert("rate", "cam-1")
    policy = Policy("line", BUCKET, for_s * 1000, keep_s * 1000)
    phases, transitions = [], []
    for i, breached in enumerate(breaches):
        before, alert = alert, step(alert, verdict(breached), (i + 1) * BUCKET, policy)
        phases.append(alert.phase)
        if alert.phase is not before.phase:
            transitions.append(Transition(before, alert))
    return phases, transitions, alert


def test_without_for_it_fires_at_once_and_resolves_at_once() -> None:
    phases, transitions, alert = play([False, True, True, False, False])
    assert phases == [INACTIVE, FIRING, FIRING, RESOLVED, RESOLVED]
    assert [(t.before.phase, t.after.phase, t.at_ms) for t in transitions] == [
        (INACTIVE, FIRING, 30_000),
        (FIRING, RESOLVED, 50_000),
    ]
    assert (alert.since_ms, alert.fired_ms, alert.resolved_ms) == (20_000, 30_000, 50_000)


def test_for_holds_it_pending_and_a_calm_bucket_starts_over() -> None:
    phases, transitions, _ = play([True, True, False, True, True, True], for_s=20)
    assert phases == [PENDING, PENDING, INACTIVE, PENDING, PENDING, FIRING]
    assert len({t.alert_id for t in transitions[:2]}) == 1
    assert transitions[0].alert_id != transitions[2].alert_id


def test_keep_firing_for_bridges_short_calm() -> None:
    phases, _, alert = play([True, False, False, True, False, False, False, False], keep_s=30)
    assert phases == [FIRING] * 7 + [RESOLVED]
    assert alert.clear_since_ms == 50_000


def test_too_little_to_judge_changes_nothing() -> None:
    for before in ([], [True], [True, False]):
        _, _, alert = play(before, keep_s=60)
        assert step(alert, verdict(None), 990_000, Policy("line", BUCKET)) == alert


def test_a_resolved_alert_comes_back_under_a_new_id() -> None:
    phases, transitions, _ = play([True, False, True])
    assert phases == [FIRING, RESOLVED, FIRING]
    assert transitions[2].before.phase is RESOLVED
    assert transitions[2].alert_id != transitions[0].alert_id
    assert len({(t.alert_id, t.after.phase) for t in transitions}) == 3


def test_an_inactive_alert_needs_no_write() -> None:
    _, _, alert = play([False, False])
    assert alert == Alert("rate", "cam-1")


def test_ids_keep_their_parts_apart() -> None:
    assert alert_id("a", "bc", "d", 0) != alert_id("ab", "c", "d", 0)
    assert alert_id("line", "rate", "cam-1", 20_000) == "eaec5141e9bd4ded"


@given(st.lists(st.sampled_from([True, False, None]), max_size=30), st.integers(0, 3), st.integers(0, 3))
def test_a_bucket_judged_twice_changes_nothing_the_second_time(
    breaches: list[bool | None], for_buckets: int, keep_buckets: int
) -> None:
    policy = Policy("line", BUCKET, for_buckets * BUCKET, keep_buckets * BUCKET)
    alert = Alert("rate", "cam-1")
    seen = set()
    for i, breached in enumerate(breaches):
        before, alert = alert, step(alert, verdict(breached), (i + 1) * BUCKET, policy)
        assert step(alert, verdict(breached), (i + 1) * BUCKET, policy) == alert
        assert from_json(to_json(alert)) == alert
        if alert.phase is not before.phase:
            name = Transition(before, alert).alert_id, alert.phase
            assert name not in seen
            seen.add(name)


def test_an_unknown_version_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="version 9"):
        from_json(to_json(Alert("rate", "cam-1")).replace('"version": 1', '"version": 9'))
