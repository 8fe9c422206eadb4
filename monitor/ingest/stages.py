"""What records pass between poll and apply, and the worst images after it."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.core.aggregate import Aggregation
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.evidence import EvidenceStage
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.sinks import Sinks


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of a consumer, in the order of the flow."""

    decoders: DecoderPool
    scoring: ScoringStage
    aggregation: Aggregation
    sinks: Sinks
    evidence: EvidenceStage

    def close(self) -> None:
        """End their threads and processes; work in flight is dropped."""
        for stage in (self.decoders, self.scoring, self.sinks, self.evidence):
            stage.close()
