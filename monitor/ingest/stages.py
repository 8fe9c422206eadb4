"""The stages between poll and apply, put together."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.core.aggregate import Aggregation
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.sinks import Sinks


@dataclass(frozen=True, slots=True)
class Stages:
    """What records pass between poll and apply, in this order."""

    decoders: DecoderPool
    scoring: ScoringStage
    aggregation: Aggregation
    sinks: Sinks

    def close(self) -> None:
        """End their threads and processes; work in flight is dropped."""
        self.decoders.close()
        self.scoring.close()
        self.sinks.close()
