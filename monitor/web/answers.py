"""The answers of the JSON API, which the pages show too; those about streams are `monitor.fleet`'s own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer

from monitor.core.feedback import FeedbackKind
from monitor.core.silences import Silence
from monitor.fleet.answers import Answer, Count, Rounded, Time
from monitor.fleet.comparison import ComparisonJson
from monitor.fleet.images import ExemplarJson, MixJson
from monitor.fleet.overview import StreamJson
from monitor.fleet.renewal import RenewalJson
from monitor.fleet.stream_view import EvidenceJson, PointJson
from monitor.fleet.warming import WarmingJson


class ErrorJson(Answer):
    error: str


class SeverityJson(Answer):
    """Share of drifted images with its interval."""

    lower: float
    estimate: float
    upper: float


class AlertJson(Answer):
    alert_id: str
    rule: str
    kind: str
    """Kind of the rule."""
    stream: str
    phase: Literal["pending", "firing", "resolved"]
    since: Time | None
    fired_at: Time | None
    resolved_at: Time | None
    summary: str
    cause: str
    condition: str
    """Of the images that raised it; empty where the stream has none."""
    value: float | None
    bound: float | None
    threshold: float | None
    images: int | None
    severity: SeverityJson | None
    silenced_by: str | None
    """Id of the silence in force."""
    warming: WarmingJson | None
    """Under way, and judged by another profile than raised it: the images after which calm by that one counts."""
    silence: Silence | None = Field(exclude=True)
    duration_ms: int = Field(exclude=True)
    """In event time, up to now or to its end."""

    @property
    def urgency(self) -> tuple[bool, bool, float, int]:
        """Sorts alerts: those that are not silenced first, then firing ones, the most severe, the oldest."""
        severity = self.severity.estimate if self.severity else 0.0
        return self.silence is not None, self.phase != "firing", -severity, self.since or 0


class AlertsJson(Answer):
    alerts: list[AlertJson]


class SilenceJson(Answer):
    id: str
    matchers: dict[str, str]
    """Name (stream, rule or a label) -> glob."""
    starts: Time
    ends: Time
    author: str
    comment: str
    active: bool

    @classmethod
    def of(cls, silence: Silence, now_ms: int) -> SilenceJson:
        """The answer about one silence."""
        return cls(
            id=silence.id,
            matchers=dict(silence.matchers),
            starts=silence.starts_ms,
            ends=silence.ends_ms,
            author=silence.author,
            comment=silence.comment,
            active=silence.active(now_ms),
        )


class SilencesJson(Answer):
    silences: list[SilenceJson]


class FeedbackJson(Answer):
    """One answer of a person; a later one about the same alert or image replaces it."""

    id: str
    kind: FeedbackKind
    before: FeedbackKind | None
    """What counted until then."""
    alert_id: str
    image: str | None
    """Id of the image; null: the alert as a whole."""
    rule: str
    stream: str
    since: str
    """Of the evidence when it was given, as `until`."""
    until: str
    author: str
    label: str | None
    """Name of the set of images that they belong to; null where none was given."""
    comment: str
    at: str


class FeedbackListJson(Answer):
    feedback: list[FeedbackJson]


class StreamsJson(Answer):
    watermark: Time | None
    """Event time up to which every partition has been read."""
    streams: dict[str, StreamJson]
    """By name, in order."""
    total: Count
    """Streams on all pages."""
    next: str | None
    """What to give as `after` for the next page; null on the last."""


class DependenceJson(Answer):
    """How much the counts of a signal vary, in units of what those of independent images do."""

    signal: str
    """Of all signals the one that varies most for what the profile assumes."""
    observed: Rounded
    at_least: Rounded
    """Lower bound of `observed`."""
    assumed: Rounded
    """By the profile that judges the stream."""
    clear: bool
    """Whether the profile assumes clearly too little: calibrate on frames in order, or set `dependence` in rules."""


class StreamViewJson(StreamJson):
    stream: str
    known_alerts: list[AlertJson]
    evidence: EvidenceJson
    exemplars: list[ExemplarJson]
    """The most unusual first."""
    typical: list[ExemplarJson]
    """What the stream usually shows (p >= .3), the latest first; from before the alert began where such are kept."""
    images_by_condition: dict[str, Count]
    """Images of `history` by their condition, "" without one; empty where the stream has no conditions."""
    dependence: DependenceJson | None
    """Of the images of `history` outside of alerts; null during one, and where too few buckets have images."""
    mix: MixJson | None
    """How the mix of images moved; null where it did not, or not for sure."""
    warming: list[WarmingJson]
    """Rules that have too few images of the stream to judge it now: it is new or slow, or another profile took over."""
    step_s: float
    """Length of a step of `history`."""
    history: list[PointJson]


class LayoutJson(Answer):
    signals: list[str]
    calibration_sizes: list[Count]
    two_sided: list[bool]
    learned: list[bool]
    dependence: list[float]
    mix: list[str]
    """Signals that place an image within the reference: neither end is unusual."""


class ProfileJson(Answer):
    layout: LayoutJson
    manifest: dict[str, Any] | None
    """As `layerwatch fit` wrote it; null where it was not published."""
    streams: list[str]
    """Those whose newest images of the last hour it judged."""


class ReplicaJson(Answer):
    """One process, and what it scores with."""

    name: str
    """Host and process number."""
    profiles: dict[str, str]
    """Address in the configuration -> address of the profile that it has loaded; of a store it names the version."""
    fingerprints: list[str]
    failure: str
    """Why it has not taken the active version up; empty where it has."""


class ProfilesJson(Answer):
    profiles: dict[str, ProfileJson]
    replicas: list[ReplicaJson]
    """The processes that run."""
    disagree: bool
    """Whether two of them score with different profiles: for seconds after another version became active."""
    shadows: list[ComparisonJson]
    """Profiles in shadow beside those that judge, over the last hour; five minutes where there are many streams."""
    renewals: list[RenewalJson]
    """The last renewal of each store of profiles, the latest first."""


class PartitionJson(Answer):
    partition: str
    next_offset: int | None
    newest_event: Time | None
    idle: bool
    rebuilding: bool = Field(exclude=True)
    """Its counts were lost and are being read again."""


class UndeliveredJson(Answer):
    receiver: str
    alert: str
    reason: str


class ShardJson(Answer):
    held: bool
    """Whether a process judges it and delivers its alerts."""
    decided_bucket: Time | None


class HealthJson(Answer):
    ready: bool
    reason: str
    version: str
    redis_ms: Annotated[float, PlainSerializer(lambda ms: round(ms, 3), return_type=float)]
    newest_event: Time | None
    watermark: Time | None
    decided_bucket: Time | None
    """By every shard."""
    shards: list[ShardJson]
    """Slices of the streams, by number."""
    partitions: list[PartitionJson]
    failing_receivers: list[str]
    undelivered: list[UndeliveredJson]
    outbox_dropped: Count
    images_over_stream_limit: Count
    behind: int = Field(exclude=True)
    """Sealed buckets that the pages have still to read."""
