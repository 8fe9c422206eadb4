"""Drawings of the pages: numbers to the coordinates of inline SVG. Pure.

Every string is made of numbers: no text from outside gets in, and the templates escape what they write anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.core.alert_document import MovedSignal
from monitor.core.buckets import BINS, Layout, reference_counts
from monitor.fleet.stream_view import Point

SPARK_WIDTH, SPARK_HEIGHT = 120, 28
SPARK_SHARE = 0.25
"""Top of a sparkline at least: normal shares of some 5 % stay near the bottom of every sparkline."""
WIDTH, HEIGHT, COUNT_HEIGHT = 600, 160, 36
MOST_BAND = 0.5
"""A band from a handful of images reaches to 100 % and would flatten the line."""
TOPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
BAR_WIDTH, BAR_HEIGHT = 10, 44


@dataclass(frozen=True, slots=True)
class Spark:
    """A small line without axes."""

    line: str
    end: tuple[float, float]
    normal_y: float
    """Height of the 5 % that are normal."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A strip of the plot that shows one point's numbers under the pointer, and its bar in the counts below."""

    x: float
    width: float
    count_y: float
    count_height: float
    point: Point


@dataclass(frozen=True, slots=True)
class Span:
    """Part of the time axis."""

    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A time line: share with its band above, images per step below."""

    top: float
    most_images: int
    start_ms: int
    end_ms: int
    share: str
    bands: Sequence[str]
    hits: Sequence[Hit]

    def span(self, since_ms: int, until_ms: int) -> Span | None:
        """Where an episode lies; None where it is not on this axis."""
        left, right = max(since_ms, self.start_ms), min(until_ms, self.end_ms)
        if right < left:
            return None
        x = _x(left, self.start_ms, self.end_ms)
        return Span(x, max(2.0, round(_x(right, self.start_ms, self.end_ms) - x, 1)))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of a histogram: what was seen, and what was expected."""

    x: int
    y: float
    height: float
    expected_y: float


def spark(points: Sequence[tuple[int, int, int]], since_ms: int, until_ms: int) -> Spark | None:
    """From (start ms, images, unusual ones); None where there are no points."""
    if not points:
        return None
    shares = [(start, passed / images) for start, images, passed in points]
    top = max(SPARK_SHARE, *(share for _, share in shares))
    spread = max(until_ms - since_ms, 1)

    def at(start: int, share: float) -> tuple[float, float]:
        x = 2 + (SPARK_WIDTH - 4) * (start - since_ms) / spread
        return round(x, 1), _spark_y(share, top)

    drawn = [at(*point) for point in shares]
    return Spark(" ".join(f"{x},{y}" for x, y in drawn), drawn[-1], _spark_y(0.05, top))


def _spark_y(share: float, top: float) -> float:
    return round(SPARK_HEIGHT - 2 - (SPARK_HEIGHT - 4) * share / top, 1)


def chart(points: Sequence[Point], step_ms: int) -> Chart | None:
    """A time line of consecutive steps; lines break where a step is missing. None where there are no points."""
    if not points:
        return None
    start_ms, end_ms = points[0].start_ms, points[-1].start_ms + step_ms
    highest = max(max(point.share, min(point.upper, MOST_BAND)) for point in points)
    top = next((top for top in TOPS if top >= highest), 1.0)
    most = max(1, *(point.images for point in points))
    line, bands, hits = [], [], []
    for run in _runs([point for point in points if point.images], step_ms):
        middles = [(_x(p.start_ms + step_ms // 2, start_ms, end_ms), p) for p in run]
        line.append("M" + " L".join(f"{x},{_y(p.share, top)}" for x, p in middles))
        edges = [(_x(p.start_ms + part, start_ms, end_ms), p) for p in run for part in (0, step_ms)]
        over = [f"{x},{_y(p.upper, top)}" for x, p in edges]
        under = [f"{x},{_y(p.lower, top)}" for x, p in reversed(edges)]
        bands.append("M" + " L".join([*over, *under]) + "Z")
    for point in points:
        x = _x(point.start_ms, start_ms, end_ms)
        width = round(_x(point.start_ms + step_ms, start_ms, end_ms) - x, 1)
        tall = round(COUNT_HEIGHT * point.images / most, 1)
        hits.append(Hit(x, width, round(COUNT_HEIGHT - tall, 1), tall, point))
    return Chart(top, most, start_ms, end_ms, " ".join(line), bands, hits)


def _runs(points: Sequence[Point], step_ms: int) -> list[list[Point]]:
    runs: list[list[Point]] = []
    for point in points:
        if runs and point.start_ms - runs[-1][-1].start_ms <= 1.5 * step_ms:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _x(time_ms: int, start_ms: int, end_ms: int) -> float:
    return round(WIDTH * (time_ms - start_ms) / max(end_ms - start_ms, 1), 1)


def _y(share: float, top: float) -> float:
    return round(HEIGHT * (1 - min(share, top) / top), 1)


def histogram(layout: Layout, moved: MovedSignal) -> list[Bar]:
    """Nine bars, ordinary images left and the most unusual right, each as a multiple of what is expected there.

    A bar's height is the square root of seen / expected, cut at nine times: a tail bin of .2 % that holds 5 % would
    hide behind the half of all images in the first one, if heights were counts.
    """
    size = layout.calibration_sizes[layout.index(moved.signal)] + 1
    cuts = [1.0, *(reference_counts(layout, moved.signal) / size).tolist(), 0.0]
    total = max(sum(moved.histogram), 1)
    bars = []
    for i in range(BINS):
        expected = max(cuts[i] - cuts[i + 1], 1 / size)
        ratio = min(9.0, moved.histogram[i] / total / expected)
        tall = round(BAR_HEIGHT * ratio**0.5 / 3, 1)
        bars.append(Bar(i * BAR_WIDTH, round(BAR_HEIGHT - tall, 1), tall, round(BAR_HEIGHT * 2 / 3, 1)))
    return bars
