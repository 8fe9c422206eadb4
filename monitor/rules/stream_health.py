"""Rules about the stream itself, not about what its images show: rejected, frozen, silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from monitor.core.buckets import DUPLICATES, IMAGES, LONGEST_RUN, REJECTED, Layout, images
from monitor.core.settings import Share
from monitor.core.types import Vector, Verdict
from monitor.rules.bounds import change_start, share_bounds
from monitor.rules.rule import LastSeen, Rule, WindowRule


class RejectedRule(WindowRule):
    """Breached when more than `threshold` of the images sent could not be decoded.

    The share is judged by its Clopper-Pearson lower bound at `confidence`; `min_images` counts all images sent.
    """

    reads_images: ClassVar[bool] = False

    kind: Literal["rejected"]
    threshold: Share = 0.05
    min_images: PositiveInt = 20

    def may_breach(self, layout: Layout, windows: NDArray[np.uint32]) -> NDArray[np.bool_]:  # noqa: ARG002
        """(K,) whether the share rejected is beyond the threshold: its lower bound is less."""
        bad = windows[:, REJECTED].astype(np.int64)
        sent = bad + windows[:, IMAGES]
        return (sent >= self.min_images) & (bad > self.threshold * sent)

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the tail is the same in all
        """Verdict on the summed window; `value` is the share rejected, `bound` its lower bound."""
        bad = int(window[REJECTED])
        sent = images(window) + bad
        share = bad / sent if sent else 0.0
        if sent < self.min_images:
            return self.too_few(sent, share, self.threshold)
        risk = 1 - self.confidence
        lower, upper = share_bounds(bad, sent, risk)
        summary = (
            f"{bad} of {sent} images could not be decoded ({share:.1%}; "
            f"at least {lower:.1%} with {self.confidence:.1%} confidence)"
        )
        severity = (lower, share, upper)
        return Verdict(lower > self.threshold, share, lower, self.threshold, sent, summary, severity, "rejected images")

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:  # noqa: ARG002
        """Start of the bucket from which on a larger share is rejected than is allowed."""
        if not buckets:
            return None
        counts = np.stack([vector for _, vector in buckets]).astype(np.float64)
        sent = counts[:, IMAGES] + counts[:, REJECTED]
        return buckets[change_start(counts[:, REJECTED], sent, self.threshold)][0]


class FrozenRule(Rule):
    """Breached when the stream repeated one image, byte for byte, at least `run` times in a row.

    The noise of a live camera never repeats, so a run is no coincidence. Lower `run` with care where a source skips
    unchanged frames or sends synthetic images.
    """

    reads_images: ClassVar[bool] = False

    kind: Literal["frozen"]
    run: PositiveInt = 10
    """Identical consecutive images from which a stream counts as frozen."""

    def check_numbers(self, bucket_s: int) -> None:  # noqa: ARG002 - buckets of any length do
        """Raise ValueError where the run is a single image."""
        if self.run < 2:
            raise ValueError(f"frozen: run must be at least 2 (got {self.run}); every image is a run of 1")

    def may_breach(self, layout: Layout, windows: NDArray[np.uint32]) -> NDArray[np.bool_]:  # noqa: ARG002
        """(K,) by the run itself: it judges the closed bucket alone."""
        return np.asarray(windows[:, LONGEST_RUN] >= self.run)

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the tail is the same in all
        """Verdict on the closed bucket; `value` is the longest run. No images: nothing to judge."""
        total, longest, repeats = images(window), int(window[LONGEST_RUN]), int(window[DUPLICATES])
        if total == 0:
            return Verdict(None, 0.0, 0.0, float(self.run), 0, "no images to judge")
        share = min(1.0, repeats / total)
        summary = f"{longest} identical images in a row, {repeats} repeats among {total} images"
        severity = (share, share, share)
        value = float(longest)
        return Verdict(longest >= self.run, value, value, float(self.run), total, summary, severity, "identical images")


class SilenceRule(Rule):
    """Breached when a stream that used to send has sent nothing for `after_s` of processing time."""

    # event time does not advance while nothing arrives, so this rule alone reads the clock, and a replay omits it
    reads_clock: ClassVar[bool] = True
    reads_images: ClassVar[bool] = False

    kind: Literal["silence"]
    after_s: PositiveFloat = 300.0

    def judge_clock(self, last_seen: LastSeen) -> Mapping[str, Verdict]:
        """{stream: verdict}; `value` is how long nothing has come, in seconds."""
        return {stream: self._verdict(seen_ms, last_seen) for stream, seen_ms in last_seen.seen_ms.items()}

    def _verdict(self, seen_ms: int | None, last_seen: LastSeen) -> Verdict:
        if seen_ms is None:
            return Verdict(None, 0.0, 0.0, self.after_s, 0, "never sent an image")
        quiet_s = max(0, last_seen.now_ms - max(seen_ms, last_seen.running_since_ms)) / 1000
        summary = f"no image for {quiet_s:.0f} s (processing time; allowed: {self.after_s:.0f} s)"
        return Verdict(quiet_s > self.after_s, quiet_s, quiet_s, self.after_s, 0, summary, None, "silence")
