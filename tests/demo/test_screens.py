"""What a person reads: the plain lines, the live panel, an alert in plain words."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from monitor.demo.process import StreamJson
from monitor.demo.screens import DemoStatus, LiveScreen, PlainScreen, details, headline, sparkline
from tests.demo.documents import episode

STATUS = DemoStatus(
    125.0,
    61.4,
    {
        "line-1": StreamJson(applied=250, ood_share=0.04, alerts=[], rejected=0, late=0, duplicates=0),
        "line-2": StreamJson(applied=249, ood_share=0.5, alerts=["rate"], rejected=0, late=0, duplicates=0),
    },
)


def plain_lines(out: io.StringIO) -> list[str]:
    """The lines without their clock."""
    return [re.sub(r"^\[ *\d+\.\d s\] ", "", line) for line in out.getvalue().splitlines()]


def test_an_alert_says_what_how_sure_which_signals_and_what_it_looks_like() -> None:
    firing, resolved = episode("line-2", 130)
    assert headline(firing) == "FIRING line-2 by rule rate (08:02:20)"
    assert details(firing) == [
        ("what", "42.0% of 120 images"),
        ("how sure", "about 39 % of the images drifted (interval 24 % to 54 %)"),
        ("what moved", "noise 0.41, layer3 0.30"),
        ("looks like", "the sensor: lens, light or focus, for the picture itself has changed"),
    ]
    assert headline(resolved) == "RESOLVED line-2 by rule rate (08:04:00)"
    assert details(resolved) == [("calm again", "5.0% of 120 images")]


def test_a_sequential_alert_states_the_share_and_its_bound_on_false_alarms_once_each() -> None:
    shown = dict(details(episode("line-2", 130, rule="drift", kind="sequential")[0]))
    assert shown["what"] == "at least 24 % of the images drifted (estimate 39 %); ood: more images"
    assert shown["how sure"] == "at most one false alarm a week over all lines"


def test_the_plain_screen_writes_lines_without_colour_or_movement() -> None:
    out = io.StringIO()
    screen = PlainScreen(out)
    screen.say("hello")
    for share in (0.0, 0.1, 0.24, 0.26, 1.0):
        screen.step("learning", share)
    screen.show(STATUS)
    screen.show(STATUS)  # within the pause between two lines of state
    screen.alert(episode("line-2", 130)[0])
    screen.end(["all is well"], good=True)
    screen.close()
    lines = plain_lines(out)
    assert lines[:5] == [
        "hello",
        "learning: 0 %",
        "learning: 25 %",
        "learning: 100 %",
        "drift at 2:05, 61 images/s: line-1 250 images, OOD 4 %; line-2 249 images, OOD 50 % ALERT",
    ]
    assert lines[5].startswith("FIRING line-2")
    assert lines[-2:] == ["all is well", "demo passed"]
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_a_failed_demo_says_so_on_the_plain_screen() -> None:
    out = io.StringIO()
    PlainScreen(out).end(["missing: nothing came"], good=False)
    assert plain_lines(out) == ["missing: nothing came", "demo FAILED"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_live_panel_fits_the_terminal(columns: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=True, color_system=None)
    screen = LiveScreen(console)
    console.print(screen.panel(STATUS))
    screen.alert(episode("line-2", 130)[0])
    screen.end(["all is well"], good=True)
    text = out.getvalue()
    assert all(len(line) <= columns for line in text.splitlines())
    for word in ("line-1", "line-2", "50 %", "rate", "lens smear", "quiet", "FIRING line-2", "layer3", "demo passed"):
        assert word in text


def test_a_sparkline_rises_with_the_share() -> None:
    assert sparkline([0.0, 0.25, 0.5, 1.0]) == "▁▅██"
