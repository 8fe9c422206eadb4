"""From the configuration to what each part wants to know of it: parts get their values, never the whole."""

from __future__ import annotations

import json

from detectors.images.prepare import Prepared
from monitor.config.schema import Config
from monitor.core.aggregate import Counting, Rates
from monitor.core.reject_window import RejectWindow
from monitor.evaluate.presentation import Presentation
from monitor.ingest.assignment import StartPolicy
from monitor.ingest.maintenance import ConsumerSettings
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.scoring.thumbnails import thumbnail
from monitor.rules.ruleset import BoundRule
from monitor.store import Limits, Store

MIN_REBUILD_MS = 300_000
"""Rebuilt at least, after Redis was lost: what the evidence of an alert looks back on."""


def publish_profiles(store: Store, profiles: Profiles) -> None:
    """Let everyone who reads the counts know what they mean, and which profiles made them.

    Raises:
        StoreError: Redis does not answer.
    """
    store.catalog.put_layouts(profiles.layouts)
    store.catalog.put_profiles({profile.fingerprint: json.dumps(profile.manifest) for profile in profiles.all()})


def presentation_of(settings: Config) -> Presentation:
    """What alerts say beyond the verdict."""
    return Presentation(
        monitor=settings.monitor,
        external_url=settings.web.external_url,
        dashboard_url=settings.web.dashboard_url,
        exemplars=settings.evidence.exemplars,
        heard=bool(settings.receivers),
    )


def limits_of(settings: Config) -> Limits:
    """What bounds the state in Redis."""
    return Limits(
        bucket_ms=settings.buckets.seconds * 1000,
        retention_s=settings.buckets.retention_s,
        max_streams=settings.stream.max_streams,
        exemplars_kept=settings.evidence.exemplars,
        exemplar_retention_s=settings.evidence.retention_s,
    )


def counting_of(settings: Config, profiles: Profiles) -> Counting:
    """What counting a batch needs."""
    evidence = settings.evidence

    def small(prepared: Prepared) -> bytes:
        return thumbnail(prepared, evidence.thumbnail_px) if evidence.thumbnails else b""

    return Counting(
        rates=Rates(
            bucket_ms=settings.buckets.seconds * 1000,
            lateness_ms=round(settings.buckets.lateness_s * 1000),
            max_future_ms=round(settings.buckets.max_future_s * 1000),
        ),
        layouts=profiles.layouts,
        fingerprint_of=lambda stream: str(profiles.of(stream).fingerprint),
        exemplars=evidence.exemplars,
        thumbnail=small,
    )


def reader_settings_of(settings: Config, rules: tuple[BoundRule, ...]) -> ConsumerSettings:
    """Limits and policies of the reader."""
    source = settings.source_settings().section
    letters = settings.dead_letters
    longest_ms = max([rule.window_ms for rule in rules], default=0)
    return ConsumerSettings(
        poll_s=settings.pipeline.poll_s,
        queue_bytes=settings.pipeline.queue_bytes,
        idle_timeout_s=settings.buckets.idle_timeout_s,
        stall_s=settings.pipeline.stall_s,
        recent=RejectWindow(letters.window, letters.max_share) if letters.max_share < 1 else RejectWindow(),
        unnamed_stream=settings.stream.name,
        policy=StartPolicy(
            start=source.start,
            on_gap=letters.on_gap,
            on_unreadable=letters.on_unreadable,
            rebuild_ms=max(longest_ms, MIN_REBUILD_MS) + round(settings.buckets.lateness_s * 1000),
        ),
    )
