"""Points in time and durations as people write them: one rule for options, headers and configuration. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
MAX_DIGITS = 16
"""Of milliseconds; 16 digits reach the year 318857."""


def parse_time_ms(text: str) -> int:
    """`2026-03-01T12:00:00Z` or `1772366400000`, in milliseconds since the epoch.

    A time without an offset is UTC: local time would mean another moment on every machine.

    Raises:
        ValueError: `text` is neither.
    """
    text = text.strip()
    try:
        if re.fullmatch(rf"-?[0-9]{{1,{MAX_DIGITS}}}", text):
            return int(text)
        # a date begins with its year: `fromisoformat` reads long numbers as dates too
        moment = datetime.fromisoformat(text if text[4:5] == "-" else "")
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:60]!r} is neither RFC 3339 nor ms since the epoch") from error


def parse_duration_s(text: str) -> float:
    """`30m`, `1.5h` or `1d12h`, in seconds; always greater than 0.

    Raises:
        ValueError: `text` is no duration, or an empty one.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text)
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not seconds:
        raise ValueError(f"{text[:60]!r} is not a duration such as 30m, 24h or 1d12h")
    return seconds
