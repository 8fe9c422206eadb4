"""One alert by the images of several conditions: who raises it, who may end it; nothing changes without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.core import alert_state, conditions
from monitor.core.alert_state import Policy
from monitor.core.buckets import Layout
from monitor.core.types import Alert, AlertPhase, Verdict

BUCKET = 10_000
INACTIVE, PENDING, FIRING, RESOLVED = AlertPhase
Story = Sequence[Mapping[str, bool | None]]


def verdict(breached: bool | None, share: float = 0.2) -> Verdict:
    return Verdict(breached, share, share, 0.1, 500, f"{share}", (share, share, share), "ood: more images")


def play(buckets: Story, for_s: int = 0, keep_s: int = 0, gone: str = "nothing", restart: bool = True) -> list[Alert]:
    """The alert after each bucket of {condition: breached}; `gone` is a condition that is configured no longer."""
    alert, found = Alert("drift", "cam"), []
    policy = Policy("line", BUCKET, for_s * 1000, keep_s * 1000)
    for i, bucket in enumerate(buckets):
        waits = conditions.breached_in(alert)
        held = waits - ({gone} - bucket.keys())
        joint = conditions.joint(alert, {c: verdict(b) for c, b in bucket.items()}, held)
        alert = conditions.step(alert, joint, (i + 1) * BUCKET, policy)
        if restart and alert.phase is not INACTIVE:
            alert = alert_state.from_json(alert_state.to_json(alert))
        found.append(alert)
    return found


def phases(buckets: Story, for_s: int = 0, keep_s: int = 0, gone: str = "nothing") -> list[AlertPhase]:
    return [alert.phase for alert in play(buckets, for_s, keep_s, gone)]


def test_a_fault_by_night_fires_over_the_day_and_ends_by_night() -> None:
    story: Story = [
        {"night": True},
        {"night": None},
        *[{"day": False}] * 3,
        {"night": True},
        {"day": False},
        {"night": False},
    ]
    found = play(story)
    assert [a.phase for a in found] == [FIRING] * 7 + [RESOLVED]
    assert len({a.id for a in found}) == 1
    assert {a.condition for a in found} == {"night"}
    assert [a.breached_in for a in found] == [("night",)] * 7 + [()]


def test_a_fault_in_both_ends_when_both_are_calm() -> None:
    story: Story = [{"night": True}, {"day": True, "night": None}, {"night": False}, {"day": None}, {"day": False}]
    found = play(story)
    assert [a.phase for a in found] == [FIRING] * 4 + [RESOLVED]
    assert [a.breached_in for a in found[:3]] == [("night",), ("day", "night"), ("day",)]
    assert found[-1].condition == "night"


def test_two_conditions_in_one_bucket_breach_if_one_does() -> None:
    assert phases([{"day": False, "night": True}, {"day": False}, {"day": False, "night": False}]) == [
        FIRING, FIRING, RESOLVED,
    ]  # fmt: skip


def test_pending_waits_for_its_condition_too() -> None:
    assert phases([{"night": True}, {"day": False}, {"night": True}], for_s=20) == [PENDING, PENDING, FIRING]
    assert phases([{"night": True}, {"day": False}, {"night": False}], for_s=20) == [PENDING, PENDING, INACTIVE]


def test_the_waiting_time_after_calm_runs_whichever_images_come() -> None:
    story = [{"night": True}, {"night": False}, {"day": False}, {"day": False}]
    assert phases(story, keep_s=20) == [FIRING, FIRING, FIRING, RESOLVED]
    # the last word is that of the night's images
    last = play(story, keep_s=20)[-1]
    assert last.verdict is not None
    assert (last.verdict.breached, last.condition) == (False, "night")
    assert phases([{"night": True}, {"night": False}, {"day": False}, {"night": True}], keep_s=20) == [FIRING] * 4


def test_a_condition_that_is_configured_no_longer_holds_nothing() -> None:
    assert phases([{"night": True}, {"day": False}], gone="night") == [FIRING, RESOLVED]


def test_alerts_without_conditions_are_stored_as_before() -> None:
    alert = play([{"": True}], restart=False)[0]
    assert (alert.condition, alert.breached_in) == ("", ())
    assert "condition" not in (text := alert_state.to_json(alert))
    assert "breached_in" not in text
    assert alert_state.from_json(text) == alert
    both = play([{"": True, "night": True}, {"night": False}], restart=False)
    assert [a.breached_in for a in both] == [("", "night"), ()]
    assert conditions.breached_in(both[1]) == {""}


def test_a_layout_names_its_condition_and_is_stored_as_before_without_one() -> None:
    plain = Layout(("ood",), (99,), (False,), (True,), (1.0,))
    night = replace(plain, condition="night")
    assert Layout.from_json(night.to_json()) == night != plain
    assert night.adds_up_with(plain)
    assert "condition" not in plain.to_json()


@given(st.lists(st.sampled_from([True, False, None]), max_size=30), st.sampled_from([0, 20]), st.sampled_from([0, 20]))
def test_one_condition_alone_is_what_there_was_before(breaches: list[bool | None], for_s: int, keep_s: int) -> None:
    plain, policy = Alert("drift", "cam"), Policy("line", BUCKET, for_s * 1000, keep_s * 1000)
    for name in ("", "night"):
        plain = Alert("drift", "cam")
        found = play([{name: b} for b in breaches], for_s, keep_s)
        for i, (breached, alert) in enumerate(zip(breaches, found, strict=True)):
            plain = alert_state.step(plain, verdict(breached), (i + 1) * BUCKET, policy)
            expected = (plain.phase, plain.id, plain.since_ms, plain.clear_since_ms, plain.resolved_ms, plain.verdict)
            got = (alert.phase, alert.id, alert.since_ms, alert.clear_since_ms, alert.resolved_ms, alert.verdict)
            assert got == expected


@given(st.lists(st.dictionaries(st.sampled_from(["", "day", "night"]), st.booleans(), min_size=1), max_size=30))
def test_it_fires_exactly_while_some_condition_is_breached(buckets: list[dict[str, bool]]) -> None:
    latest: dict[str, bool] = {}
    for bucket, alert in zip(buckets, play(buckets), strict=True):
        latest |= bucket
        assert (alert.phase is FIRING) == any(latest.values())


@given(st.dictionaries(st.sampled_from(["", "day", "night"]), st.sampled_from([True, False, None]), min_size=1))
def test_the_same_bucket_twice_changes_nothing(bucket: dict[str, bool | None]) -> None:
    policy = Policy("line", BUCKET)
    alert = play([{"night": True}])[0]
    for _ in range(2):
        joint = conditions.joint(alert, {c: verdict(b) for c, b in bucket.items()}, conditions.breached_in(alert))
        before, alert = alert, conditions.step(alert, joint, 2 * BUCKET, policy)
    assert alert == before


@pytest.mark.parametrize("own", ["day", "night"])
def test_the_worse_condition_raises_it_and_its_own_says_how_it_goes_on(own: str) -> None:
    verdicts = {"day": verdict(True, 0.9), "night": verdict(True, 0.3)}
    assert conditions.joint(Alert("drift", "cam"), verdicts, set()).condition == "day"
    alert = Alert("drift", "cam", FIRING, "id", fired_ms=1, condition=own, breached_in=(own,))
    assert conditions.joint(alert, verdicts, {own}).condition == own
