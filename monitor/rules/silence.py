"""Rule about the stream itself, not about what its images show: nothing arrives.

The one rule about the clock: that nothing arrives cannot be seen in event time. So a replay does not repeat it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import PositiveFloat

from monitor.core.types import Verdict
from monitor.rules.judge import Judge, LastSeen
from monitor.rules.settings import RuleSettings


class SilenceRule(RuleSettings, Judge):
    """Breached when a stream that used to send has sent nothing for `after_s` of processing time."""

    kind: Literal["silence"]
    after_s: PositiveFloat = 300.0

    reads_clock: ClassVar[bool] = True

    def bind(self, bucket_s: int) -> Judge:  # noqa: ARG002 - it does not look at buckets
        """Itself."""
        return self

    def judge_clock(self, last_seen: LastSeen) -> Mapping[str, Verdict]:
        """{stream: verdict}; `value` is how long nothing has come, in seconds."""
        return {stream: self._verdict(seen_ms, last_seen) for stream, seen_ms in last_seen.seen_ms.items()}

    def _verdict(self, seen_ms: int | None, last_seen: LastSeen) -> Verdict:
        if seen_ms is None:
            return Verdict(None, 0.0, 0.0, self.after_s, 0, "never sent an image")
        quiet_s = max(0, last_seen.now_ms - max(seen_ms, last_seen.running_since_ms)) / 1000
        summary = f"no image for {quiet_s:.0f} s (processing time; allowed: {self.after_s:.0f} s)"
        return Verdict(quiet_s > self.after_s, quiet_s, quiet_s, self.after_s, 0, summary, None, "silence")
