"""The frozen records that the rooms pass to each other.

Times are integers in milliseconds since the epoch (`_ms`), durations are floats in seconds (`_s`), and a bucket is
named by its start in milliseconds. `next_offset` is always the offset of the next record to read: what Kafka commits,
what Redis stores and what a seek takes are the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Vector = NDArray[np.uint32]
"""(V,) counts of one stream in one bucket; `monitor.core.buckets.Layout` says which entry is what."""


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One ordered log: a Kafka partition or one Redis stream."""

    topic: str
    index: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.index}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as its log holds it, not decoded."""

    partition: Partition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    read_ms: int | None = None
    """When it was read, by the clock; None is now. A replay gives its estimate of it."""

    def header(self, name: str) -> bytes | None:
        """The last header of that name (case-insensitive), or None."""
        wanted = name.lower()
        return next((value for key, value in reversed(self.headers) if key.lower() == wanted), None)

    @property
    def size(self) -> int:
        """Bytes this record holds in memory: what the queue limits count."""
        return len(self.value or b"") + len(self.key or b"") + sum(len(k) + len(v) for k, v in self.headers)


@dataclass(frozen=True, slots=True)
class RecordImage:
    """One image of a record, still encoded (bytes) or raw ((H, W) or (H, W, C), uint8 or uint16)."""

    id: str
    stream: str
    event_time_ms: int
    image: bytes | NDArray[Any]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used: `reason` is a short code, `error` the text for a person."""

    record: Record
    stream: str
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position of a partition in Redis."""

    next_offset: int
    high_ms: int
    """Highest event time applied so far; the partition's watermark is this minus the lateness."""
    token: str = ""
    generation: int = 0
    idle: bool = False
    """Its owner has read to the end of the log, and no record has come for the idle time-out."""
    log_id: str = ""
    """Identity of the log (Kafka topic id): a recreated topic starts a new one."""
    rebuild_until: int = 0
    """End of the log when lost state began to be rebuilt; alerts that fire before it are suppressed."""
    recent: bytes = b""
    """Which of the last records were rejected, as `RejectWindow.pack` gives it."""


class ApplyStatus(StrEnum):
    """Answer of `Partitions.apply` for one partition."""

    OK = "ok"
    DUP = "dup"
    """Already applied: the reply of an earlier call was lost."""
    REWIND = "rewind"
    """The cursor in Redis is before `expect` (Redis lost its last writes): seek back to `next_offset`."""
    FENCED = "fenced"
    """Another owner has claimed the partition."""
    LOST = "lost"
    """Redis has no cursor: it is empty, or another server."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Outcome of one partition's apply; `next_offset` is the one in Redis (None when LOST)."""

    status: ApplyStatus
    next_offset: int | None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """State of a stream in a partition, carried from image to image; moves with the partition's cursor."""

    digest: bytes = b""
    """Digest of the last image, for exact duplicates."""
    run: int = 0
    """Length of the current run of identical images (1 = no repeat)."""
    shape: str = ""
    """Size and mode of the last image, for example 640x480/RGB."""
    event_time_ms: int = 0
    """Highest event time of the stream in this partition."""
    seen_ms: int = 0
    """When its last record was applied, by the clock of the machine; silence is measured from it."""
    typical: int = 0
    """How many typical images have been kept; the more, the longer until the next."""
    typical_ms: int = 0
    """Event time of the last typical image."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """An unusual or typical image, to be shown."""

    id: str
    stream: str
    event_time_ms: int
    bucket_ms: int
    p_value: float
    """By `monitor.core.aggregate.unusual_p`, not that of the OOD score."""
    p_values: tuple[float, ...]
    thumbnail: bytes
    """A small JPEG, or empty."""
    fingerprint: str = ""
    """Of the profile that judged it: p-values of two profiles are not comparable."""
    beyond: float = 0.0
    """How far its scores lie outside of those of the calibration, in units of their range; not stored with it."""

    @property
    def name(self) -> str:
        """Of what is kept beside it: the same for its thumbnail and for its line among the worst of a bucket."""
        facts = f"{self.event_time_ms}\0{self.p_value!r}\0{self.id}"
        return xxhash.xxh3_64(facts.encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def rank(self) -> float:
        """Sorts the most unusual first: by p-value; equal ones, such as the smallest possible, by all its scores."""
        # 1e-4 of the p-value: less than the step to the next possible one, 1 / (n + 1), for every p that is kept
        together = float(np.exp(np.log(self.p_values).mean())) if self.p_values else 1.0
        return self.p_value * (1 + 1e-4 * together / (1 + self.beyond))


Sampled = tuple[float, Exemplar]
"""(score, image) of a random sample: it keeps those with the highest scores."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one stream since the state began."""

    applied: int = 0
    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    changes: int = 0
    """Images whose size or mode differs from the one before."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.applied + other.applied,
            self.rejected + other.rejected,
            self.late + other.late,
            self.duplicates + other.duplicates,
            self.changes + other.changes,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything that one partition's batch changes, applied in one transaction."""

    partition: Partition
    token: str
    expect: int
    next_offset: int
    high_ms: int
    vectors: Mapping[tuple[str, int, str], Vector]
    """(profile fingerprint, bucket start ms, stream) -> counts to add."""
    facts: Mapping[str, StreamFacts] = field(default_factory=dict)
    exemplars: Sequence[Exemplar] = ()
    reasons: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(stream, reason code) -> records rejected for it."""
    typical: Sequence[Exemplar] = ()
    """Images that are typical of their streams."""
    sample: Sequence[Sampled] = ()
    """Images for the random sample of their streams."""
    recent: bytes = b""
    """Which of the last records were rejected, as `RejectWindow.pack` gives it."""
    worst: Mapping[tuple[str, int, str], Sequence[Exemplar]] = field(default_factory=dict)
    """The most unusual images of each vector, without thumbnails: alerts name those of their own time."""


class AlertPhase(StrEnum):
    """Life of an alert, as in Prometheus."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says about one stream when a bucket closes.

    `breached` is None where there are too few images to judge: the alert stays as it is. `value`, `bound` and
    `threshold` are in the rule's own unit, which `summary` says in words. `severity` holds the share of drifted images:
    (lower bound, estimate, upper bound), each in [0, 1], or None where the rule does not estimate it.
    """

    breached: bool | None
    value: float
    bound: float
    threshold: float
    images: int
    summary: str
    severity: tuple[float, float, float] | None = None
    cause: str = ""
    """What caused the breach, for example `layer3 above the 2 % cut`."""


def share_in_words(severity: tuple[float, float, float], cause: str = "") -> str:
    """A share of drifted images in words: `at least 6 % of the images drifted (estimate 9 %)`, or `about 9 % ...`.

    Where the cause is a mix of images (`mix2: fewer images ...`) they "are others": none need be unusual. The upper
    bound is left out: it holds only for images that the score tells from normal ones.
    """
    what = "are others" if cause.startswith("mix") else "drifted"
    lower, estimate, _ = (f"{100 * share:.0f} %" for share in severity)
    if lower in {"0 %", estimate}:
        return f"about {estimate} of the images {what}"
    return f"at least {lower} of the images {what} (estimate {estimate})"


@dataclass(frozen=True, slots=True)
class Alert:
    """State of one rule on one stream. `id` is a pure function of monitor, rule, stream and the bucket it began in."""

    rule: str
    stream: str
    phase: AlertPhase = AlertPhase.INACTIVE
    id: str = ""
    since_ms: int = 0
    """Start of the bucket that first breached."""
    fired_ms: int = 0
    clear_since_ms: int = 0
    """Start of the first calm bucket after the last breach; 0 while it fires and is breached. While it is pending: of
    the alert before it."""
    resolved_ms: int = 0
    verdict: Verdict | None = None
    suppressed: bool = False
    """It began to fire while lost counts were rebuilt, and was not published; see `Cursor.rebuild_until`."""
    condition: str = ""
    """Of the images that raised it; empty where the profile's own calibration judged them."""
    breached_in: tuple[str, ...] = ()
    """Conditions in which it is breached; see `monitor.core.conditions.breached_in`, which knows what none means."""
    breached_by: tuple[str, ...] = ()
    """Fingerprints of the profiles by which it was breached; none where it is not about images, or was stored before
    this was known."""
    fresh: tuple[tuple[str, int], ...] = ()
    """(fingerprint, images judged so far) of other profiles that have taken over while it is under way."""


@dataclass(frozen=True, slots=True)
class PastAlert:
    """That an alert was pending or firing, in event time; kept longer than the alert itself."""

    rule: str
    stream: str
    id: str
    since_ms: int
    """When the change began."""
    until_ms: int
    """[since, until); of an alert under way until now."""
