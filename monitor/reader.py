"""The thread that owns the source and the cursors: poll, hand over, take back, apply. See `Reader.run`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from monitor import metrics
from monitor.buckets import IMAGES
from monitor.pipeline import Pipeline, Work
from monitor.store import Store, StoreError
from monitor.takeover import Reading, StartPolicy, take_over
from monitor.tally import Counting, Tally, tally
from monitor.types import Applied, ApplyStatus, DeadLetter, Delta, Partition, Polled, Source, SourceError, Vector

log = structlog.get_logger(__name__)

COMMIT_S = 5.0
"""Between commits to the group: they only feed lag tools."""
REGISTER_S = 10.0
"""Between looks for partitions added to the topics."""
LAG_S = 15.0
"""Between looks at the ends of the logs: two requests a partition."""
BUSY_POLL_S = 0.01
"""Poll time-out while scored work may be ready to apply at any moment."""
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Limits of the reader; see the configuration."""

    poll_s: float = 0.2
    queue_bytes: int = 256 * 2**20
    idle_timeout_s: float = 30.0
    policy: StartPolicy = field(default_factory=StartPolicy)


@dataclass(slots=True)
class _Batch:
    """What is being applied: kept until Redis has answered, so that the same call can be made again."""

    readings: list[Reading]
    deltas: list[Delta]
    tallies: list[Tally]
    letters: list[DeadLetter]
    tries: int = 0
    not_before_s: float = 0.0


@dataclass(slots=True)
class Health:
    """What the reader last did, by the monotonic clock; read by the watchdog and the readiness page."""

    polled_s: float = field(default_factory=time.monotonic)
    moved_s: float = field(default_factory=time.monotonic)
    """Last time that work was applied, or that there was none."""
    joined: bool = False
    redis_ok: bool = True


class Reader:
    """Reads the source for ever; `run` returns after `stop`, and raises what cannot be mended here.

    Args:
        open_source: joins the group; called again after every SourceError.
        settings: limits.
        counting: what `tally` needs.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        store: Store,
        pipeline: Pipeline,
        counting: Counting,
        settings: ReaderSettings,
    ) -> None:
        self._open_source, self._store, self._pipeline = open_source, store, pipeline
        self._counting, self._settings = counting, settings
        self._readings: dict[Partition, Reading] = {}
        self._unclaimed: dict[Partition, float] = {}  # -> monotonic time of the next try
        self._batch: _Batch | None = None
        self._paused = False
        self._source: Source | None = None
        self._stop = threading.Event()
        self._failures = 0
        self._committed_s = self._registered_s = self._idle_checked_s = self._lag_s = 0.0
        self.health = Health()

    def stop(self) -> None:
        """Let `run` finish what is in hand and return."""
        self._stop.set()

    def run(self, grace_s: float = 25.0) -> None:
        """Poll, decode and score, apply: until `stop`, then up to `grace_s` for what is still in hand.

        Raises:
            FatalSourceError: no other try will help.
            PipelineError: scoring is broken.
        """
        while not self._stop.is_set():
            try:
                source = self._joined()
                polled = source.poll(self._poll_timeout())
                self._follow(source, polled)  # partitions that came and went
                self._submit(polled)  # records -> decode -> score, in threads
                self._settle(source)  # scored -> dead letters -> Redis -> our cursor
                self._balance(source)  # pause above the byte limit, resume below half of it
                self._tend(source)  # commits, new partitions, idleness
            except SourceError as error:
                self._rejoin(error)
        self._drain(time.monotonic() + grace_s)

    # ---------------------------------------------------------------- membership

    def _joined(self) -> Source:
        if self._source is None:
            self._source = self._open_source()
            self._paused = False
            self._registered_s = 0.0
        return self._source

    def _rejoin(self, error: SourceError) -> None:
        """Give the client up, with everything that was read through it, and build another after a while."""
        log.warning("source.failed", error=str(error))
        metrics.SOURCE_REBUILDS.inc()
        self._leave()
        self._stop.wait(BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1

    def _leave(self) -> None:
        self._readings.clear()
        self._unclaimed.clear()
        self._batch = None
        self.health.joined = False
        if self._source is not None:
            self._source.close()
            self._source = None

    def _follow(self, source: Source, polled: Polled) -> None:
        self.health.polled_s = time.monotonic()
        self.health.joined = True
        metrics.LAST_POLL.set_to_current_time()
        for partition in polled.revoked:
            self._readings.pop(partition, None)
            self._unclaimed.pop(partition, None)
        for partition in polled.assigned:
            self._readings.pop(partition, None)
            self._unclaimed[partition] = 0.0
        due = [p for p, not_before_s in self._unclaimed.items() if not_before_s <= time.monotonic()]
        for partition in due:
            self._claim(source, partition)
        metrics.PARTITIONS_OWNED.set(len(self._readings))

    def _claim(self, source: Source, partition: Partition) -> None:
        now_s = time.monotonic()
        try:
            reading = take_over(self._store, source, partition, self._settings.policy, _now_ms(), now_s)
        except StoreError as error:
            self._redis_failed("claim", error)
            self._unclaimed[partition] = now_s + 1.0
            return
        del self._unclaimed[partition]
        self._readings[partition] = reading
        source.start(partition, reading.next_offset)
        if self._paused:
            source.pause([partition])

    # ---------------------------------------------------------------- flow

    def _poll_timeout(self) -> float:
        waiting = self._batch is not None and not self._pipeline.works_in_hand
        return self._settings.poll_s if waiting or not self._pipeline.works_in_hand else BUSY_POLL_S

    def _submit(self, polled: Polled) -> None:
        for partition, next_offset in polled.next_offsets.items():
            reading = self._readings.get(partition)
            if reading is not None:
                reading.active_s = time.monotonic()
                self._pipeline.submit(Work(reading, polled.records.get(partition, ()), next_offset))
        metrics.QUEUE_BYTES.set(self._pipeline.bytes_in_hand)

    def _settle(self, source: Source) -> None:
        """Apply what is scored. The cursor moves only here, after the dead letters are acknowledged."""
        if self._batch is None:
            self._batch = self._count(self._pipeline.take())
        batch = self._batch
        if batch is None or time.monotonic() < batch.not_before_s:
            self._note_idle_hands()
            return
        if batch.letters:
            source.dead_letter(batch.letters)
            for letter in batch.letters:
                metrics.RECORDS_REJECTED.labels(letter.reason).inc()
            batch.letters = []
        started = time.perf_counter()
        try:
            applied = self._store.apply(batch.deltas)
        except StoreError as error:
            self._redis_failed("apply", error)
            batch.not_before_s = time.monotonic() + BACKOFF_S[min(batch.tries, len(BACKOFF_S) - 1)]
            batch.tries += 1
            return
        metrics.STAGE_SECONDS.labels("apply").observe(time.perf_counter() - started)
        metrics.LAST_APPLY.set_to_current_time()
        self.health.redis_ok = True
        self.health.moved_s = time.monotonic()
        self._failures = 0
        self._batch = None
        for reading, delta, counted, outcome in zip(batch.readings, batch.deltas, batch.tallies, applied, strict=True):
            self._take_answer(source, reading, delta, counted, outcome)

    def _count(self, works: Sequence[Work]) -> _Batch | None:
        """One delta per partition from everything that was scored of it, in the order of its log."""
        mine: dict[Partition, list[Work]] = {}
        for work in works:
            reading = work.owner
            if isinstance(reading, Reading) and self._readings.get(reading.partition) is reading:
                mine.setdefault(reading.partition, []).append(work)
        batch = _Batch([], [], [], [])
        for partition, members in mine.items():
            reading = self._readings[partition]
            outcomes = [outcome for work in members for outcome in work.outcomes]
            counted = tally(outcomes, reading.high_ms, reading.facts, _now_ms(), self._counting)
            batch.readings.append(reading)
            batch.tallies.append(counted)
            batch.letters += [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
            batch.deltas.append(
                Delta(
                    partition=partition,
                    token=reading.token,
                    expect=reading.next_offset,
                    next_offset=members[-1].next_offset,
                    high_ms=counted.high_ms or 0,
                    vectors=counted.vectors,
                    facts=counted.facts,
                    exemplars=counted.exemplars,
                )
            )
        return batch if batch.deltas else None

    def _take_answer(self, source: Source, reading: Reading, delta: Delta, counted: Tally, outcome: Applied) -> None:
        metrics.APPLIES.labels(str(outcome.status)).inc()
        if outcome.status in {ApplyStatus.OK, ApplyStatus.DUP}:
            reading.next_offset = delta.next_offset
            reading.high_ms = counted.high_ms
            reading.facts.update(counted.facts)
            reading.idle = False
            _count_metrics(counted, delta.vectors)
            return
        log.warning("apply.refused", partition=str(delta.partition), status=str(outcome.status), expect=delta.expect)
        if self._readings.get(delta.partition) is not reading:
            return
        del self._readings[delta.partition]
        if outcome.status is ApplyStatus.FENCED:
            raise SourceError(f"{delta.partition}: another owner has claimed it")
        # REWIND or LOST: Redis is the truth. Taking the partition over again seeks to where it stands; what is in
        # hand belongs to the old reading and is dropped.
        self._unclaimed[delta.partition] = 0.0
        self._claim(source, delta.partition)

    # ---------------------------------------------------------------- upkeep

    def _balance(self, source: Source) -> None:
        held = self._pipeline.bytes_in_hand
        if not self._paused and (held > self._settings.queue_bytes or self._stuck()):
            source.pause(list(self._readings))
            self._paused = True
        elif self._paused and held < self._settings.queue_bytes / 2 and not self._stuck():
            source.resume(list(self._readings))
            self._paused = False
        metrics.PAUSED.set(self._paused)

    def _stuck(self) -> bool:
        return self._batch is not None and self._batch.tries > 0

    def _tend(self, source: Source) -> None:
        now_s = time.monotonic()
        try:
            if now_s - self._registered_s > REGISTER_S:
                self._registered_s = now_s
                self._store.register_partitions(source.partitions())
            if now_s - self._committed_s > COMMIT_S:
                self._committed_s = now_s
                self._commit(source)
            if now_s - self._idle_checked_s > min(1.0, self._settings.idle_timeout_s / 3):
                self._idle_checked_s = now_s
                self._mark_idle(source, now_s)
            if now_s - self._lag_s > LAG_S:
                self._lag_s = now_s
                self._measure_lag(source)
        except StoreError as error:
            self._redis_failed("upkeep", error)

    def _commit(self, source: Source) -> None:
        source.commit({p: reading.next_offset for p, reading in self._readings.items()})

    def _mark_idle(self, source: Source, now_s: float) -> None:
        """Tell the evaluator which partitions are read to the end and quiet: they hold no bucket open."""
        for partition, reading in self._readings.items():
            if reading.idle or now_s - reading.active_s < self._settings.idle_timeout_s or self._paused:
                continue
            if source.bounds(partition)[1] <= reading.next_offset:
                reading.idle = self._store.set_idle(partition, reading.token, True)

    def _measure_lag(self, source: Source) -> None:
        metrics.LAG_RECORDS.clear()  # of partitions that went to another replica
        for partition, reading in self._readings.items():
            lag = source.bounds(partition)[1] - reading.next_offset
            metrics.LAG_RECORDS.labels(partition.topic, partition.index).set(max(0, lag))

    def _note_idle_hands(self) -> None:
        if self._batch is None and not self._pipeline.works_in_hand:
            self.health.moved_s = time.monotonic()

    def _redis_failed(self, what: str, error: StoreError) -> None:
        metrics.REDIS_ERRORS.inc()
        self.health.moved_s = time.monotonic()  # not stuck: waiting for Redis, and saying so
        if self.health.redis_ok:
            log.warning("redis.away", during=what, error=str(error))
        self.health.redis_ok = False

    # ---------------------------------------------------------------- end

    def _drain(self, deadline_s: float) -> None:
        """Apply what is in hand, tell the group where we stand, leave."""
        source = self._source
        try:
            if source is not None:
                source.pause(list(self._readings))
                while (self._batch or self._pipeline.works_in_hand) and time.monotonic() < deadline_s:
                    self._settle(source)
                    self._pipeline.ready.wait(0.02)
                self._commit(source)
        except SourceError as error:
            log.warning("drain.source_failed", error=str(error))
        finally:
            left = self._pipeline.works_in_hand
            log.info("reader.stopped", works_left=left)
            self._leave()


def _count_metrics(counted: Tally, vectors: Mapping[tuple[str, int, str], Vector]) -> None:
    metrics.FUTURE_RECORDS.inc(counted.future)
    metrics.IMAGES_APPLIED.inc(sum(int(vector[IMAGES]) for vector in vectors.values()))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
