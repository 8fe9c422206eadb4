"""Receivers that fail: every transition arrives all the same, under one id."""

from __future__ import annotations

import pytest

from tests.faults.rig import DRIFT, STORY, Rig, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

ANSWERS = {
    "500": (500, {}, 0.0),
    "429": (429, {"Retry-After": "3"}, 0.0),
    "redirect": (302, {"Location": "http://127.0.0.1:9/"}, 0.0),
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


def test_a_receiver_that_is_renamed_while_an_alert_fires_gets_it_and_its_end(rig: Rig) -> None:
    rig.tell(0, DRIFT[1])
    first = rig.start()
    wait_for("the alert", rig.hook.ids)
    assert first.terminate() == 0
    rig.settings["receivers"][0]["name"] = "renamed"
    rig.start()
    (fired,) = rig.hook.ids()
    wait_for("the alert again", lambda: len(rig.hook.tries) == 2)
    assert rig.hook.tries[1][1] == fired
    rig.tell(DRIFT[1], STORY)
    rig.await_story_closed()
    wait_for("its end", lambda: len(rig.hook.ids()) == 2)
    assert len(rig.hook.tries) == 3
    assert rig.store.outbox.receivers() == {"hook", "renamed"}
