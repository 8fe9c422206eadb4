"""The protocol between the evaluator, which has the counts, and the rules, which judge them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from monitor.core.buckets import Layout
from monitor.core.types import Vector, Verdict
from monitor.core.windows import Windows

EVIDENCE_MS = 300_000
"""How far back the evidence of a rule without a window reaches: five minutes hold enough images to see what moved."""


@dataclass(frozen=True, slots=True)
class ClosedBucket:
    """A bucket whose counts no longer change: those of the streams that one rule watches under one profile."""

    start_ms: int
    length_ms: int
    fingerprint: str
    layout: Layout
    counts: Mapping[str, Vector | None]
    """{stream: its counts}; None for a stream without images here whose alert is under way: its window moves on too."""
    windows: Windows
    """Closed buckets up to this one, as far back as any rule's `evidence_ms` reaches."""

    def window(self, stream: str, window_ms: int) -> Vector:
        """(V,) sum of the stream's counts over the last `window_ms`; of this bucket alone where that is 0."""
        after_ms = self.start_ms - (window_ms or self.length_ms)
        return self.windows.sum(self.layout, self.fingerprint, stream, after_ms)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule says about a closed bucket."""

    verdicts: Mapping[str, Verdict]
    """{stream: verdict}; a stream that is left out keeps its alert as it is."""
    rows: Mapping[str, bytes] = field(default_factory=dict)
    """{stream: packed state} that changed: stored together with the verdicts, and given back with the next bucket."""


@dataclass(frozen=True, slots=True)
class LastSeen:
    """When the watched streams last sent an image. All times by the clock of the machine, not event time."""

    seen_ms: Mapping[str, int | None]
    """None for a stream that has never sent one."""
    now_ms: int
    running_since_ms: int
    """When this installation began to read without a break: while nothing is read, no stream is silent."""


class Judge:
    """Judges for one configured rule. The defaults judge nothing: a rule overrides what it needs.

    A judge is immutable. What it remembers from bucket to bucket is packed into rows, which the evaluator stores.
    """

    keeps_state: ClassVar[bool] = False
    """Whether it returns rows, and needs them back."""
    reads_clock: ClassVar[bool] = False
    """Whether `judge_clock` is asked, every few seconds, instead of `judge`. A replay leaves such rules out."""

    @property
    def window_ms(self) -> int:
        """How far back it judges; 0 where it looks at the closed bucket alone."""
        return 0

    @property
    def evidence_ms(self) -> int:
        """How far back its evidence reaches: over its own window, so that it shows what the rule judged."""
        return self.window_ms or EVIDENCE_MS

    def check(self, layout: Layout) -> None:
        """Raise where a profile cannot carry the rule; asked once, at the start.

        Raises:
            KeyError: the profile has no such signal.
            ValueError: the profile has too few calibration images.
        """

    def judge(self, bucket: ClosedBucket, rows: Mapping[str, bytes]) -> Judgement:  # noqa: ARG002 - see the class
        """Verdicts on the streams of a closed bucket; equal arguments give equal answers, since buckets are repeated.

        Args:
            rows: {stream: packed state} as it stands after the bucket before.
        """
        return Judgement({})

    def judge_clock(self, last_seen: LastSeen) -> Mapping[str, Verdict]:  # noqa: ARG002 - see the class
        """{stream: verdict} by the clock."""
        return {}

    def onset_ms(
        self,
        layout: Layout,  # noqa: ARG002 - see the class
        row: bytes | None,  # noqa: ARG002
        buckets: Sequence[tuple[int, Vector]],  # noqa: ARG002
    ) -> int | None:
        """Start of the bucket in which the change began that has just fired; None: in the first that breached.

        Args:
            row: the stream's packed state after the bucket that fired.
            buckets: (start ms, counts) of the stream, oldest first; nothing before the first can be seen.
        """
        return None


class WindowJudge(Judge):
    """Judges each stream by the sum of its counts over `window_ms`."""

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:
        """Verdict on the (V,) summed counts of one stream; errors as `check`."""
        raise NotImplementedError

    def judge(self, bucket: ClosedBucket, rows: Mapping[str, bytes]) -> Judgement:  # noqa: ARG002 - keeps no state
        """Each stream's window, up to the closed bucket."""
        return Judgement({s: self.judge_window(bucket.layout, bucket.window(s, self.window_ms)) for s in bucket.counts})
