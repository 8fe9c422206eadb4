"""What the options of several commands share: `-c`, points in time, durations."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
TIME_HELP = "RFC 3339, in UTC where it names no zone, or ms since the epoch"
IMAGES_HELP = "folders, tar files or image files"
DURATION_HELP = "30m, 1.5h, 7d, 1d12h; units s, m, h, d, w"


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """`-c`: the configuration file; config.yaml of the working directory where there is one, else the defaults."""
    path = Path("config.yaml")
    parser.add_argument("-c", "--config", type=Path, default=path if path.exists() else None)


def parse_time(text: str) -> int:
    """`2026-03-01T12:00:00Z` or `1772366400000`, in milliseconds since the epoch.

    A time without a zone is UTC: local time would mean another moment on every machine.

    Raises:
        argparse.ArgumentTypeError: `text` is neither.
    """
    try:
        if text.isdecimal():
            return int(text)
        moment = datetime.fromisoformat(text)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither RFC 3339 nor ms since the epoch") from error


def parse_duration(text: str) -> float:
    """`30m`, `1.5h` or `1d12h`, in seconds; always greater than 0.

    Raises:
        argparse.ArgumentTypeError: `text` is no duration, or an empty one.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text)
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30m, 24h or 1d12h")
    return seconds
