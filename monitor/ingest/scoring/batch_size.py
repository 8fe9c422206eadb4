"""How many images to score together: more while others wait, fewer once none do or a batch takes long."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_S = 1.0
"""Of a batch larger than the configured one: heat maps, rebalances and the end of the process wait for its end."""


@dataclass
class BatchSize:
    """images: the most that the next batch may have, from `least` to `most`.

    >>> size = BatchSize(64, 256)
    >>> size.after(64, seconds=0.1, waiting=True)
    >>> size.images
    128
    """

    least: int
    most: int
    images: int = 0

    def __post_init__(self) -> None:
        self.images = self.least

    def after(self, images: int, seconds: float, waiting: bool) -> None:
        """Learn from a batch: how many it had, how long scoring took, and whether others wait already."""
        if seconds > LONGEST_S or not waiting:
            self.images = max(self.least, self.images // 2)
        elif images >= self.images:
            self.images = min(self.most, 2 * self.images)
