"""Every Prometheus metric, with unit and meaning, in one place; `docs/metrics.md` is made from it. Labels are bounded.

What a process counts itself stands first; each replica exports it, and sums over replicas are right. What is read from
Redis (FLEET) is the same for all replicas: only the holder of the evaluator's lease exports it, see `fleet_metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
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

STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From one small JPEG to a stuck Redis."""
SCORE_BUCKETS = (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)
"""Fine where dlsr's normal images lie (.1 to 30 of one layer, 3 to 70 of the joined score), coarse beyond."""

BUILD = Gauge(
    "layerwatch_build_info",
    "1, labelled with the version that runs, the monitor it is part of and its status page",
    ["version", "monitor", "status_page"],
    registry=REGISTRY,
)
PROFILE = Gauge(
    "layerwatch_profile_info", "1 for every loaded profile", ["fingerprint", "detector", "backbone"], registry=REGISTRY
)

# ------------------------------------------------------------------------------------------------ this process

IMAGES_APPLIED = Counter("layerwatch_images_applied_total", "Images counted by this process", registry=REGISTRY)
RECORDS_REJECTED = Counter(
    "layerwatch_records_rejected_total", "Records dead-lettered, by reason", ["reason"], registry=REGISTRY
)
FUTURE_RECORDS = Counter(
    "layerwatch_future_timestamps_total", "Images whose timestamp was too far ahead of the clock", registry=REGISTRY
)
APPLIES = Counter("layerwatch_applies_total", "Applied batches by status", ["status"], registry=REGISTRY)
STAGE_SECONDS = Histogram(
    "layerwatch_stage_seconds",
    "Duration of one decode (a record), score (a batch) or apply (a round trip)",
    ["stage"],
    buckets=STAGE_BUCKETS_S,
    registry=REGISTRY,
)
SCORES = Histogram(
    "layerwatch_score",
    "Images by the raw score of each learned signal; higher is more unusual, normal is what the profile was fitted on",
    ["profile", "signal"],
    buckets=SCORE_BUCKETS,
    registry=REGISTRY,
)
BATCH_IMAGES = Histogram(
    "layerwatch_batch_images",
    "Images scored together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    registry=REGISTRY,
)
HALVED = Counter("layerwatch_batches_halved_total", "Batches halved for want of memory", registry=REGISTRY)
DEVICE_MEMORY = Gauge(
    "layerwatch_device_memory_bytes",
    "Memory of the accelerator that scoring runs on: `used` by this process, `total` of the device; none on a CPU",
    ["device", "kind"],
    registry=REGISTRY,
)
QUEUE_BYTES = Gauge("layerwatch_queue_bytes", "Bytes of records between poll and apply", registry=REGISTRY)
QUEUE_LIMIT_BYTES = Gauge(
    "layerwatch_queue_limit_bytes", "Where polling pauses (pipeline.queue_bytes)", registry=REGISTRY
)
PAUSED = Gauge("layerwatch_paused", "1 while polling is paused because the queue is full", registry=REGISTRY)
PARTITIONS_OWNED = Gauge("layerwatch_partitions_owned", "Partitions that this process reads", registry=REGISTRY)
LAG_RECORDS = Gauge(
    "layerwatch_lag_records", "Records behind the end of the log", ["topic", "partition"], registry=REGISTRY
)
LAST_POLL = Gauge("layerwatch_last_poll_timestamp_seconds", "When the source was last polled", registry=REGISTRY)
LAST_APPLY = Gauge("layerwatch_last_apply_timestamp_seconds", "When counts were last applied", registry=REGISTRY)
SOURCE_REBUILDS = Counter("layerwatch_source_rebuilds_total", "Clients given up and built anew", registry=REGISTRY)
DECODERS_REPLACED = Counter(
    "layerwatch_decoders_replaced_total", "Decoder processes that died or stood still", ["reason"], registry=REGISTRY
)
PARTITIONS_STOPPED = Gauge(
    "layerwatch_partitions_stopped", "Partitions of this process that a person must look at", registry=REGISTRY
)
DEAD_LETTER_ERRORS = Counter(
    "layerwatch_dead_letter_errors_total", "Failed tries to write dead letters; reading waits", registry=REGISTRY
)
STATE_LOST = Counter(
    "layerwatch_state_lost_total", "Partitions whose counts Redis had lost and that were rebuilt", registry=REGISTRY
)
GAPS = Counter("layerwatch_gap_records_total", "Records that retention removed unread", registry=REGISTRY)
STREAMS_OVER_LIMIT = Gauge(
    "layerwatch_images_beyond_stream_limit",
    "Images of streams beyond stream.max_streams, counted together, in the partitions read here",
    registry=REGISTRY,
)
REDIS_ERRORS = Counter("layerwatch_redis_errors_total", "Calls that Redis did not answer", registry=REGISTRY)
REDIS_REFUSALS = Counter(
    "layerwatch_redis_refusals_total",
    "Calls that Redis answered by refusing to work, by its error code (OOM, READONLY, MISCONF, ...)",
    ["code"],
    registry=REGISTRY,
)
REDIS_SECONDS = Histogram(
    "layerwatch_redis_seconds",
    "Duration of one round trip to Redis, by the script it runs; `read` for plain commands",
    ["call"],
    buckets=STAGE_BUCKETS_S,
    registry=REGISTRY,
)
VERDICTS_WRITTEN = Counter(
    "layerwatch_verdicts_written_total", "Lines acknowledged by the sink of per-image verdicts", registry=REGISTRY
)
VERDICT_ERRORS = Counter(
    "layerwatch_verdict_errors_total", "Failed tries to write per-image verdicts; reading waits", registry=REGISTRY
)

# ------------------------------------------------------------------------------------------------ evaluation

LEASE = Gauge("layerwatch_evaluator_lease", "1 where this process evaluates and delivers", registry=REGISTRY)
MUTED = Gauge(
    "layerwatch_muted", "1 while new alerts are held back because lost counts are being rebuilt", registry=REGISTRY
)
WATERMARK = Gauge(
    "layerwatch_watermark_timestamp_seconds", "Event time up to which every partition has been read", registry=REGISTRY
)
BUCKETS_CLOSED = Counter("layerwatch_buckets_closed_total", "Buckets closed and judged here", registry=REGISTRY)
EVALUATION_SECONDS = Histogram(
    "layerwatch_evaluation_seconds", "Time to judge one closed bucket", buckets=STAGE_BUCKETS_S, registry=REGISTRY
)
TRANSITIONS = Counter(
    "layerwatch_alert_transitions_total", "Changes of an alert's phase, by rule", ["rule", "phase"], registry=REGISTRY
)
DELIVERIES = Counter(
    "layerwatch_deliveries_total", "Tries to deliver an alert", ["receiver", "outcome"], registry=REGISTRY
)
DELIVERY_SECONDS = Histogram(
    "layerwatch_delivery_seconds",
    "Duration of one try to deliver",
    ["receiver"],
    buckets=STAGE_BUCKETS_S,
    registry=REGISTRY,
)

# ------------------------------------------------------------------------------------------------ the fleet


@dataclass(frozen=True, slots=True)
class FleetMetric:
    """A metric of the whole monitor, read from Redis; each has the label `monitor` besides its own."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


FLEET: list[FleetMetric] = []


def _fleet(name: str, kind: Literal["gauge", "counter", "histogram"], meaning: str, *labels: str) -> FleetMetric:
    metric = FleetMetric(name, kind, meaning, labels)
    FLEET.append(metric)
    return metric


STREAMS = _fleet("layerwatch_streams", "gauge", "Streams known")
PARTITIONS = _fleet("layerwatch_partitions", "gauge", "Partitions known, whoever reads them")
BUCKET_LAG = _fleet(
    "layerwatch_bucket_lag_seconds",
    "gauge",
    "How far the oldest bucket that is due but not judged lies behind the watermark",
)
STREAM_IMAGES = _fleet("layerwatch_stream_images_total", "counter", "Images counted, since the state began", "stream")
STREAM_REJECTED = _fleet("layerwatch_stream_rejected_total", "counter", "Records that could not be used", "stream")
STREAM_LATE = _fleet(
    "layerwatch_stream_late_total", "counter", "Images counted in a later bucket than their own", "stream"
)
STREAM_DUPLICATES = _fleet("layerwatch_stream_duplicates_total", "counter", "Images equal to the one before", "stream")
STREAM_OOD_SHARE = _fleet(
    "layerwatch_stream_ood_share",
    "gauge",
    "Share of the last five minutes' images (event time, closed buckets) with p <= level",
    "stream",
    "level",
)
STREAM_OOD_BAND = _fleet(
    "layerwatch_stream_ood_band",
    "gauge",
    "Where that share lies in distribution at least 99 times in 100: `bound` is lower or upper",
    "stream",
    "level",
    "bound",
)
STREAM_P_VALUE = _fleet(
    "layerwatch_stream_ood_p_value", "histogram", "Images by the p-value of the OOD score", "stream"
)
P_VALUE = _fleet("layerwatch_p_value", "histogram", "Images of all streams by the p-value of each signal", "signal")
STREAM_EFFECT = _fleet(
    "layerwatch_stream_signal_effect",
    "gauge",
    "Share of the last five minutes' images that must have changed to move this signal so far; the worst streams only",
    "stream",
    "signal",
    "kind",
)
STREAM_TRIAGE = _fleet(
    "layerwatch_stream_triage",
    "gauge",
    "1 on streams with an alert: whether it looks like the `sensor`, the `content` or is `unknown` yet",
    "stream",
    "triage",
)
ALERTS = _fleet("layerwatch_alerts", "gauge", "Alerts by rule and phase, over all streams", "rule", "phase")
ALERT_ACTIVE = _fleet("layerwatch_alert_active", "gauge", "1 for every alert under way", "rule", "stream", "phase")
ALERT_SINCE = _fleet(
    "layerwatch_alert_since_timestamp_seconds", "gauge", "Event time since which it is breached", "rule", "stream"
)
OWN_ALERT = _fleet(
    "layerwatch_own_alert_active", "gauge", "1 for every open alert about the monitor itself", "rule", "subject"
)
OUTBOX_ENTRIES = _fleet("layerwatch_outbox_entries", "gauge", "Alerts a receiver still has to get", "receiver")
OUTBOX_AGE = _fleet("layerwatch_outbox_age_seconds", "gauge", "Age of the oldest of them; 0 without any", "receiver")
DEAD_ALERTS = _fleet(
    "layerwatch_dead_alerts", "gauge", "Alerts a receiver never got, as far as they are kept (1,000)", "receiver"
)
OUTBOX_DROPPED = _fleet(
    "layerwatch_outbox_dropped_total", "counter", "Alerts cut off at the end of a full outbox (10,000)"
)
FLEET_READ = _fleet(
    "layerwatch_fleet_read_timestamp_seconds", "gauge", "When these fleet metrics were last read from Redis"
)


def exposition() -> tuple[bytes, str]:
    """(body, content type) of the metrics page."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
