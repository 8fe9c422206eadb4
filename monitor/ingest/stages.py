"""What records pass between poll and apply, and the worst images after it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

from monitor.core.aggregate import Aggregation
from monitor.core.settings import BucketSettings
from monitor.ingest.batch import thumbnail
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.evidence import EvidenceStage
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.scoring.stage import ScoringStage
from monitor.ingest.settings import DecodingSettings, EvidenceSettings, ScoringSettings, StreamNaming, ValueSettings
from monitor.store import Store

SWITCH_LOOK_S = 0.2
"""Between looks whether to wait on for a switch."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of a consumer that depend on its profiles, in the order of the flow."""

    decoders: DecoderPool
    scoring: ScoringStage
    aggregation: Aggregation
    evidence: EvidenceStage

    def close(self) -> None:
        """End their threads and processes; work in flight is dropped."""
        for stage in (self.decoders, self.scoring, self.evidence):
            stage.close()


@dataclass(frozen=True, slots=True)
class StageFactory:
    """Starts the stages of any profiles under the same configuration."""

    store: Store
    stream: StreamNaming
    value: ValueSettings
    decoding: DecodingSettings
    scoring: ScoringSettings
    buckets: BucketSettings
    evidence: EvidenceSettings

    def start(self, profiles: Profiles) -> Stages:
        """Their threads and processes begin at once, and wait for work."""
        evidence = self.evidence
        aggregation = Aggregation(
            buckets=self.buckets,
            layouts={**profiles.layouts, **profiles.shadow_layouts},
            fingerprint_of=profiles.fingerprint_of,
            exemplars=evidence.exemplars,
            thumbnail=partial(thumbnail, longest_px=evidence.thumbnail_px) if evidence.thumbnails else lambda _: b"",
        )
        decoders = DecoderPool(Decoder(profiles.preparers(), self.stream, self.decoding, self.value))
        scoring = ScoringStage(profiles, self.scoring)
        return Stages(decoders, scoring, aggregation, EvidenceStage(self.store, decoders, scoring, evidence))


class ReplaceableStages:
    """The stages in use, and those that replace them at the next batch boundary."""

    def __init__(self, stages: Stages) -> None:
        self.current = stages
        """Changed by the consumer's thread alone."""
        self._next: Stages | None = None
        self._before: Stages | None = None
        self._switched = threading.Event()
        self._lock = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether others wait to replace them."""
        return self._next is not None

    def switch(self) -> Stages:
        """Begin to use those that wait, if they still do; returns what is in use. Of the consumer's thread."""
        with self._lock:
            if self._next is not None:
                self._before, self.current, self._next = self.current, self._next, None
                self._switched.set()
            return self.current

    def replace(self, stages: Stages, give_up: threading.Event) -> Stages | None:
        """Wait until the consumer has switched to these; of one other thread.

        Returns:
            The stages of before, which the consumer uses no more; None where `give_up` came first: then it keeps them.
        """
        self._switched.clear()
        with self._lock:
            self._next, self._before = stages, None
        while not self._switched.wait(SWITCH_LOOK_S) and not give_up.is_set():
            pass
        with self._lock:
            self._next = None
            before, self._before = self._before, None  # no reference to it must stay
            return before
