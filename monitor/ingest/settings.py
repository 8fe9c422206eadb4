"""The sections of the configuration about ingest: `scoring` to `dead_letters`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from monitor.core.settings import Glob, Names, Section


class ProfileOverride(Section):
    """Another profile for the streams that match: a site whose normal differs."""

    streams: Glob
    path: Path


class ScoringSettings(Section):
    profile: Path = Path("profile")
    profiles: tuple[ProfileOverride, ...] = ()
    device: str = "auto"
    batch_images: PositiveInt = 64
    batch_age_s: PositiveFloat = 0.05


class StreamNaming(Section):
    """What an alert is about. `from: header` reads the named header, `constant` uses `name` for every image."""

    model_config = ConfigDict(populate_by_name=True)

    source: Literal["key", "header", "constant"] = Field(default="key", alias="from")
    header: str = "stream"
    name: str = "default"
    event_time_header: str | None = None
    """Header with the event time: RFC 3339, in UTC unless it gives an offset, or ms since the epoch.

    The record's timestamp counts where the header is absent."""
    max_streams: PositiveInt = 10_000


NpyLayout = Literal["HW", "HWC", "CHW", "NHW", "NHWC", "NCHW"]
"""Axes of an npy array: N images of H rows, W columns and C channels."""
LAYOUTS: tuple[NpyLayout, ...] = get_args(NpyLayout)


class DecodingSettings(Section):
    workers: PositiveInt = 2
    max_record_bytes: PositiveInt = 32 * 2**20
    """A record's value, key and headers; checked before anything reads them."""
    max_pixels: PositiveInt = 50_000_000
    max_images_per_record: PositiveInt = 1024
    """The memory for so many is set aside for every batch until it is decoded."""
    formats: Names = ("JPEG", "PNG", "WEBP", "TIFF")
    npy_layout: NpyLayout | None = None
    """Axes of npy arrays whose content type has no `layout`; without both, HW, HWC or NHWC by their number."""
    claim_check_prefixes: Names = ()
    timeout_s: PositiveFloat = 20.0
    worker_memory_bytes: PositiveInt = 2 * 2**30


class EvidenceSettings(Section):
    thumbnails: bool = True
    thumbnail_px: Annotated[int, Field(ge=16, le=512)] = 96
    exemplars: Annotated[int, Field(ge=0, le=100)] = 12
    """Worst images kept per stream and hour."""
    retention_s: PositiveInt = 7 * 86_400


class VerdictSettings(Section):
    """Sink for one line per image (labelling queues); off unless a type is given."""

    type: Literal["none", "kafka", "redis-stream", "jsonl"] = "none"
    target: str = "layerwatch.verdicts"
    """Topic, stream key or file, by type."""
    max_p_value: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only images whose OOD p-value is at most this."""


class PipelineSettings(Section):
    queue_bytes: PositiveInt = 256 * 2**20
    """Bytes of records held between poll and apply; polling pauses above, resumes below half."""
    poll_s: PositiveFloat = 0.2
    stall_s: PositiveFloat = 120.0
    """Watchdog: with work in hand and no apply for that long the process exits (70) and is restarted."""
    grace_s: PositiveFloat = 25.0
    """SIGTERM: time to finish what is in flight (below the orchestrator's own limit, usually 30 s)."""


class DeadLetterSettings(Section):
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Stop the partition and alert when more than this share of the last `window` records is bad; 1 = never."""
    window: PositiveInt = 1000
    on_gap: Literal["continue", "stop"] = "continue"
    """A cursor before the start of the log (retention took records unread): counted and alerted, then this."""
    on_unreadable: Literal["dead-letter", "stop"] = "dead-letter"
    """Bytes of the log that no client can read: an empty dead letter per offset, or the partition stops; alerted."""
