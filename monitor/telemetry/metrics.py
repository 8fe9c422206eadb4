"""Every Prometheus metric, with unit and meaning, in one place; `docs/metrics.md` is made from it. Labels are bounded.

What a process counts itself stands first: each replica exports it, and sums over replicas are right. What is read from
Redis (FLEET) is the same for all replicas: only the holder of the evaluator's lease exports it, see `fleet.exporter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nothing here reads

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_counter = partial(Counter, registry=REGISTRY)
_gauge = partial(Gauge, registry=REGISTRY)

STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From one small JPEG to a stuck Redis."""
SCORE_BUCKETS = (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)
"""Fine where dlsr's normal images lie (.1 to 30 of one layer, 3 to 70 of the joined score), coarse beyond."""
_histogram = partial(Histogram, registry=REGISTRY, buckets=STAGE_BUCKETS_S)

BUILD = _gauge(
    "layerwatch_build_info",
    "1, labelled with the version that runs, the monitor it is part of and its status page",
    ("version", "monitor", "status_page"),
)
PROFILE = _gauge("layerwatch_profile_info", "1 for every loaded profile", ("fingerprint", "detector", "backbone"))

PROFILE_SWITCHES = _counter(
    "layerwatch_profile_switches_total",
    "Attempts to take up another active version of a profile while running: `done`, or `failed`: the old one goes on",
    ("outcome",),
)

# ------------------------------------------------------------------------------------------------ this process

IMAGES_APPLIED = _counter("layerwatch_images_applied_total", "Images counted by this process")
RECORDS_REJECTED = _counter("layerwatch_records_rejected_total", "Records dead-lettered, by reason", ("reason",))
IMAGES_PARTLY_USED = _counter(
    "layerwatch_images_partly_used_total",
    "Images of which a part was not used: further pictures in the file, values above the profile's white level",
    ("part",),
)
FUTURE_RECORDS = _counter("layerwatch_future_timestamps_total", "Images whose timestamp was too far ahead of the clock")
APPLIES = _counter("layerwatch_applies_total", "Applied batches by status", ("status",))
STAGE_SECONDS = _histogram(
    "layerwatch_stage_seconds",
    "Duration of one decode (a record), score (a batch), heat (maps of some of the worst) or apply (a round trip)",
    ("stage",),
)
SCORES = _histogram(
    "layerwatch_score",
    "Images by the raw score of each learned signal; higher is more unusual, normal is what the profile was fitted on",
    ("profile", "signal"),
    buckets=SCORE_BUCKETS,
)
UNCONDITIONED = _counter(
    "layerwatch_images_without_condition_total",
    "Images of streams with conditions that were judged by the profile's own calibration, since what names their "
    "condition was missing, or names one that the profile has no calibration for (unknown)",
    ("reason",),
)
BATCH_IMAGES = _histogram(
    "layerwatch_batch_images", "Images scored together", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
EVIDENCE = _counter(
    "layerwatch_evidence_images_total",
    "Worst images by what became of their heat map and large picture: kept, overtaken by worse ones, left out because "
    "too many waited, failed",
    ("outcome",),
)
SHADOW_FAILURES = _counter(
    "layerwatch_shadow_failures_total", "Images that a profile in shadow could not score; they are counted as ever"
)
HALVED = _counter("layerwatch_batches_halved_total", "Batches halved because memory ran out")
DEVICE_MEMORY = _gauge(
    "layerwatch_device_memory_bytes",
    "Memory of the accelerator that scoring runs on: `used` by this process, `total` of the device; none on a CPU",
    ("device", "kind"),
)
QUEUE_BYTES = _gauge("layerwatch_queue_bytes", "Bytes of records between poll and apply")
QUEUE_LIMIT_BYTES = _gauge("layerwatch_queue_limit_bytes", "Where polling pauses (pipeline.queue_bytes)")
PAUSED = _gauge("layerwatch_paused", "1 while polling is paused because the queue is full")
PARTITIONS_OWNED = _gauge("layerwatch_partitions_owned", "Partitions that this process owns and reads")
LAG_RECORDS = _gauge("layerwatch_lag_records", "Records behind the end of the log", ("topic", "partition"))
LAST_POLL = _gauge("layerwatch_last_poll_timestamp_seconds", "When the source was last polled")
LAST_APPLY = _gauge("layerwatch_last_apply_timestamp_seconds", "When counts were last applied")
SOURCE_REBUILDS = _counter("layerwatch_source_rebuilds_total", "Source clients closed after an error and built again")
DECODERS_REPLACED = _counter(
    "layerwatch_decoders_replaced_total", "Decoder processes replaced because they died or timed out", ("reason",)
)
DECODE_HOLDS = _counter(
    "layerwatch_decode_holds_total",
    "Attempts at records whose store or schema registry did not answer; they are tried again",
)
PARTITIONS_STOPPED = _gauge(
    "layerwatch_partitions_stopped", "Partitions of this process that are stopped until a person acts"
)
DEAD_LETTER_ERRORS = _counter(
    "layerwatch_dead_letter_errors_total", "Failed attempts to write dead letters; reading waits"
)
STATE_LOST = _counter("layerwatch_state_lost_total", "Partitions whose counts Redis had lost and that were rebuilt")
GAPS = _counter("layerwatch_gap_records_total", "Records that retention removed unread")
STREAMS_OVER_LIMIT = _gauge(
    "layerwatch_images_beyond_stream_limit",
    "Images of streams beyond stream.max_streams, counted together, in the partitions read here",
)
REDIS_ERRORS = _counter("layerwatch_redis_errors_total", "Calls that Redis did not answer")
REDIS_REFUSALS = _counter(
    "layerwatch_redis_refusals_total",
    "Calls that Redis answered by refusing to work, by its error code (OOM, READONLY, MISCONF, ...)",
    ("code",),
)
REDIS_SECONDS = _histogram(
    "layerwatch_redis_seconds",
    "Duration of one round trip to Redis, by the script it runs; `read` for plain commands",
    ("call",),
)
VERDICTS_WRITTEN = _counter("layerwatch_verdicts_written_total", "Lines acknowledged by the sink of per-image verdicts")
VERDICT_ERRORS = _counter(
    "layerwatch_verdict_errors_total", "Failed attempts to write per-image verdicts; reading waits"
)

# ------------------------------------------------------------------------------------------------ evaluation

LEASE = _gauge(
    "layerwatch_evaluator_lease", "1 where this process judges the first shard, closes buckets and exports the fleet"
)
SHARDS = _gauge("layerwatch_shards", "Shards that the streams are divided into, as this process sees it")
SHARDS_HELD = _gauge("layerwatch_shards_held", "Shards that this process judges and delivers alerts of")
MUTED = _gauge("layerwatch_muted", "1 while new alerts are held back because lost counts are being rebuilt")
WATERMARK = _gauge(
    "layerwatch_watermark_timestamp_seconds", "Event time up to which every partition in use has been read"
)
BUCKETS_HELD_SECONDS = _gauge(
    "layerwatch_buckets_held_seconds",
    "For how long images have passed the end of an open bucket, and nothing has moved towards closing it",
)
BUCKETS_CLOSED = _counter("layerwatch_buckets_closed_total", "Buckets closed and judged here")
EVALUATION_SECONDS = _histogram("layerwatch_evaluation_seconds", "Time to judge one closed bucket")
TRANSITIONS = _counter("layerwatch_alert_transitions_total", "Changes of an alert's phase, by rule", ("rule", "phase"))
DELIVERIES = _counter("layerwatch_deliveries_total", "Attempts to deliver an alert", ("receiver", "outcome"))
DELIVERY_SECONDS = _histogram("layerwatch_delivery_seconds", "Duration of one attempt to deliver", ("receiver",))

# ------------------------------------------------------------------------------------------------ the fleet


Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class FleetMetric:
    """A metric of the whole monitor, computed from Redis at each read; it has the label `monitor` besides its own."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...]


FLEET: list[FleetMetric] = []


def _fleet(name: str, meaning: str, labels: tuple[str, ...] = (), kind: Kind | None = None) -> FleetMetric:
    """Add to FLEET; without a kind, a name that ends in `_total` is a counter's and any other a gauge's."""
    FLEET.append(FleetMetric(name, kind or ("counter" if name.endswith("_total") else "gauge"), meaning, labels))
    return FLEET[-1]


STREAMS = _fleet("layerwatch_streams", "Streams known")
PARTITIONS = _fleet("layerwatch_partitions", "Partitions known, whichever process reads them")
PARTITIONS_LEFT_OUT = _fleet(
    "layerwatch_partitions_left_out",
    "Partitions that hold no bucket open because nobody reads them: `unread`, or `retired` (no longer configured)",
    ("state",),
)
REPLICAS = _fleet(
    "layerwatch_replicas",
    "Processes that score with a profile; while another version is taken up, some score with one, some with the other",
    ("fingerprint",),
)
BUCKET_LAG = _fleet(
    "layerwatch_bucket_lag_seconds", "How far the oldest bucket that is due but not judged lies behind the watermark"
)
STREAM_IMAGES = _fleet("layerwatch_stream_images_total", "Images counted, since the state began", ("stream",))
STREAM_REJECTED = _fleet("layerwatch_stream_rejected_total", "Records that could not be used", ("stream",))
STREAM_LATE = _fleet("layerwatch_stream_late_total", "Images counted in a later bucket than their own", ("stream",))
STREAM_DUPLICATES = _fleet("layerwatch_stream_duplicates_total", "Images equal to the one before", ("stream",))
STREAM_OOD_SHARE = _fleet(
    "layerwatch_stream_ood_share",
    "Share of the last five minutes' images (event time, closed buckets) with p <= level",
    ("stream", "level"),
)
STREAM_OOD_BAND = _fleet(
    "layerwatch_stream_ood_band",
    "Where that share lies in distribution at least 99 times in 100: `bound` is lower or upper",
    ("stream", "level", "bound"),
)
STREAM_P_VALUE = _fleet(
    "layerwatch_stream_ood_p_value", "Images by the p-value of the OOD score", ("stream",), kind="histogram"
)
P_VALUE = _fleet(
    "layerwatch_p_value", "Images of all streams by the p-value of each signal", ("signal",), kind="histogram"
)
STREAM_EFFECT = _fleet(
    "layerwatch_stream_signal_effect",
    "Share of the last five minutes' images that must have changed to move this signal so far; the worst streams only",
    ("stream", "signal", "kind"),
)
STREAM_TRIAGE = _fleet(
    "layerwatch_stream_triage",
    "1 on streams with an alert: whether it looks like the `sensor`, the `content`, the `mix`, a `replay` of images "
    "learned from, or is `unknown` yet",
    ("stream", "triage"),
)
ALERTS = _fleet("layerwatch_alerts", "Alerts by rule and phase, over all streams", ("rule", "phase"))
ALERT_ACTIVE = _fleet("layerwatch_alert_active", "1 for every alert under way", ("rule", "stream", "phase"))
ALERT_SINCE = _fleet(
    "layerwatch_alert_since_timestamp_seconds", "Event time since which it is breached", ("rule", "stream")
)
OWN_ALERT = _fleet(
    "layerwatch_own_alert_active", "1 for every open alert about the monitor itself", ("rule", "subject")
)
OUTBOX_ENTRIES = _fleet("layerwatch_outbox_entries", "Alerts not yet delivered to a receiver", ("receiver",))
OUTBOX_AGE = _fleet("layerwatch_outbox_age_seconds", "Age of the oldest of them; 0 without any", ("receiver",))
DEAD_ALERTS = _fleet(
    "layerwatch_dead_alerts",
    "Alert documents given up for a receiver, as far as they are kept (1,000); one that still fires is tried again",
    ("receiver",),
)
OUTBOX_DROPPED = _fleet("layerwatch_outbox_dropped_total", "Alerts cut off at the end of a full outbox (10,000)")
FLEET_READ = _fleet("layerwatch_fleet_read_timestamp_seconds", "When these fleet metrics were last read from Redis")


def exposition() -> tuple[bytes, str]:
    """(body, content type) of the metrics page."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
