"""Rule about the stream itself, not about what its images show: too much of it cannot be decoded."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from monitor.core.buckets import REJECTED, Layout, images
from monitor.core.settings import Share
from monitor.core.types import Vector, Verdict
from monitor.rules.bounds import share_lower, share_upper
from monitor.rules.judge import WindowJudge
from monitor.rules.settings import RuleSettings


class RejectedRule(RuleSettings, WindowJudge):
    """Breached when surely more than `threshold` of what the stream sent could not be decoded.

    "Surely": the Clopper-Pearson lower bound at `confidence`; `min_images` counts what was sent, readable or not.
    """

    kind: Literal["rejected"]
    window_s: PositiveFloat = 300.0
    threshold: Share = 0.05
    min_images: PositiveInt = 20
    confidence: Share = 0.99

    @property
    def window_ms(self) -> int:
        """Length of the window."""
        return round(self.window_s * 1000)

    def bind(self, bucket_s: int) -> WindowJudge:  # noqa: ARG002 - buckets of any length do
        """Itself; ValueError where the confidence is below one half."""
        if self.confidence < 0.5:
            raise ValueError("rejected: needs 0 <= threshold < 1 and 0.5 <= confidence < 1")
        return self

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the tail is the same in all
        """Verdict on the summed window; `value` is the share rejected, `bound` its lower bound."""
        bad = int(window[REJECTED])
        sent = images(window) + bad
        share = bad / sent if sent else 0.0
        if sent < self.min_images:
            summary = f"{sent} images are too few to judge (the rule needs {self.min_images})"
            return Verdict(None, share, 0.0, self.threshold, sent, summary)
        risk = 1 - self.confidence
        lower, upper = share_lower(bad, sent, risk), share_upper(bad, sent, risk)
        summary = f"{bad} of {sent} images could not be decoded ({share:.1%}, surely {lower:.1%})"
        severity = (lower, share, upper)
        return Verdict(lower > self.threshold, share, lower, self.threshold, sent, summary, severity, "rejected images")
