"""Every Prometheus metric, with unit and meaning, in one place. Labels are bounded."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()

STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From one small JPEG to a stuck Redis."""

BUILD = Gauge("layerwatch_build_info", "1, labelled with the version that runs", ["version"], registry=REGISTRY)
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
BATCH_IMAGES = Histogram(
    "layerwatch_batch_images",
    "Images scored together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    registry=REGISTRY,
)
HALVED = Counter("layerwatch_batches_halved_total", "Batches halved for want of memory", registry=REGISTRY)
QUEUE_BYTES = Gauge("layerwatch_queue_bytes", "Bytes of records between poll and apply", registry=REGISTRY)
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
REDIS_ERRORS = Counter("layerwatch_redis_errors_total", "Calls that Redis did not answer", registry=REGISTRY)

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


def exposition() -> tuple[bytes, str]:
    """(body, content type) of the metrics page."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
