"""The whole configuration: the sections that the rooms define, put together. `config.yaml` is its commented default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from monitor.core.alert_state import OWN_RULES
from monitor.core.settings import BucketSettings, Section
from monitor.evaluate.settings import EvaluationSettings, RenewalSettings
from monitor.ingest.settings import (
    DeadLetterSettings,
    DecodingSettings,
    EvidenceSettings,
    PipelineSettings,
    ScoringSettings,
    StreamNaming,
    ValueSettings,
    VerdictSettings,
)
from monitor.notify.receivers.registry import AnyReceiver
from monitor.rules.registry import AnyRule
from monitor.sources import SOURCES, SourceSection, SourceSettings
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.redis_streams.settings import RedisStreamSettings
from monitor.store.settings import RedisSettings
from monitor.web.settings import WebSettings


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section):
    """The whole configuration of one monitor."""

    monitor: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = "layerwatch"
    source: Literal["kafka", "redis-stream"] = "kafka"
    kafka: KafkaSettings = KafkaSettings()
    redis_stream: RedisStreamSettings = RedisStreamSettings()
    redis: RedisSettings = RedisSettings()
    stream: StreamNaming = StreamNaming()
    value: ValueSettings = ValueSettings()
    scoring: ScoringSettings = ScoringSettings()
    decoding: DecodingSettings = DecodingSettings()
    buckets: BucketSettings = BucketSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    renewal: RenewalSettings = RenewalSettings()
    rules: tuple[AnyRule, ...] = ()
    receivers: tuple[AnyReceiver, ...] = ()
    evidence: EvidenceSettings = EvidenceSettings()
    verdicts: VerdictSettings = VerdictSettings()
    pipeline: PipelineSettings = PipelineSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Config:
        for what, names in (
            ("rules", [rule.name for rule in self.rules]),
            ("receivers", [receiver.name for receiver in self.receivers]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: the name {twice[0]} is used twice")
        if any(rule.name.startswith(OWN_RULES) for rule in self.rules):
            raise ValueError(f"rules: names that begin with {OWN_RULES} are taken by alerts about the monitor itself")
        return self

    @property
    def renewed(self) -> str:
        """The store of profiles that `renewal` is about."""
        return self.renewal.profile or self.scoring.profile

    def source_settings(self, kind: str = "") -> SourceSettings[SourceSection]:
        """What the configured source (or another kind of `SOURCES`) is opened with."""
        kind = kind or self.source
        return SourceSettings(kind, getattr(self, SOURCES[kind].section), self.monitor, self.redis)
