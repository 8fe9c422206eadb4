"""The schedule of renewals runs its command again and again, one at a time, and ends it when it stops."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from monitor.evaluate.renewal import RenewalSchedule, look_every
from monitor.evaluate.settings import RenewalSettings
from tests.e2e.running import wait_for


def script(folder: Path, text: str) -> list[str]:
    """A command that notes in `folder / "runs"` that it began."""
    path = folder / "command.py"
    path.write_text(f"import sys, time\nwith open({str(folder / 'runs')!r}, 'a') as runs: runs.write('x')\n{text}\n")
    return [sys.executable, str(path)]


def runs(folder: Path) -> int:
    path = folder / "runs"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize(
    ("every", "shadow", "look_s"), [("7d", "1d", 600), ("1h", "10m", 60), ("20s", 0, 2), ("2s", "1s", 1)]
)
def test_it_looks_often_enough_to_be_in_time(every: str, shadow: object, look_s: float) -> None:
    assert look_every(RenewalSettings.model_validate({"every": every, "shadow": shadow})) == look_s


def test_a_command_that_fails_is_run_again(tmp_path: Path) -> None:
    schedule = RenewalSchedule(script(tmp_path, "sys.exit('no store')"), look_s=0.01).start()
    wait_for("three runs", lambda: runs(tmp_path) >= 3)
    schedule.stop()
    after = runs(tmp_path)
    time.sleep(0.3)
    assert runs(tmp_path) == after


def test_a_command_that_is_not_there_is_no_reason_to_end(tmp_path: Path) -> None:
    schedule = RenewalSchedule([str(tmp_path / "nothing")], look_s=0.01).start()
    time.sleep(0.1)
    assert schedule._thread.is_alive()
    schedule.stop()


def test_a_command_under_way_is_ended_with_the_schedule_and_none_begins_beside_it(tmp_path: Path) -> None:
    schedule = RenewalSchedule(script(tmp_path, "time.sleep(600)"), look_s=0.01).start()
    wait_for("the run", lambda: runs(tmp_path) == 1)
    time.sleep(0.2)
    schedule.stop()
    assert runs(tmp_path) == 1
    assert not schedule._thread.is_alive()
