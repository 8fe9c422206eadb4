"""SIGKILL at every failpoint, alone and beside another replica."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.telemetry.failpoints import PLACES as ALL_PLACES
from tests.faults.rig import STORY, Rig, wait_for

pytestmark = pytest.mark.kafka
MakeRig = Callable[..., Rig]

MOVING = [place for place in ALL_PLACES if place.startswith("shards_")]
# the first is not the daemon's own process, the second needs another version of a profile: test_profiles.py
PLACES = [place for place in ALL_PLACES if place not in {"decode", "before_switch", *MOVING}]
JUDGING = ["after_seal", "before_judge", "before_decide", "after_decide", "before_checkpoint"]
PASS = {"polled": "@9", "claimed": "@2", "score": "@5", "after_apply": "@4", "before_letters": "@2"}
"""Where the first pass would come before anything has happened."""
QUICK = {"after_apply", "after_send"}
long = pytest.mark.faults


def crash(rig: Rig, place: str, nth: str) -> None:
    """A daemon that is killed there."""
    crashing = rig.start(f"{place}:kill{nth}")
    wait_for(f"the crash at {place}", crashing.ended)
    assert crashing.status == -signal.SIGKILL


@pytest.mark.parametrize("place", [pytest.param(p, marks=() if p in QUICK else long) for p in PLACES])
def test_a_crash_at_any_line_loses_nothing_and_counts_nothing_twice(rig: Rig, place: str) -> None:
    rig.tell()
    crash(rig, place, PASS.get(place, ""))
    rig.start()
    rig.check_story()
    twice = len(rig.hook.accepted) - len(rig.hook.ids())
    assert twice == (1 if place == "after_send" else 0)  # told again with the same id, and only there


@pytest.mark.faults
@pytest.mark.parametrize("place", PLACES)
def test_a_crash_beside_another_replica_loses_nothing_and_counts_nothing_twice(rig: Rig, place: str) -> None:
    rig.tell(0, STORY // 2)
    replicas = [rig.start(f"{place}:kill{PASS.get(place, '')}"), rig.start()]
    rig.await_counted()
    rig.tell(STORY // 2, STORY)
    rig.check_story()
    assert not replicas[1].ended()


@pytest.mark.faults
@pytest.mark.parametrize("place", [*JUDGING, *MOVING])
def test_a_crash_with_four_shards_loses_nothing_and_counts_nothing_twice(make_rig: MakeRig, place: str) -> None:
    rig = make_rig(settings={"evaluation": {"shards": 4}})
    rig.tell()
    crash(rig, place, "" if place in MOVING else "@3")
    rig.start()
    rig.check_story()
    assert len(rig.hook.accepted) == len(rig.hook.ids())
    assert rig.store.shards.layout().shards == 4


def test_a_termination_in_the_middle_leaves_an_exact_cursor_within_the_grace_period(rig: Rig) -> None:
    rig.tell()
    daemon = rig.start()
    rig.await_counted(60)
    assert daemon.terminate() == 0
    counted = rig.counted()
    cursors = rig.store.partitions.cursors(rig.partitions).values()
    assert counted == sum(cursor.next_offset for cursor in cursors if cursor)
    assert daemon.events("daemon.stopped")
    rig.start()
    rig.check_story()


@long
def test_a_process_that_stood_still_before_a_send_does_not_send_once_another_has_taken_over(rig: Rig) -> None:
    """Else a receiver would see firing, resolved, firing."""
    rig.tell()
    still = rig.start("before_send:stop")
    wait_for("it to stand still", lambda: Path(f"/proc/{still.pid}/stat").read_text().split()[2] == "T")
    rig.start()
    rig.check_story()
    still.send(signal.SIGCONT)
    wait_for("it to notice", lambda: still.events("evaluator.lease_lost"))
    assert still.terminate() == 0
    assert len(rig.hook.tries) == 2
