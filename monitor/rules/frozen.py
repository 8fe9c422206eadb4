"""Rule about the stream itself, not about what its images show: the same image again and again."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from monitor.core.buckets import DUPLICATES, LONGEST_RUN, Layout, images
from monitor.core.types import Vector, Verdict
from monitor.rules.judge import WindowJudge
from monitor.rules.settings import RuleSettings


class FrozenRule(RuleSettings, WindowJudge):
    """Breached when the stream repeated one image, byte for byte, at least `run` times in a row.

    A live camera's noise never repeats: a run is a fact, not an estimate. Lower it with care where a source skips
    unchanged frames or sends synthetic images.
    """

    kind: Literal["frozen"]
    run: PositiveInt = 10
    """Identical consecutive images from which a stream counts as frozen."""

    def bind(self, bucket_s: int) -> WindowJudge:  # noqa: ARG002 - buckets of any length do
        """Itself; ValueError where the run is a single image."""
        if self.run < 2:
            raise ValueError(f"frozen: run must be at least 2 (got {self.run}); every image is a run of 1")
        return self

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the tail is the same in all
        """Verdict on the summed window; `value` is the longest run. No images: nothing to judge."""
        total, longest, repeats = images(window), int(window[LONGEST_RUN]), int(window[DUPLICATES])
        if total == 0:
            return Verdict(None, 0.0, 0.0, float(self.run), 0, "no images to judge")
        share = min(1.0, repeats / total)
        summary = f"{longest} identical images in a row, {repeats} repeats among {total} images"
        severity = (share, share, share)
        value = float(longest)
        return Verdict(longest >= self.run, value, value, float(self.run), total, summary, severity, "identical images")
