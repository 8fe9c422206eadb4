"""What the options of several commands share: `-c`, points in time, durations."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

from monitor.core.time_text import parse_duration_s, parse_time_ms

TIME_HELP = "RFC 3339, in UTC unless it gives an offset, or ms since the epoch"
PROFILE_HELP = "a profile's folder, a store (its active version), or STORE@VERSION"
IMAGES_HELP = "folders, tar files or image files"
DURATION_HELP = "30m, 1.5h, 7d, 1d12h; units s, m, h, d, w"


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """`-c`: the configuration file; config.yaml of the working directory where there is one, else the defaults."""
    path = Path("config.yaml")
    parser.add_argument("-c", "--config", type=Path, default=path if path.exists() else None)


def parse_time(text: str) -> int:
    """A point in time in milliseconds since the epoch; see `parse_time_ms`.

    Raises:
        argparse.ArgumentTypeError: `text` is none.
    """
    try:
        return parse_time_ms(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_duration(text: str) -> float:
    """A duration in seconds, greater than 0; see `parse_duration_s`.

    Raises:
        argparse.ArgumentTypeError: `text` is none.
    """
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_count(text: str) -> int:
    """A whole number greater than 0.

    Raises:
        argparse.ArgumentTypeError: `text` is none.
    """
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number greater than 0 (got {text!r})")
    return int(text)


def parse_share(text: str) -> float:
    """A share in (0, 1], written 0.2 or 20%.

    Raises:
        argparse.ArgumentTypeError: `text` is none.
    """
    number, percent, rest = text.partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1 or rest:
        raise argparse.ArgumentTypeError(f"must be a share above 0 and up to 1, such as 0.2 or 20% (got {text!r})")
    return share


def user_name() -> str:
    """Of the user who gives a command; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry
        return ""
