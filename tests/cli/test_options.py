"""Times and durations as every command reads them."""

from __future__ import annotations

import argparse

import pytest

from monitor.cli.options import parse_count, parse_duration, parse_time

NOON_MS = 1_772_366_400_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d12h", 129_600),
        ("1.5h", 5400),
        (" 24h ", 86_400),
        ("2w", 1_209_600),
    ],
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "0m", "2hx", ".5h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text",
    [str(NOON_MS), "2026-03-01T12:00:00Z", "2026-03-01T13:00:00+01:00", "2026-03-01 12:00:00.000"],
)
def test_times_are_read_and_are_utc_where_they_name_no_zone(text: str, tokyo: None) -> None:
    assert parse_time(text) == NOON_MS


@pytest.mark.parametrize("text", ["", "noon", "--1", "1.5", "2026-13-01", "1" * 25, "٣"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is neither RFC 3339 nor ms since the epoch"):
        parse_time(text)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", ""])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number greater than 0"):
        parse_count(text)
