"""What every rule is: its section of the configuration, and how it judges the counts the evaluator gives it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from monitor.core.buckets import Layout
from monitor.core.settings import Duration, Glob, Names, Section, Share
from monitor.core.table import Table
from monitor.core.types import Vector, Verdict
from monitor.core.windows import Windows

EVIDENCE_MS = 300_000
"""How far back the evidence of a rule without a window reaches: five minutes hold enough images to see what moved."""


class Rows(Protocol):
    """What a rule remembers of streams under one calibration, between buckets.

    It follows from the counts alone: the evaluator stores a row now and then, and makes it again from the buckets
    closed since then. So a stream without counts in a bucket keeps its row, and equal counts give equal rows.
    """

    def get(self, stream: str) -> bytes | None:
        """The packed row of a stream; None where there is none."""

    def put(self, packed: Mapping[str, bytes]) -> None:
        """Take these rows over, {stream: as `get` gave it}, also those that an earlier version packed."""

    def drop(self, streams: Iterable[str]) -> None:
        """Forget these streams."""


class PackedRows(dict[str, bytes]):
    """{stream: packed row}: the rows of a rule that keeps little of a stream; `Rule.judge` replaces them."""

    def put(self, packed: Mapping[str, bytes]) -> None:
        """As `Rows`."""
        self.update(packed)

    def drop(self, streams: Iterable[str]) -> None:
        """As `Rows`."""
        for stream in streams:
            self.pop(stream, None)


@dataclass(frozen=True, slots=True)
class ClosedBucket:
    """A bucket whose counts no longer change: those of the streams that one rule watches under one calibration.

    Each condition of a stream has one of its own. A rule about the stream itself (`Rule.reads_images` is False) gets
    the counts of all of them together: `fingerprint` is `windows.EVERY`, `layout` any, and only the tail is counted.
    """

    start_ms: int
    length_ms: int
    fingerprint: str
    layout: Layout
    counts: Table
    windows: Windows
    """Closed buckets up to this one, as far back as any rule's `evidence_ms` reaches."""
    under_way: Set[str] = frozenset()
    """Streams whose alert is pending or firing. Some may have no counts here: their window moves on too."""

    def window(self, stream: str, window_ms: int) -> Vector:
        """(V,) sum of the stream's counts over the last `window_ms`; of this bucket alone where that is 0."""
        after_ms = self.start_ms - (window_ms or self.length_ms)
        return self.windows.sum(self.layout, self.fingerprint, stream, after_ms)

    def sums(self, window_ms: int) -> NDArray[np.uint32]:
        """(K, V) the same of every stream in `counts`, but for the longest run of a window: it is no sum."""
        if not window_ms:
            return self.counts.counts
        return self.windows.sums(self.fingerprint, self.counts.streams, self.start_ms, window_ms)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule says about a closed bucket."""

    verdicts: Mapping[str, Verdict]
    """{stream: verdict}; the alert of a stream that is left out stays as it is. Nothing but a breach changes a stream
    that is not under way, so of ten thousand quiet ones no verdict is made."""


@dataclass(frozen=True, slots=True)
class LastSeen:
    """When the watched streams last sent an image. All times by the clock of the machine, not event time."""

    seen_ms: Mapping[str, int | None]
    """None for a stream that has never sent one."""
    now_ms: int
    running_since_ms: int
    """Since when this installation has read without a break: while nothing is read, no stream is silent."""


class Rule(Section):
    """One entry of the section `rules`: a name, the streams it watches, how long a breach must last, and its judgement.

    A kind narrows `kind` to its own name, a Literal, adds its own keys, and implements `judge_window`, `judge` or
    `judge_clock`. A rule is immutable: what it remembers between buckets lies in `rows`, which the evaluator keeps.
    """

    keeps_state: ClassVar[bool] = False
    """Whether `judge` remembers anything of a stream."""
    reads_clock: ClassVar[bool] = False
    """Whether `judge_clock` is called, every few seconds, instead of `judge`. A replay leaves such rules out."""

    reads_images: ClassVar[bool] = True
    """Whether it judges by the images' p-values; False where it judges the stream itself."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    streams: Glob = "*"
    except_streams: Names = Field(default=(), alias="except")
    for_s: Duration = Field(default=0.0, alias="for")
    keep_firing_for_s: Duration = Field(default=0.0, alias="keep_firing_for")
    labels: dict[str, str] = Field(default_factory=dict)
    kind: str

    model_config = ConfigDict(populate_by_name=True)

    def watches(self, stream: str) -> bool:
        """Whether `streams` matches (case-sensitive; without wildcards: equality) and none of the exceptions does."""
        left_out = any(fnmatchcase(stream, glob) for glob in self.except_streams)
        return fnmatchcase(stream, self.streams) and not left_out

    @property
    def window_ms(self) -> int:
        """How far back it judges; 0 where it judges the closed bucket alone."""
        return 0

    @property
    def evidence_ms(self) -> int:
        """How far back its evidence reaches: over its own window, so that it shows what the rule judged."""
        return self.window_ms or EVIDENCE_MS

    @property
    def least_images(self) -> int:
        """Images of a stream without which it never breaches, in its window or since the profile began to judge."""
        return 0

    @property
    def settled_images(self) -> int:
        """Images of a stream that another profile must have judged before calm by it ends an alert."""
        return 0

    def check_numbers(self, bucket_s: int) -> None:
        """Raise ValueError where its numbers are not consistent with each other or with buckets of that length."""

    def check(self, layout: Layout) -> None:
        """Raise where the rule cannot judge by a profile; called once, at the start.

        Raises:
            KeyError: the profile has no such signal.
            ValueError: the profile has too few calibration images.
        """

    @property
    def promise(self) -> str:
        """The bound on its false alarms in words, the same for all calibrations; empty where there is none."""
        return ""

    def smallest_fault(self, layout: Layout) -> float | None:
        """Smallest share of faulty images that it can tell from normal ones by the calibration alone, however long.

        Faulty images are taken to lie beyond the cut that it judges by; what a stream shows of itself is left out. None
        where a kind does not say. Errors as `check`.
        """

    def judge_window(self, layout: Layout, window: Vector) -> Verdict:
        """Verdict on one stream by its (V,) counts, summed over `window_ms`; errors as `check`."""
        raise NotImplementedError

    def may_breach(self, layout: Layout, windows: NDArray[np.uint32]) -> NDArray[np.bool_]:  # noqa: ARG002
        """(K,) whether `judge_window` could find a breach: a quick look at (K, V) windows, to judge the others no more.

        A stream may be let through that is not breached, but none that is may be left out.
        """
        return np.ones(len(windows), dtype=bool)

    def judge(self, bucket: ClosedBucket, rows: Any) -> Judgement:  # noqa: ARG002 - keeps no state
        """Verdicts on the streams of a closed bucket that are breached or under way.

        Equal arguments give equal answers, since buckets are repeated.

        Args:
            rows: what `rows` made; after the previous bucket, to be changed to what is remembered after this one.
        """
        asked = dict.fromkeys(sorted(bucket.under_way))
        if len(bucket.counts):
            suspected = np.flatnonzero(self.may_breach(bucket.layout, bucket.sums(self.window_ms)))
            asked.update(dict.fromkeys(bucket.counts.streams[row] for row in suspected.tolist()))
        return Judgement({s: self.judge_window(bucket.layout, bucket.window(s, self.window_ms)) for s in asked})

    def rows(self, layout: Layout) -> Rows:  # noqa: ARG002 - for kinds that keep much
        """No streams yet: where `judge` keeps what it remembers of them, for a rule that keeps state."""
        return PackedRows()

    def judge_clock(self, last_seen: LastSeen) -> Mapping[str, Verdict]:
        """{stream: verdict} by the clock."""
        raise NotImplementedError

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:
        """Start of the bucket in which the change began, called when an alert fires; None: the first that breached.

        Args:
            row: the stream's packed state after the bucket that fired.
            buckets: (start ms, counts) of the stream, oldest first; a change before the first cannot be seen.
        """

    def verdict_since_onset(self, layout: Layout, row: bytes | None, verdict: Verdict, window: Vector) -> Verdict:  # noqa: ARG002
        """The verdict to publish when an alert fires whose onset is known; `verdict` itself unless a rule knows better.

        Args:
            row: as for `onset_ms`.
            window: (V,) the stream's counts since the onset.
        """
        return verdict


class WindowRule(Rule):
    """A rule that judges each stream by its counts over a window, once the window holds enough images."""

    window_s: PositiveFloat = 300.0
    min_images: PositiveInt = 100
    confidence: Share = 0.99

    @property
    def window_ms(self) -> int:
        """Length of the window."""
        return round(self.window_s * 1000)

    @property
    def least_images(self) -> int:
        """What any window must hold."""
        return self.min_images

    @property
    def settled_images(self) -> int:
        """The same."""
        return self.min_images

    def check_numbers(self, bucket_s: int) -> None:  # noqa: ARG002 - buckets of any length do
        """Raise ValueError where the confidence is below one half."""
        if self.confidence < 0.5:
            raise ValueError(f"{self.kind}: confidence must be at least 0.5 (got {self.confidence})")

    def too_few(self, images: int, value: float, threshold: float) -> Verdict:
        """The verdict on a window with fewer than `min_images`: none."""
        summary = f"{images} images are too few to judge (the rule needs {self.min_images})"
        return Verdict(None, value, 0.0, threshold, images, summary)


def one_window(confidence: float) -> str:
    """The promise of a rule that bounds the error of each window."""
    return f"a window of normal images breaches with a probability of at most {100 * (1 - confidence):.2g} %"
