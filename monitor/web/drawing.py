"""Drawings of the pages: numbers to the coordinates of inline SVG. Pure.

Every string is made of numbers: no text from outside gets in, and the templates escape what they write anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitor.core.buckets import BINS, Layout, reference_counts
from monitor.fleet.stream_view import PointJson, SignalJson

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


def spark(points: Sequence[tuple[int, int, int]], since_ms: int, until_ms: int) -> Spark | None:
    """From (start ms, images, unusual ones); None where there are no points."""
    if not points:
        return None
    shares = [(start, passed / images) for start, images, passed in points]
    top = max(SPARK_SHARE, *(share for _, share in shares))
    spread = max(until_ms - since_ms, 1)

    def x(start: int) -> float:
        return round(2 + (SPARK_WIDTH - 4) * (start - since_ms) / spread, 1)

    def y(share: float) -> float:
        return round(SPARK_HEIGHT - 2 - (SPARK_HEIGHT - 4) * share / top, 1)

    drawn = [(x(start), y(share)) for start, share in shares]
    return Spark(" ".join(f"{x},{y}" for x, y in drawn), drawn[-1], y(0.05))


class Chart:
    """A time line of consecutive steps: share with its band above, images per step below.

    Lines break where a step is missing or has no images.

    Args:
        points: one at least.
    """

    def __init__(self, points: Sequence[PointJson], step_ms: int) -> None:
        self.start_ms, self.end_ms = points[0].start, points[-1].start + step_ms
        shares = [
            (p.start, p.share, p.band[0], p.band[1]) for p in points if p.share is not None and p.band is not None
        ]
        highest = max((max(share, min(upper, MOST_BAND)) for _, share, _, upper in shares), default=0.0)
        self.top = next((top for top in TOPS if top >= highest), 1.0)
        lines, self.bands = [], list[str]()
        for run in _runs(shares, step_ms):
            lines.append("M" + " L".join(self._at(start + step_ms // 2, share) for start, share, _, _ in run))
            over = [self._at(start + part, upper) for start, _, _, upper in run for part in (0, step_ms)]
            under = [self._at(start + part, lower) for start, _, lower, _ in run for part in (0, step_ms)]
            self.bands.append("M" + " L".join([*over, *reversed(under)]) + "Z")
        self.share = " ".join(lines)
        self.most_images = max(1, *(point.images for point in points))
        self.strips = [self._strip(point, step_ms) for point in points]
        """(point, x, width, height of its bar in the counts): the parts of the plot that show a point's numbers."""

    def span(self, since_ms: int, until_ms: int) -> tuple[float, float] | None:
        """(x, width) of an episode; None where it is not on this axis."""
        left, right = max(since_ms, self.start_ms), min(until_ms, self.end_ms)
        if right < left:
            return None
        return self._x(left), max(2.0, round(self._x(right) - self._x(left), 1))

    def _strip(self, point: PointJson, step_ms: int) -> tuple[PointJson, float, float, float]:
        x, tall = self._x(point.start), round(COUNT_HEIGHT * point.images / self.most_images, 1)
        return point, x, round(self._x(point.start + step_ms) - x, 1), tall

    def _x(self, time_ms: int) -> float:
        return round(WIDTH * (time_ms - self.start_ms) / max(self.end_ms - self.start_ms, 1), 1)

    def _at(self, time_ms: int, share: float) -> str:
        return f"{self._x(time_ms)},{round(HEIGHT * (1 - min(share, self.top) / self.top), 1)}"


def _runs(
    shares: Sequence[tuple[int, float, float, float]], step_ms: int
) -> list[list[tuple[int, float, float, float]]]:
    """The (start ms, share, lower, upper) of steps that follow each other without a gap."""
    runs: list[list[tuple[int, float, float, float]]] = []
    for step in shares:
        if runs and step[0] - runs[-1][-1][0] <= 1.5 * step_ms:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def histogram(layout: Layout, moved: SignalJson) -> list[tuple[int, float, float]]:
    """(x, y, height) of nine bars, ordinary images left and the most unusual right; what is expected is 2/3 high.

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
        bars.append((i * BAR_WIDTH, round(BAR_HEIGHT - tall, 1), tall))
    return bars
