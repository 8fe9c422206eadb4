"""Rules about the stream itself, not about what its images show: undecodable, frozen, silent."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.core.buckets import DUPLICATES, LONGEST_RUN, REJECTED, Layout, images
from monitor.core.types import Vector, Verdict
from monitor.rules.bounds import share_lower, share_upper


@dataclass(frozen=True)
class Rejected:
    """Breached when surely more than `threshold` of what the stream sent could not be decoded.

    "Surely": the Clopper-Pearson lower bound at `confidence`; `min_images` counts what was sent, readable or not.
    """

    threshold: float = 0.05
    min_images: int = 20
    confidence: float = 0.99

    def __post_init__(self) -> None:
        if not (0 <= self.threshold < 1 and 0.5 <= self.confidence < 1):
            raise ValueError("rejected: needs 0 <= threshold < 1 and 0.5 <= confidence < 1")

    def check(self, layout: Layout) -> None:
        """Every profile carries this rule."""

    def judge(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the signature of window rules
        """Verdict on the summed window; `value` is the share rejected, `bound` its lower bound."""
        bad = int(window[REJECTED])
        sent = images(window) + bad
        share = bad / sent if sent else 0.0
        if sent < max(self.min_images, 1):
            summary = f"{sent} images are too few to judge (the rule needs {self.min_images})"
            return Verdict(None, share, 0.0, self.threshold, sent, summary)
        risk = 1 - self.confidence
        lower, upper = share_lower(bad, sent, risk), share_upper(bad, sent, risk)
        summary = f"{bad} of {sent} images could not be decoded ({share:.1%}, surely {lower:.1%})"
        severity = (lower, share, upper)
        return Verdict(lower > self.threshold, share, lower, self.threshold, sent, summary, severity, "rejected images")


@dataclass(frozen=True)
class Frozen:
    """Breached when the stream repeated one image, byte for byte, at least `run` times in a row.

    A live camera's noise never repeats: a run is a fact, not an estimate. Lower it with care where a source skips
    unchanged frames or sends synthetic images.
    """

    run: int = 10

    def __post_init__(self) -> None:
        if self.run < 2:
            raise ValueError(f"frozen: run must be at least 2 (got {self.run}); every image is a run of 1")

    def check(self, layout: Layout) -> None:
        """Every profile carries this rule."""

    def judge(self, layout: Layout, window: Vector) -> Verdict:  # noqa: ARG002 - the signature of window rules
        """Verdict on the summed window; `value` is the longest run. No images: nothing to judge."""
        total, longest, repeats = images(window), int(window[LONGEST_RUN]), int(window[DUPLICATES])
        if total == 0:
            return Verdict(None, 0.0, 0.0, float(self.run), 0, "no images to judge")
        share = min(1.0, repeats / total)
        summary = f"{longest} identical images in a row, {repeats} repeats among {total} images"
        severity = (share, share, share)
        value = float(longest)
        return Verdict(longest >= self.run, value, value, float(self.run), total, summary, severity, "identical images")


@dataclass(frozen=True)
class Silence:
    """Breached when a stream that used to send has sent nothing for `after_s` of processing time.

    The one rule about the clock: that nothing arrives cannot be seen in event time. So a replay need not repeat it.
    """

    after_s: float = 300.0

    def __post_init__(self) -> None:
        if not self.after_s > 0:
            raise ValueError(f"silence: after_s must be greater than 0 (got {self.after_s})")

    def judge(self, last_seen_ms: int | None, now_ms: int, running_since_ms: int) -> Verdict:
        """Verdict on one stream.

        Args:
            last_seen_ms: when its last image was applied, by the clock of the machine; None if it never sent.
            now_ms: the same clock, now.
            running_since_ms: when this installation began to read without a break: time in which nobody listened is
                not silence.
        """
        if last_seen_ms is None:
            return Verdict(None, 0.0, 0.0, self.after_s, 0, "never sent an image")
        quiet_s = max(0, now_ms - max(last_seen_ms, running_since_ms)) / 1000
        summary = f"no image for {quiet_s:.0f} s (processing time; allowed: {self.after_s:.0f} s)"
        return Verdict(quiet_s > self.after_s, quiet_s, quiet_s, self.after_s, 0, summary, None, "silence")
