"""The thread that owns the source and the cursors: poll, hand over, take back, apply. See `Consumer.run`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from monitor.core.aggregate import Aggregate, Counting
from monitor.core.buckets import IMAGES
from monitor.core.reject_window import RejectWindow
from monitor.core.types import Applied, ApplyStatus, DeadLetter, Delta, Partition, Record, Vector
from monitor.ingest.assignment import OwnedPartition, StoppedError, take_over
from monitor.ingest.batch import BACKOFF_S, Batch, count
from monitor.ingest.image_log import ImageLog
from monitor.ingest.maintenance import ConsumerSettings, Health, Maintenance, now_ms
from monitor.ingest.scoring.pipeline import Pipeline, Work
from monitor.ingest.sinks import Sinks
from monitor.notify.self_alerts import DEAD_LETTERS, TOPIC, UNREADABLE, SelfAlerts
from monitor.sources.protocol import FatalSourceError, Polled, Source, SourceError, UnreadableError
from monitor.store import Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.failpoints import failpoint

log = structlog.get_logger(__name__)

FINISH_S = 30.0
"""For what was read before a damaged place, before the client is given up."""
BUSY_POLL_S = 0.01
"""Poll time-out while scored work may be ready to apply at any moment."""


class Consumer:
    """Reads the source for ever; `run` returns after `stop`, and raises what cannot be mended here.

    Args:
        open_source: joins the group; called again after every SourceError.
        settings: limits.
        counting: what `aggregate` needs.
        publish: writes to Redis what others must know of our profiles; again wherever it may be lost.
        verdicts: where per-image verdicts go; closed by whoever opened it.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        store: Store,
        pipeline: Pipeline,
        counting: Counting,
        settings: ConsumerSettings,
        alerts: SelfAlerts,
        publish: Callable[[], None],
        verdicts: ImageLog | None = None,
    ) -> None:
        self._open_source, self._store, self._pipeline = open_source, store, pipeline
        self._counting, self._settings, self._alerts = counting, settings, alerts
        self._verdicts = verdicts
        self._owned: dict[Partition, OwnedPartition] = {}
        self._unclaimed: dict[Partition, float] = {}  # -> monotonic time of the next try
        self._unreadable: dict[Partition, UnreadableError] = {}
        self._ready: list[Work] = []  # has nothing to decode
        self._batch: Batch | None = None
        self._paused = False
        self._source: Source | None = None
        self._stop = threading.Event()
        self._failures = 0
        self._ever_joined = False
        self.health = Health()
        self._sinks = Sinks(verdicts, alerts, self.health)
        self._maintenance = Maintenance(store, alerts, publish, settings, self._owned, self.health)

    def stop(self) -> None:
        """Let `run` finish what is in hand and return."""
        self._stop.set()

    def run(self, grace_s: float = 25.0) -> None:
        """Poll, decode and score, apply: until `stop`, then up to `grace_s` for what is still in hand.

        Raises:
            FatalSourceError: no other try will help; where it had worked before, people are told.
            PipelineError: scoring is broken.
        """
        try:
            self._read_on()
        except FatalSourceError as error:
            if self._ever_joined:
                self._alerts.tell_if_possible(TOPIC, "source", now_ms(), str(error))
            raise
        self._drain(time.monotonic() + grace_s)

    def _read_on(self) -> None:
        while not self._stop.is_set():
            try:
                source = self._joined()
                polled = source.poll(self._poll_timeout())
                failpoint("polled")
                self._follow(source, polled)  # partitions that came and went
                self._submit(polled)  # records -> decode -> score, in threads
                self._settle(source)  # scored -> dead letters, verdicts -> Redis -> our cursor
                self._balance(source)  # pause above the byte limit, resume below half of it
                self._tend(source)  # commits, new partitions, idleness
            except SourceError as error:
                self._rejoin(error)

    # ---------------------------------------------------------------- membership

    def _joined(self) -> Source:
        if self._source is None:
            self._source = self._open_source()
            self._paused = False
            self._maintenance.register_soon()
        return self._source

    def _rejoin(self, error: SourceError) -> None:
        """Give the client up, with everything that was read through it, and build another after a while."""
        log.warning("source.failed", error=str(error))
        metrics.SOURCE_REBUILDS.inc()
        if isinstance(error, UnreadableError):
            # what came before the damage would be dropped with the client, and read again only to be dropped again
            self._finish_in_hand(time.monotonic() + FINISH_S)
            self._unreadable[error.partition] = error
        self._leave()
        self._stop.wait(BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1

    def _leave(self) -> None:
        self._owned.clear()
        self._unclaimed.clear()
        self._ready.clear()
        self._batch = None
        self.health.joined = False
        if self._source is not None:
            self._source.close()
            self._source = None

    def _follow(self, source: Source, polled: Polled) -> None:
        self.health.polled_s = time.monotonic()
        self.health.joined = self._ever_joined = True
        metrics.LAST_POLL.set_to_current_time()
        for partition in polled.revoked:
            self._owned.pop(partition, None)
            self._unclaimed.pop(partition, None)
        for partition in polled.assigned:
            self._owned.pop(partition, None)
            self._unclaimed[partition] = 0.0
        due = [p for p, not_before_s in self._unclaimed.items() if not_before_s <= time.monotonic()]
        for partition in due:
            self._claim(source, partition)
        metrics.PARTITIONS_OWNED.set(len(self._owned))

    def _claim(self, source: Source, partition: Partition) -> None:
        if partition in self.health.stopped:
            del self._unclaimed[partition]
            return
        try:
            reading = take_over(
                self._store, source, partition, self._settings.policy, self._settings.recent, self._alerts, now_ms()
            )
            failpoint("claimed")
            begin = self._beyond_damage(source, reading)
        except StoreError as error:
            self._redis_failed("claim", error)
            self._unclaimed[partition] = time.monotonic() + 1.0
            return
        except StoppedError as stop:
            del self._unclaimed[partition]
            self._stop_partition(source, partition, stop)
            return
        del self._unclaimed[partition]
        self._owned[partition] = reading
        source.start(partition, begin)
        if self._paused:
            source.pause([partition])
        self._maintenance.commit_soon()

    def _beyond_damage(self, source: Source, reading: OwnedPartition) -> int:
        """Where to read on: the cursor, or behind what no client can read, whose offsets become dead letters.

        Raises:
            StoppedError: by policy.
        """
        partition, begin = reading.partition, reading.next_offset
        known = self._unreadable.get(partition)
        if known is None or begin < known.next_offset:
            return begin
        if begin == known.next_offset:
            end = source.readable_from(partition, begin)
            if end == begin:  # it can be read again: another replica of the partition leads
                del self._unreadable[partition]
                return begin
            text = f"{partition}: offsets {begin} to {end - 1} cannot be read: {known}"
            if self._settings.policy.on_unreadable == "stop":
                raise StoppedError(UNREADABLE, f"{text}; dead_letters.on_unreadable is stop", reading.token)
            self._alerts.tell(UNREADABLE, str(partition), now_ms(), text)
            at_ms = reading.high_ms or now_ms()
            letters = [
                DeadLetter(Record(partition, i, at_ms, None, None), self._settings.unnamed_stream, "unreadable", text)
                for i in range(begin, end)
            ]
            self._ready.append(Work(reading, (), end, letters))
            begin = end
        del self._unreadable[partition]
        return begin

    def _stop_partition(self, source: Source, partition: Partition, stop: StoppedError) -> None:
        """Read it no further until this process starts anew; the others go on, and their buckets close."""
        self._owned.pop(partition, None)
        self.health.stopped[partition] = str(stop)
        metrics.PARTITIONS_STOPPED.set(len(self.health.stopped))
        source.pause([partition])
        self._alerts.tell_if_possible(stop.rule, str(partition), now_ms(), str(stop))
        try:
            self._store.partitions.set_idle(partition, stop.token, True)
        except StoreError as error:
            self._redis_failed("stop", error)

    # ---------------------------------------------------------------- flow

    def _poll_timeout(self) -> float:
        waiting = self._batch is not None and not self._pipeline.works_in_hand
        return self._settings.poll_s if waiting or not self._pipeline.works_in_hand else BUSY_POLL_S

    def _submit(self, polled: Polled) -> None:
        for partition, next_offset in polled.next_offsets.items():
            reading = self._owned.get(partition)
            if reading is not None:
                reading.active_s = time.monotonic()
                self._pipeline.submit(Work(reading, polled.records.get(partition, ()), next_offset))
        metrics.QUEUE_BYTES.set(self._pipeline.bytes_in_hand)

    def _settle(self, source: Source) -> None:
        """Apply what is scored. The cursor moves only here, after dead letters and verdicts are acknowledged."""
        if self._batch is None:
            works, self._ready = [*self._ready, *self._pipeline.take()], []
            self._batch = count(works, self._owned, self._counting, self._verdicts, now_ms())
        batch = self._batch
        if batch is None or time.monotonic() < batch.not_before_s:
            self._note_idle_hands()
            return
        if all(self._owned.get(reading.partition) is not reading for reading in batch.owned):
            self._batch = None  # it went to others, who read it again
            return
        if not self._sinks.write(source, batch):
            return
        failpoint("before_apply")
        started = time.perf_counter()
        try:
            applied = self._store.partitions.apply(batch.deltas)
        except StoreError as error:
            self._redis_failed("apply", error)
            batch.try_later()
            return
        failpoint("after_apply")
        metrics.STAGE_SECONDS.labels("apply").observe(time.perf_counter() - started)
        metrics.LAST_APPLY.set_to_current_time()
        self.health.redis_ok = True
        self.health.moved_s = time.monotonic()
        self._failures = 0
        self._batch = None
        for i, outcome in enumerate(applied):
            if self._take_answer(source, batch.owned[i], batch.deltas[i], batch.aggregates[i], outcome):
                self._judge_share(source, batch.owned[i], batch.recents[i])

    def _take_answer(
        self, source: Source, reading: OwnedPartition, delta: Delta, counted: Aggregate, outcome: Applied
    ) -> bool:
        """Whether it is applied; else the partition is taken over again, or the client given up."""
        metrics.APPLIES.labels(str(outcome.status)).inc()
        if outcome.status in {ApplyStatus.OK, ApplyStatus.DUP}:
            reading.next_offset = delta.next_offset
            reading.high_ms = counted.high_ms
            reading.facts.update(counted.facts)
            reading.idle = False
            _count_metrics(counted, delta.vectors)
            return True
        log.warning("apply.refused", partition=str(delta.partition), status=str(outcome.status), expect=delta.expect)
        if self._owned.get(delta.partition) is not reading:
            return False
        del self._owned[delta.partition]
        if outcome.status is ApplyStatus.FENCED:
            raise SourceError(f"{delta.partition}: another owner has claimed it")
        # REWIND or LOST: Redis is the truth. Taking the partition over again seeks to where it stands; what is in
        # hand belongs to the old reading and is dropped.
        self._take_again(source, delta.partition)
        return False

    def _take_again(self, source: Source, partition: Partition) -> None:
        self._owned.pop(partition, None)
        self._unclaimed[partition] = 0.0
        self._maintenance.register_soon()
        self._claim(source, partition)

    def _judge_share(self, source: Source, reading: OwnedPartition, recent: RejectWindow) -> None:
        """Stop a partition of which too much is bad: its producer is broken, and we would only move its records."""
        reading.recent = recent
        if recent.exceeded:
            told = f"{sum(recent.bad)} of the last {recent.window} records are bad"
            text = f"{reading.partition}: {told} (dead_letters.max_share {recent.max_share})"
            self._stop_partition(source, reading.partition, StoppedError(DEAD_LETTERS, text, reading.token))

    # ---------------------------------------------------------------- upkeep

    def _balance(self, source: Source) -> None:
        held = self._pipeline.bytes_in_hand
        if not self._paused and (held > self._settings.queue_bytes or self._stuck()):
            source.pause(list(self._owned))
            self._paused = True
        elif self._paused and held < self._settings.queue_bytes / 2 and not self._stuck():
            source.resume(list(self._owned))
            self._paused = False
        metrics.PAUSED.set(self._paused)

    def _stuck(self) -> bool:
        return self._batch is not None and self._batch.tries > 0

    def _tend(self, source: Source) -> None:
        try:
            lost = self._maintenance.tend(source, in_hand=self._in_hand, paused=self._paused)
            if self._batch is None:  # what is being applied notices it by itself
                for partition in lost:
                    self._take_again(source, partition)
        except StoreError as error:
            self._redis_failed("upkeep", error)

    @property
    def _in_hand(self) -> bool:
        return bool(self._batch or self._ready or self._pipeline.works_in_hand)

    def _note_idle_hands(self) -> None:
        if not self._in_hand:
            self.health.moved_s = time.monotonic()
        else:  # a row of records that each hang their decoder is slow, but not stuck
            self.health.moved_s = max(self.health.moved_s, self._pipeline.decoded_s)

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
                source.pause(list(self._owned))
                self._finish_in_hand(deadline_s)
                self._maintenance.commit(source)
        except SourceError as error:
            log.warning("drain.source_failed", error=str(error))
        except StoreError as error:
            log.warning("drain.redis_away", error=str(error))
        finally:
            log.info("reader.stopped", works_left=self._pipeline.works_in_hand)
            self._leave()

    def _finish_in_hand(self, deadline_s: float) -> None:
        source = self._source
        while source is not None and time.monotonic() < deadline_s:
            if not self._in_hand:
                return
            try:
                self._settle(source)
            except SourceError as error:
                log.warning("reader.left_unfinished", error=str(error))
                return
            self.health.polled_s = time.monotonic()
            self._pipeline.ready.wait(0.02)


def _count_metrics(counted: Aggregate, vectors: Mapping[tuple[str, int, str], Vector]) -> None:
    metrics.FUTURE_RECORDS.inc(counted.future)
    metrics.IMAGES_APPLIED.inc(sum(int(vector[IMAGES]) for vector in vectors.values()))
