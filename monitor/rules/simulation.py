"""Images that a fault costs until the alarm: streams drawn from scored images, judged by the rules themselves. Pure.

Each stream sends one image a second: normal ones at first, then a share of faulty ones. Both are drawn with replacement
from scored images; the daemon's own code counts their p-values in buckets, judges these and steps the alerts. All
streams are judged side by side, and each as if it were alone: the size of a fleet is a setting of the rules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from monitor.core.alert_state import UNDER_WAY, Policy, step
from monitor.core.buckets import Layout, fill_groups
from monitor.core.table import Table
from monitor.core.types import Alert, AlertPhase, Vector
from monitor.core.windows import Windows
from monitor.rules.bounds import Floats
from monitor.rules.rule import ClosedBucket, Rows, Rule

_FINGERPRINT = "simulated"
_NORMAL = ""
"""The set of the streams without a fault."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        share: of faulty images from the beginning of the fault on, in (0, 1].
        streams: with each fault, and as many without one.
        before: normal images before the fault: the sequential rule has then tightened its reference twice.
        within: images from the beginning of the fault to the end of the stream.
        seed: the same seed gives the same streams.
    """

    share: float = 0.2
    streams: int = 20
    before: int = 2000
    within: int = 5000
    seed: int = 0


@dataclass(frozen=True)
class Delays:
    """What one rule did on the streams with one fault.

    Attributes:
        images: (K,) from the beginning of the fault to the alarm; infinite where none came within the scenario, NaN
            where an alarm on normal images was still under way when the fault began.
    """

    images: Floats

    @property
    def early(self) -> int:
        """Streams whose alarm was under way before the fault; they are left out of the quantiles."""
        return int(np.isnan(self.images).sum())

    def quantile(self, share: float) -> int | None:
        """Images within which at least that share of the streams alarmed; None where fewer did, or no stream counts."""
        counted = np.sort(self.images[~np.isnan(self.images)])
        found = counted[max(0, math.ceil(share * len(counted) - 1e-9) - 1)] if len(counted) else math.inf
        return None if math.isinf(found) else int(found)

    @classmethod
    def first(cls, rules: Sequence[Delays]) -> Delays:
        """Of the first alarm of any of the rules, which are at least one."""
        return cls(np.stack([delays.images for delays in rules]).min(axis=0))  # NaN where any is


@dataclass(frozen=True)
class Simulated:
    """faults: fault -> rule -> delays. false_alarms: rule -> cause -> alarms on all normal streams; the most frequent
    cause first. images: of these streams."""

    faults: Mapping[str, Mapping[str, Delays]]
    false_alarms: Mapping[str, Mapping[str, int]]
    images: int


def simulate(
    rules: Sequence[Rule],
    layout: Layout,
    p_values: tuple[Floats, Mapping[str, Floats]],
    bucket_s: int = 10,
    scenario: Scenario = Scenario(),
    progress: Callable[[float], None] = lambda _: None,
) -> Simulated:
    """Play streams with each fault, and streams without one, to the rules.

    Args:
        rules: at least one; they can judge by the layout (`Rule.check`), do not read the clock, and judge all streams.
        p_values: (N, S) of normal images that are new to the profile, and {fault: (M, S) of faulty ones}.
        bucket_s: length of a bucket in seconds, and the number of its images.
        progress: called with the share that is done.
    """
    normal, faults = p_values
    calm = -(-scenario.before // bucket_s)  # the fault begins with a bucket
    buckets = calm + -(-scenario.within // bucket_s)
    sizes = {_NORMAL: len(normal), **{fault: len(p) for fault, p in faults.items()}}
    images = _drawn(sizes, (calm * bucket_s, buckets * bucket_s), scenario)
    pool = np.concatenate([normal, *faults.values()])
    length_ms = bucket_s * 1000
    watches = [_Watch(rule, images, _names(0, scenario), length_ms) for rule in rules]
    windows = _RunningTotals(length_ms, max(rule.window_ms for rule in rules))
    for i in range(buckets):
        awaited = set().union(*(watch.awaited for watch in watches))
        shown = {
            stream: rows[i * bucket_s : (i + 1) * bucket_s] for stream, rows in images.items() if stream in awaited
        }
        p, of = pool[np.concatenate(list(shown.values()))], np.repeat(np.arange(len(shown)), bucket_s)
        counts = dict(zip(shown, fill_groups(layout, p, of, len(shown)), strict=True))
        windows.add(i * length_ms, {_FINGERPRINT: counts})
        for watch in watches:
            own = {stream: vector for stream, vector in counts.items() if stream in watch.awaited}
            bucket = ClosedBucket(
                i * length_ms, length_ms, _FINGERPRINT, layout, Table.of(own), windows, watch.under_way
            )
            watch.judge(bucket)
            if i + 1 >= calm:
                watch.await_no_more()
        progress((i + 1) / buckets)
    return Simulated(
        faults={
            fault: {watch.rule.name: watch.delays(_names(k, scenario), calm * length_ms) for watch in watches}
            for k, fault in enumerate(faults, start=1)
        },
        false_alarms={watch.rule.name: dict(watch.false_causes.most_common()) for watch in watches},
        images=scenario.streams * buckets * bucket_s,
    )


class _RunningTotals(Windows):
    """The same sums, each as the difference of two totals; thirty buckets of every stream are too many to add again.

    Every stream has images in every bucket, from time 0 on. Without the longest run, which is not a sum.
    """

    def __init__(self, length_ms: int, reach_ms: int) -> None:
        super().__init__(reach_ms)
        self._length_ms, self._kept = length_ms, reach_ms // length_ms + 2
        self._totals: dict[str, dict[int, Vector]] = {}

    def add(self, bucket_ms: int, sealed: Mapping[str, Mapping[str, Vector]]) -> None:
        i = bucket_ms // self._length_ms
        for stream, vector in sealed[_FINGERPRINT].items():
            totals = self._totals.setdefault(stream, {0: np.zeros_like(vector)})
            totals[i + 1] = totals[i] + vector
            totals.pop(i - self._kept, None)

    def sum(self, layout: Layout, fingerprint: str, stream: str, after_ms: int) -> Vector:  # noqa: ARG002 - one profile
        totals = self._totals[stream]
        return totals[max(totals)] - totals[max(0, after_ms // self._length_ms + 1)]

    def sums(self, fingerprint: str, streams: Sequence[str], until_ms: int, window_ms: int) -> NDArray[np.uint32]:
        layout = Layout((), (), (), (), ())  # it is asked for where there are no buckets
        return np.stack([self.sum(layout, fingerprint, stream, until_ms - window_ms) for stream in streams])


class _Watch:
    """One rule and what has become of its alerts."""

    def __init__(self, rule: Rule, streams: Iterable[str], normal: Iterable[str], length_ms: int) -> None:
        self.rule, self._normal = rule, set(normal)
        self.fired_ms: dict[str, list[int]] = {stream: [] for stream in streams}
        self.awaited = set(self.fired_ms)
        """Streams that it still judges: all normal ones, and those whose alarm has not come."""
        self.false_causes: Counter[str] = Counter()
        self._alerts = {stream: Alert(rule.name, stream) for stream in self.fired_ms}
        self._rows: Rows | None = None
        times = (round(1000 * seconds) for seconds in (rule.for_s, rule.keep_firing_for_s))
        self._policy = Policy("", length_ms, *times)

    def judge(self, bucket: ClosedBucket) -> None:
        self._rows = self._rows or self.rule.rows(bucket.layout)
        judgement = self.rule.judge(bucket, self._rows)
        for stream, verdict in judgement.verdicts.items():
            before = self._alerts[stream]
            after = self._alerts[stream] = step(before, verdict, bucket.start_ms, self._policy)
            if self._fires(stream) and before.phase is not AlertPhase.FIRING:
                self.fired_ms[stream].append(after.fired_ms)
                if stream in self._normal:
                    self.false_causes[verdict.cause] += 1

    @property
    def under_way(self) -> Set[str]:
        """Streams whose alert is pending or firing, of those awaited."""
        return {stream for stream in self.awaited if self._alerts[stream].phase in UNDER_WAY}

    def await_no_more(self) -> None:
        """Judge faulty streams that fire no longer."""
        self.awaited -= {stream for stream in self.awaited - self._normal if self._fires(stream)}

    def delays(self, streams: Sequence[str], begin_ms: int) -> Delays:
        """Images, which come one a second, from `begin_ms` to the first alarm."""
        return Delays(np.array([self._delay(stream, begin_ms) for stream in streams]))

    def _delay(self, stream: str, begin_ms: int) -> float:
        later = [fired_ms for fired_ms in self.fired_ms[stream] if fired_ms > begin_ms]
        if later:
            return (later[0] - begin_ms) / 1000
        return math.nan if self._fires(stream) else math.inf

    def _fires(self, stream: str) -> bool:
        return self._alerts[stream].phase is AlertPhase.FIRING


def _names(k: int, scenario: Scenario) -> list[str]:
    """Of the streams with the k-th fault; k = 0 are those without one."""
    return [f"{k}.{i}" for i in range(scenario.streams)]


def _drawn(sizes: Mapping[str, int], times: tuple[int, int], scenario: Scenario) -> dict[str, NDArray[np.int64]]:
    """{stream: its images}, as rows of all sets one below the other.

    Args:
        sizes: {set: its images}, the normal one first.
        times: images before the fault, and in all.
    """
    begin, total = times
    images: dict[str, NDArray[np.int64]] = {}
    above, shape = 0, (scenario.streams, total)
    for k, (fault, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([scenario.seed, crc32(fault.encode())])  # whatever other faults there are
        rows = rng.integers(sizes[_NORMAL], size=shape)
        faulty = (rng.random(shape) < scenario.share) & (np.arange(total) >= begin) & (k > 0)
        rows = np.where(faulty, above + rng.integers(size, size=shape), rows)
        images.update(zip(_names(k, scenario), rows, strict=True))
        above += size
    return images
