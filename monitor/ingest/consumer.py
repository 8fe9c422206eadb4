"""The consumer: one thread that owns the source and the cursors. `Consumer.flow` is the way of an image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from monitor.core.types import Applied, ApplyStatus, Partition
from monitor.ingest.assignment import Assignment
from monitor.ingest.batch import BACKOFF_S, Batch, PartitionBatch, batch_of
from monitor.ingest.health import ConsumerHealth
from monitor.ingest.maintenance import Every, Maintenance
from monitor.ingest.settings import PipelineSettings
from monitor.ingest.sinks import SinkError
from monitor.ingest.stages import ReplaceableStages
from monitor.ingest.work import Backlog
from monitor.sources.protocol import FatalSourceError, Polled, Source, SourceError, UnreadableError
from monitor.store import Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

FINISH_S = 30.0
"""Time to apply the records before a damaged place in the log, before the client is closed."""
BUSY_POLL_S = 0.01
"""Poll time-out while scored work may be ready to apply at any moment."""
VERIFY_S = 5.0
"""Between comparisons of our cursors with those in Redis: without records nothing else would notice a loss."""


class Consumer:
    """Reads the source until `stop`; retries what can be retried, and raises the rest.

    Args:
        open_source: joins the group; called again after every SourceError.
        stages: ended by `close`, as the sinks of the maintenance are.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        store: Store,
        stages: ReplaceableStages,
        assignment: Assignment,
        maintenance: Maintenance,
        settings: PipelineSettings,
    ) -> None:
        self._open_source, self._store, self._replaceable = open_source, store, stages
        self._assignment, self._maintenance, self._settings = assignment, maintenance, settings
        self._sinks = maintenance.sinks
        first = stages.current
        self._backlog = Backlog(settings.queue_bytes, first.scoring.image_bytes, first.decoders.max_images)
        self._batch: Batch | None = None  # waits for a sink or for Redis
        self._paused = False
        self._source: Source | None = None
        self._stop = threading.Event()
        self._failures = 0
        self._ever_joined = False
        self._verify_every = Every(VERIFY_S)
        self.health = ConsumerHealth()

    def stop(self) -> None:
        """Let `run` finish the work in flight and return."""
        self._stop.set()

    def run(self, grace_s: float = 25.0) -> None:
        """Step until `stop`, then take up to `grace_s` to finish the work in flight.

        Raises:
            FatalSourceError: a retry cannot help. An alert is raised if this process had joined the source before.
            ScoringError: the scoring thread has failed.
        """
        try:
            while not self._stop.is_set():
                try:
                    self.step()
                except SourceError as error:
                    self._rejoin(error)
        except FatalSourceError as error:
            if self._ever_joined:
                self._maintenance.report_fatal(str(error))
            raise
        self._drain(time.monotonic() + grace_s)

    def step(self) -> None:
        """One round: move records, then pause or resume reading, then do the maintenance that is due.

        Raises:
            SourceError: the source must be opened again.
        """
        if self._source is None:
            self._source, self._paused = self._open_source(), False
        source = self._source
        self.flow(source)
        self._balance(source)
        self._maintain(source)

    # ---------------------------------------------------------------- the way of an image

    def flow(self, source: Source, polling: bool = True) -> None:
        """Take records one round further, from the log to the cursor in Redis.

        Decoding and scoring run beside this thread, which polls and applies meanwhile: a round moves whatever is ready
        for its next step. The cursor moves only here, after the sinks have acknowledged, in one write with the counts.
        """
        self._switch_when_through()
        stages = self._replaceable.current
        # 1. poll, after every claim: see `_claim_due`
        if polling:
            self._claim_due(source)
            polled = source.poll(BUSY_POLL_S if self._backlog.works else self._settings.poll_s)
            failpoint("polled")
            self._follow(polled)
            self._backlog.add(polled, self._assignment.owned)
        # 2. decode, in processes: as much as fits into memory; nothing new by stages that are about to be replaced
        started = self._backlog.start() if not self._replaceable.waits else []
        for work in started:
            work.decoding = stages.decoders.submit(work.records)
        # 3. score, in a thread: batches of images, in the order of the logs
        stages.scoring.submit(started)
        # 4. aggregate what is scored by now
        if self._batch is None:
            scored = stages.scoring.take()
            self._backlog.finish(scored)
            works = [*self._assignment.take_skipped(), *scored]
            self._batch = batch_of(works, self._assignment.owned, stages.aggregation, self._sinks.image_log)
        batch = self._due_batch()
        if batch is None:
            return
        try:
            # 5. write the sinks: dead letters, image log
            self._sinks.write(source, batch)
            # 6. apply counts and cursors, each partition's in one atomic write
            failpoint("before_apply")
            started_s = time.perf_counter()
            applied = self._store.partitions.apply([part.delta for part in batch.parts])
            failpoint("after_apply")
        except (SinkError, StoreError) as error:
            if isinstance(error, StoreError):
                self.health.redis_failed("apply", error)
            self.health.moved_s = time.monotonic()
            batch.try_later()
            return
        # 7. move our own cursors, as Redis answered
        self._batch = None
        metrics.STAGE_SECONDS.labels("apply").observe(time.perf_counter() - started_s)
        self.health.applied()
        self._failures = 0
        for part, outcome in zip(batch.parts, applied, strict=True):
            self._move_cursor(source, part, outcome)

    def _follow(self, polled: Polled) -> None:
        """Drop revoked partitions; assigned ones are claimed before the next poll."""
        self.health.polled_s = time.monotonic()
        self.health.joined = self._ever_joined = True
        metrics.LAST_POLL.set_to_current_time()
        self._assignment.follow(polled)

    def _due_batch(self) -> Batch | None:
        """The batch to write and apply now; None where there is none or its next retry is not due."""
        batch = self._batch
        if batch is None or time.monotonic() < batch.retry_at_s:
            # several records in a row that each hang their decoder are slow, but not stuck
            moved_s = self._replaceable.current.decoders.answered_s if self.in_flight else time.monotonic()
            self.health.moved_s = max(self.health.moved_s, moved_s)
            return None
        if not any(self._assignment.is_current(part.owner) for part in batch.parts):
            self._batch = None  # other replicas own all of its partitions, and read it again
        return self._batch

    def _move_cursor(self, source: Source, part: PartitionBatch, outcome: Applied) -> None:
        """Act on the answer of Redis: advance, or claim the partition again, or leave the group."""
        owner, delta = part.owner, part.delta
        metrics.APPLIES.labels(str(outcome.status)).inc()
        if outcome.status in {ApplyStatus.OK, ApplyStatus.DUP}:
            part.advance_owner()
            self._replaceable.current.evidence.submit(part.kept)
            try:
                self._assignment.judge_rejects(source, owner)
            except StoreError as error:
                self.health.redis_failed("stop", error)
            return
        log.warning("apply.refused", partition=str(delta.partition), status=str(outcome.status), expect=delta.expect)
        if not self._assignment.is_current(owner):
            return
        if outcome.status is ApplyStatus.FENCED:
            self._assignment.drop(delta.partition)
            raise SourceError(f"{delta.partition}: another owner has claimed it")
        # REWIND or LOST: the cursor in Redis is right. The next claim seeks to it; work in flight is of the old claim
        # and is dropped.
        self._assignment.claim_again(delta.partition)

    # ---------------------------------------------------------------- membership

    def _claim_due(self, source: Source) -> None:
        """Claim partitions that were assigned or must be claimed again; always before a poll.

        Until a claim succeeds, the source reads the partition from its old position. If the claim followed the poll,
        the records of that poll would be taken for those that follow the new cursor.
        """
        owned = self._assignment.owned
        before = len(owned)
        try:
            self._assignment.claim_due(source)
        except StoreError as error:
            self.health.redis_failed("claim", error)
        if len(owned) > before:
            self._maintenance.after_claim()
            if self._paused:
                source.pause(list(owned))
        metrics.PARTITIONS_OWNED.set(len(owned))

    def _rejoin(self, error: SourceError) -> None:
        """Close the source and drop the work in flight; the next round opens the source again."""
        log.warning("source.failed", error=str(error))
        metrics.SOURCE_REBUILDS.inc()
        if isinstance(error, UnreadableError):
            # without this, the records before the damage would be read and dropped again in every round
            self._finish_in_flight(time.monotonic() + FINISH_S)
            self._assignment.note_damage(error)
        self._leave()
        self._stop.wait(BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1

    def _leave(self) -> None:
        """Leave the group and close the source; what is not applied is read again by the next owner."""
        self._assignment.clear()
        self._batch = None
        self.health.joined = False
        if self._source is not None:
            self._source.close()
            self._source = None

    def close(self) -> None:
        """End the threads and processes of the stages; work in flight is dropped."""
        self._leave()
        self._replaceable.current.close()
        self._sinks.close()

    def _switch_when_through(self) -> None:
        """Between two batches, when all that the old stages began is applied: what waits has not been decoded.

        So no image is scored by both, and the cursor says which images are whose.
        """
        if self._replaceable.waits and not self._backlog.in_progress and self._batch is None:
            failpoint("before_switch")
            stages = self._replaceable.switch()
            self._backlog.resize(stages.scoring.image_bytes, stages.decoders.max_images)
            self._maintenance.after_switch()

    # ---------------------------------------------------------------- between and after rounds

    def _balance(self, source: Source) -> None:
        """Pause above the byte limit or while a batch waits, resume below half of the limit."""
        held, limit = self._backlog.held_bytes, self._settings.queue_bytes
        stuck = self._batch is not None and self._batch.tries > 0
        if not self._paused and (held > limit or stuck):
            source.pause(list(self._assignment.owned))
            self._paused = True
        elif self._paused and held < limit / 2 and not stuck:
            source.resume(list(self._assignment.owned))
            self._paused = False
        metrics.PAUSED.set(self._paused)

    def _maintain(self, source: Source) -> None:
        owned = self._assignment.owned
        try:
            self.health.redis_ok |= self._maintenance.run(source, owned, self.in_flight, self._paused)
            if self._verify_every.due():
                self._assignment.verify()
        except StoreError as error:
            self.health.redis_failed("maintenance", error)

    @property
    def in_flight(self) -> bool:
        """Whether anything that was read is not applied."""
        return bool(self._batch or self._assignment.skipped or self._backlog.works)

    def is_through(self, partitions: Iterable[Partition]) -> bool:
        """Whether each of these partitions is read to its end, applied and marked as idle, or stopped."""
        owned, stopped = self._assignment.owned, self._assignment.stopped
        return all(p in stopped or (p in owned and owned[p].idle) for p in partitions)

    def why_unready(self) -> str:
        """Why it does not read and apply; empty if it does."""
        stopped = [found.reason for found in self._assignment.stopped.values()]
        return self.health.why_unready([*self._sinks.failing.values(), *stopped])

    def _drain(self, deadline_s: float) -> None:
        """Apply what is in flight, commit to the group, leave it."""
        source = self._source
        try:
            if source is not None:
                source.pause(list(self._assignment.owned))
                self._finish_in_flight(deadline_s)
                self._maintenance.commit(source, self._assignment.owned)
        except SourceError as error:
            log.warning("drain.source_failed", error=str(error))
        except StoreError as error:
            log.warning("drain.redis_away", error=str(error))
        finally:
            log.info("reader.stopped", works_left=self._backlog.works)
            self._leave()

    def _finish_in_flight(self, deadline_s: float) -> None:
        """Apply everything that was read, without reading more."""
        source = self._source
        while source is not None and self.in_flight and time.monotonic() < deadline_s:
            try:
                self.flow(source, polling=False)
            except SourceError as error:
                log.warning("reader.left_unfinished", error=str(error))
                return
            self.health.polled_s = time.monotonic()
            self._replaceable.current.scoring.ready.wait(0.02)
