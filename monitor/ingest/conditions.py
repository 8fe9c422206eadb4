"""The condition of an image (day or night, a recipe), by a rule of the configuration: section `scoring.conditions`.

It is a pure function of the record, the event time and the decoded image, so a replay gives every image the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from detectors.images.prepare import Prepared
from detectors.images.properties import NAMES
from detectors.profile.files import check_condition
from monitor.core.settings import Glob, Section
from monitor.core.types import Record

Namer = Callable[[Record, int, Prepared], str | None]
"""(record, event time in ms, image) -> its condition; None where it has none, any text where the profile must know."""

DAY_MINUTES = 24 * 60
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
SPAN = rf"^{_CLOCK}-({_CLOCK}|24:00)$"
MAX_VALUE_CHARS = 200


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{name!r} is no time zone such as Europe/Berlin") from error
    except KeyError:
        raise ValueError(f"{name!r} is no time zone of this machine, such as Europe/Berlin or UTC") from None
    return name


def _spans(value: object) -> object:
    """Let one span stand for a list of one."""
    return (value,) if isinstance(value, str) else value


Condition = Annotated[str, AfterValidator(check_condition)]
Zone = Annotated[str, AfterValidator(_zone)]
Spans = Annotated[tuple[Annotated[str, Field(pattern=SPAN)], ...], BeforeValidator(_spans)]


class ConditionRule(Section):
    """How images of the streams that match get their condition."""

    streams: Glob = "*"
    """Of several entries the first whose glob matches counts."""
    by: str

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that it names; empty: whichever the profile has."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """Of the configuration, where those names stand."""
        raise NotImplementedError

    def namer(self) -> Namer:
        """The rule as a function."""
        raise NotImplementedError


class HeaderCondition(ConditionRule):
    """A header of the record names the condition."""

    by: Literal["header"]
    header: Annotated[str, Field(min_length=1)]
    values: dict[str, Condition] = Field(default_factory=dict)
    """Value of the header -> condition; without it the value is the condition."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of `values`."""
        return tuple(dict.fromkeys(self.values.values()))

    @property
    def key(self) -> str:
        """Where `names` stand."""
        return "values" if self.values else "header"

    def namer(self) -> Namer:
        """Reads the header; None where it is missing."""

        def name(record: Record, _: int, __: Prepared) -> str | None:
            raw = record.header(self.header)
            if raw is None:
                return None
            text = raw[: 4 * MAX_VALUE_CHARS].decode("utf-8", "replace")[:MAX_VALUE_CHARS]
            return self.values.get(text, "" if self.values else text)

        return name


class HourCondition(ConditionRule):
    """The time of day of the event time, as a clock on the wall shows it in a time zone."""

    by: Literal["hour"]
    timezone: Zone
    """Name of the IANA database, such as Europe/Berlin; daylight saving time follows from it."""
    hours: dict[Condition, Spans]
    """Condition -> spans of the day (20:00-06:00); each begins with its first minute and ends before its last, and
    together they cover the day without overlap."""

    @model_validator(mode="after")
    def _cover_the_day(self) -> HourCondition:
        _by_minute(self.hours)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Those of `hours`."""
        return tuple(self.hours)

    @property
    def key(self) -> str:
        """Where `names` stand."""
        return "hours"

    def namer(self) -> Namer:
        """Looks at the clock; None for event times that it cannot show."""
        zone, minutes = ZoneInfo(self.timezone), _by_minute(self.hours)

        def name(_: Record, event_time_ms: int, __: Prepared) -> str | None:
            try:
                shown = datetime.fromtimestamp(event_time_ms // 1000, zone)
            except (OverflowError, ValueError, OSError):  # the first hours of the year 1, and the like
                return None
            return minutes[60 * shown.hour + shown.minute]

        return name


class PropertyCondition(ConditionRule):
    """A range of an image property, as `layerwatch score` shows it."""

    by: Literal["property"]
    name: str
    """Of the property, such as luma_p50, the median brightness."""
    ranges: dict[Condition, tuple[float | None, float | None]]
    """Condition -> from (inclusive) and to (exclusive); null is without end. Together they cover all values without
    overlap."""

    @model_validator(mode="after")
    def _cover_the_line(self) -> PropertyCondition:
        if self.name not in NAMES:
            raise ValueError(f"name: there is no property {self.name!r}; there are {', '.join(NAMES)}")
        _in_order(self.ranges)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Those of `ranges`."""
        return tuple(self.ranges)

    @property
    def key(self) -> str:
        """Where `names` stand."""
        return "ranges"

    def namer(self) -> Namer:
        """Looks at the measured property."""
        column, ranges = NAMES.index(self.name), _in_order(self.ranges)

        def name(_: Record, __: int, image: Prepared) -> str | None:
            value = image.properties[column]
            return next((condition for condition, _, high in ranges if value < high), ranges[-1][0])

        return name


AnyCondition = Annotated[HeaderCondition | HourCondition | PropertyCondition, Field(discriminator="by")]


def _by_minute(hours: Mapping[str, tuple[str, ...]]) -> list[str]:
    """(1440,) the condition of each minute of the day; ValueError where it has none or two."""
    minutes = [""] * DAY_MINUTES
    for condition, spans in hours.items():
        for span in spans:
            start, end = (60 * int(clock[:2]) + int(clock[3:]) for clock in span.split("-"))
            if start == end:
                raise ValueError(f"hours: {span} is empty; a whole day is 00:00-24:00")
            for minute in range(start, end if start < end else end + DAY_MINUTES):
                if minutes[minute % DAY_MINUTES]:
                    other = minutes[minute % DAY_MINUTES]
                    raise ValueError(f"hours: {_clock(minute)} belongs to both {other} and {condition}")
                minutes[minute % DAY_MINUTES] = condition
    if "" in minutes:
        raise ValueError(f"hours: {_clock(minutes.index(''))} belongs to no condition")
    return minutes


def _clock(minute: int) -> str:
    return f"{minute % DAY_MINUTES // 60:02}:{minute % 60:02}"


def _in_order(ranges: Mapping[str, tuple[float | None, float | None]]) -> list[tuple[str, float, float]]:
    """(condition, from, to), the lowest first; ValueError where they leave a gap, overlap, or are empty."""
    ends = {
        condition: (-math.inf if low is None else low, math.inf if high is None else high)
        for condition, (low, high) in ranges.items()
    }
    found = sorted(((condition, *pair) for condition, pair in ends.items()), key=lambda part: part[1:])
    if not found:
        raise ValueError("ranges: there is none")
    for condition, low, high in found:
        if not low < high:
            raise ValueError(f"ranges: {condition} is empty")
    edges = [-math.inf, *(high for _, _, high in found)]
    for (condition, low, _), edge in zip(found, edges, strict=False):
        if low != edge:
            wrong = "overlaps with another" if low < edge else f"leaves what is below {low:g} without a condition"
            raise ValueError(f"ranges: {condition} {wrong}")
    if edges[-1] != math.inf:
        raise ValueError(f"ranges: what is from {edges[-1]:g} on has no condition")
    return found
