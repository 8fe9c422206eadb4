"""Receivers that fail: every transition arrives all the same, under one id."""

from __future__ import annotations

import pytest

from tests.faults.rig import Rig, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

ANSWERS = {
    "500": (500, {}, 0.0),
    "429": (429, {"Retry-After": "3"}, 0.0),
    "time-out": (204, {}, 2.5),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_receiver_that_fails_at_first_gets_every_transition(rig: Rig, name: str) -> None:
    rig.hook.answers = lambda number: ANSWERS[name] if number == 1 else (204, {}, 0.0)
    rig.tell()
    rig.start()
    rig.check_story()
    assert len(rig.hook.tries) == 3
    assert rig.hook.tries[0][1] == rig.hook.tries[1][1]  # the first one again, before what came after it
    if name == "429":
        assert rig.hook.tries[1][0] - rig.hook.tries[0][0] >= 3


def test_a_redirect_is_refused_and_kept_among_the_dead_letters(rig: Rig) -> None:
    rig.hook.answers = lambda number: (302, {"Location": "http://127.0.0.1:9/"}, 0.0) if number == 1 else (204, {}, 0.0)
    rig.tell()
    rig.start()
    rig.await_counted()
    rig.await_story_closed()
    (dead,) = wait_for("the dead letter", rig.store.outbox.dead_alerts)
    assert dead.receiver == "hook"
    rig.check_counts()
