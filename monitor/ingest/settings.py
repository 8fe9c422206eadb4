"""The sections of the configuration about ingest: `scoring` to `dead_letters`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from detectors.profile.spec import EngineName
from monitor.core.settings import Glob, Names, Secret, Section
from monitor.ingest.conditions import AnyCondition


def _store_prefixes(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Prefixes that end with a slash: `s3://bucket/images` must not allow `s3://bucket/images-of-others`."""
    for prefix in prefixes:
        scheme, mark, path = prefix.partition("://")
        if not mark or not path or "::" in prefix or {".", ".."} & set(path.split("/")):
            raise ValueError(f"{prefix!r} is no prefix such as s3://bucket/images/ or file:///srv/images/")
        if scheme in {"http", "https"}:
            raise ValueError(f"{prefix!r}: a web server may redirect to any other place; use a store's own scheme")
        if scheme == "file" and not path.startswith("/"):
            raise ValueError(f"{prefix!r} is not absolute: file:///srv/images/ has three slashes")
    return tuple(prefix if prefix.endswith("/") else f"{prefix}/" for prefix in prefixes)


ProfileAddress = Annotated[str, Field(min_length=1)]
"""A profile's folder, a store of versions (its active one), or STORE@VERSION."""


class ProfileOverride(Section):
    """Another profile for the streams that match: a site whose normal differs."""

    streams: Glob
    path: ProfileAddress


class ShadowProfile(Section):
    """A profile that scores the images of these streams too, to be compared: it raises no alert."""

    streams: Glob = "*"
    version: ProfileAddress
    """As `scoring.profile`; STORE@shadow is the one that `layerwatch profile shadow` names, if any."""


MOST_ON_A_DEVICE = 1024
"""Four batches of the largest size that goes to a device at once: while one is computed, the next is uploaded."""


class ScoringSettings(Section):
    profile: ProfileAddress = "profile"
    profiles: tuple[ProfileOverride, ...] = ()
    shadow: tuple[ShadowProfile, ...] = ()
    """Profiles that score the same images, to be compared with those that judge: no rule judges their counts."""
    conditions: tuple[AnyCondition, ...] = ()
    device: str = "auto"
    engine: EngineName = "auto"
    """What runs the network: `auto` is OpenVINO on a CPU, where it is installed and scores test images as torch does.

    A profile of `layerwatch quantize` needs OpenVINO."""
    batch_images: PositiveInt = 64
    max_batch_images: PositiveInt | None = None
    """Batches grow up to it while images wait; by default `batch_images` on a CPU, 1024 on another device."""
    batch_age_s: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _sizes_fit(self) -> ScoringSettings:
        if self.max_batch_images is not None and self.max_batch_images < self.batch_images:
            raise ValueError(f"max_batch_images is less than batch_images ({self.batch_images})")
        return self

    def largest_batch(self, accelerated: bool) -> int:
        """Images of a batch at most, by whether another device than the CPU scores."""
        return self.max_batch_images or max(self.batch_images, MOST_ON_A_DEVICE if accelerated else 0)


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


class SchemaRegistrySettings(Section):
    """A Confluent schema registry; asked once for each schema."""

    url: Annotated[str, Field(pattern=r"^https?://[^@]+$")]
    username: str | None = None
    password: Secret | None = None
    ca_file: Path | None = None


Pointer = Annotated[str, Field(pattern=r"^/")]


class ValueSettings(Section):
    """How a record's value holds its image. `raw`: it is an image, a batch, or a claim check."""

    type: Literal["raw", "json", "avro", "protobuf"] = "raw"
    image: Pointer = "/image"
    """JSON pointer to the image: bytes, base64, a `data:` URI, or the URI of a claim check."""
    id: Pointer | None = None
    """Pointer to the image's id; its place in the log by default."""
    time: Pointer | None = None
    """Pointer to the event time: RFC 3339, ms since the epoch, or the format's own type; by default as for `raw`."""
    schema_registry: SchemaRegistrySettings | None = None
    """Avro, Protobuf: values begin with the id of their schema, as Confluent's serializers write it."""
    schema_file: Path | None = None
    """Avro, Protobuf: one local schema for values without an id: .avsc, or a descriptor set of `protoc`."""
    message: str | None = None
    """Protobuf: full name of the message in `schema_file`."""

    @property
    def pointers(self) -> dict[str, str]:
        """What to look for: `image`, and `id` and `time` where they are configured."""
        return {name: at for name, at in (("image", self.image), ("id", self.id), ("time", self.time)) if at}

    @model_validator(mode="after")
    def _schema_fits(self) -> ValueSettings:
        if self.type == "raw" and (self.id or self.time or self.image != "/image"):
            raise ValueError("type raw takes no image, id or time: there is nothing to look into")
        with_schema = self.type in {"avro", "protobuf"}
        if with_schema and (self.schema_registry is None) == (self.schema_file is None):
            raise ValueError(f"type {self.type} needs either schema_registry or schema_file")
        if not with_schema and (self.schema_registry or self.schema_file):
            raise ValueError(f"type {self.type} takes no schema")
        if (self.message is not None) != (self.type == "protobuf" and self.schema_file is not None):
            raise ValueError("message names the type of Protobuf values that schema_file describes: give it there only")
        return self


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
    claim_check_prefixes: Annotated[Names, AfterValidator(_store_prefixes)] = ()
    timeout_s: PositiveFloat = 20.0
    worker_memory_bytes: PositiveInt = 2 * 2**30


class EvidenceSettings(Section):
    thumbnails: bool = True
    thumbnail_px: Annotated[int, Field(ge=16, le=512)] = 96
    picture_px: Annotated[int, Field(ge=0, le=1024)] = 512
    """Longer side of the large pictures of the worst images, for whoever clicks on one; 0 keeps none."""
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
