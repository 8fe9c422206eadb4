"""One process of a monitor: how its parts are put together, what runs in which thread, and how it ends.

The way of an image is one function, `Consumer.flow` (monitor/ingest/consumer.py): poll, decode, score, aggregate, write
the sinks, apply, move the cursor. The way of an alert is `Evaluator.look`: seal a bucket, judge it, decide.

    source ─► consumer ─► decoders (processes) ─► scoring (thread) ─► consumer ─► Redis
                                                                                    │
    receivers ◄─ dispatcher ◄─ outbox ◄─ evaluator (where a shard is held) ◄────────┘
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from importlib.metadata import version

import structlog

from monitor.config.errors import EXIT_CONFIG, EXIT_SOFTWARE, EXIT_UNAVAILABLE, CommandError
from monitor.config.schema import Config
from monitor.core.steps import steps_of
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.lease import Tenure
from monitor.evaluate.presentation import Presentation
from monitor.evaluate.renewal import RenewalSchedule, look_every
from monitor.evaluate.replica import Replica
from monitor.fleet.exporter import FleetExporter
from monitor.ingest.assignment import Assignment, AssignmentPolicy
from monitor.ingest.consumer import Consumer
from monitor.ingest.image_log import open_image_log
from monitor.ingest.maintenance import Maintenance
from monitor.ingest.scoring.profiles import Profiles, publish_profiles
from monitor.ingest.scoring.stage import ScoringError
from monitor.ingest.serving import Serving, free_loaded_memory
from monitor.ingest.sinks import Sinks
from monitor.ingest.stages import StageFactory
from monitor.ingest.watch import ProfileWatch
from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.delivery.dispatcher import STOP_TIMEOUT_S, Dispatcher
from monitor.notify.receivers.protocol import Receiver
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.rule import Rule
from monitor.sources import open_producer, open_source
from monitor.sources.protocol import FatalSourceError, Source
from monitor.store import Limits, Shard, Store, StoreConfigError, StoreError, open_store
from monitor.telemetry import metrics
from monitor.telemetry.clock import SteadyClock
from monitor.web.server import WebServer
from monitor.web.site import Site

log = structlog.get_logger(__name__)

WATCH_S = 0.5
FINAL_FLUSH_S = 5.0
"""For delivering the alert about what ends this process, within the grace period."""
MIN_REBUILD_MS = 300_000
"""Rebuilt at least, after Redis was lost: the evidence of an alert reaches back that far."""


# ------------------------------------------------------------------------------------------------ parts


def serving_of(settings: Config, profiles: Profiles, store: Store) -> Serving:
    """The profiles with their stages, which begin at once; ended by `Consumer.close`."""
    of = settings
    return Serving(
        StageFactory(store, of.stream, of.value, of.decoding, of.scoring, of.buckets, of.evidence),
        profiles,
    )


def build_consumer(
    settings: Config, serving: Serving, rules: Sequence[Rule], store: Store, join: Callable[[], Source]
) -> Consumer:
    """Everything that an image passes, from the source to Redis; ended by its `close`.

    Args:
        join: opens the source; called again after every failure of it.
    """
    alerts = SelfAlerts(store, settings.monitor, has_receivers=bool(settings.receivers))
    verdicts = settings.verdicts
    # the broker of the image log need not be the source's: each has its own section
    sinks = Sinks(
        open_image_log(verdicts, lambda: open_producer(settings.source_settings(verdicts.type))),
        alerts,
    )
    longest_ms = max([MIN_REBUILD_MS, *(rule.window_ms for rule in rules)])
    policy = AssignmentPolicy(
        start=settings.source_settings().section.start,
        rebuild_ms=longest_ms + settings.buckets.lateness_ms,
        dead_letters=settings.dead_letters,
        unnamed_stream=settings.stream.name,
        exemplars=settings.evidence.exemplars,
    )
    pipeline = settings.pipeline
    maintenance = Maintenance(store, alerts, sinks, serving.publish, settings.buckets.idle_timeout_s, pipeline.stall_s)
    return Consumer(join, store, serving.stages, Assignment(store, alerts, policy), maintenance, pipeline)


def presentation_of(settings: Config, bound_port: int = 0) -> Presentation:
    """What alerts say beyond the verdict; `bound_port` is that of the status page, where one runs."""
    return Presentation(
        monitor=settings.monitor,
        external_url=settings.web.url(bound_port),
        dashboard_url=settings.web.dashboard_url,
        exemplars=settings.evidence.exemplars,
        has_receivers=bool(settings.receivers),
    )


def limits_of(settings: Config) -> Limits:
    """What bounds the state in Redis."""
    return Limits(
        bucket_ms=settings.buckets.length_ms,
        retention_s=settings.buckets.retention_s,
        max_streams=settings.stream.max_streams,
        exemplars_kept=settings.evidence.exemplars,
        exemplar_retention_s=settings.evidence.retention_s,
        steps=steps_of(
            settings.buckets.length_ms,
            (rule.evidence_ms for rule in settings.rules),
            1000 * settings.buckets.history_s,
        ),
    )


# ------------------------------------------------------------------------------------------------ process


class Daemon:
    """One process of a monitor, from start to end.

    Args:
        settings: the configuration; parts get their sections, never the whole.
        load: loads the profiles that the configuration names now, and checks that the rules can judge by them; called
            again when a store has another active version.
        renew: the command that takes the next step of a scheduled renewal.

    Raises:
        ConfigError: they cannot be loaded.
        WebServerError: the address of the status page cannot be bound.
    """

    def __init__(self, settings: Config, load: Callable[[], Profiles], renew: Sequence[str] = ()) -> None:
        self._settings, self._renew = settings, renew
        profiles, rules = load(), settings.rules
        free_loaded_memory()
        self._stop = threading.Event()
        self._failure: CommandError | None = None
        self._store = open_store(settings.redis, settings.monitor, limits_of(settings))
        publish_profiles(self._store, profiles)
        serving = serving_of(settings, profiles, self._store)
        self._consumer = build_consumer(
            settings, serving, rules, self._store, lambda: open_source(settings.source_settings())
        )
        self._receivers: list[Receiver] = [
            receiver.build(lambda: open_producer(settings.source_settings())) for receiver in settings.receivers
        ]
        self._lease_work: dict[int, ExitStack] = {}
        """By shard."""
        self._rates = settings.buckets.length_ms, settings.buckets.lateness_ms
        alerts = SelfAlerts(self._store, settings.monitor, has_receivers=bool(settings.receivers))
        lateness_ms = settings.buckets.lateness_ms
        site = Site(self._store, settings.monitor, settings.web, lateness_ms, self._why_unready, settings.rules)
        self._web = WebServer(site, settings.web.host, settings.web.port)
        closing = Closing(self._store, settings.buckets, alerts)
        presentation = presentation_of(settings, self._web.bind())

        def evaluator_of(held: HeldShard) -> Evaluator:
            evaluator = Evaluator(self._store, rules, self._profiles.layouts, closing, presentation, held)
            evaluator.memory.conditions_of = self._conditions_of
            return evaluator

        shards = settings.evaluation.shards
        self._replica = Replica(self._store, evaluator_of, rules, shards, self._on_lease)
        self._take_up(profiles)
        serving.on_switch = self._take_up
        self._watch_profiles = ProfileWatch(self._store, serving, settings.scoring, load, alerts)
        metrics.QUEUE_LIMIT_BYTES.set(settings.pipeline.queue_bytes)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            CommandError: a thread failed; a restart may help.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._web.start()
        status_page = self._settings.web.external_url.rstrip("/") or self._web.address
        metrics.BUILD.labels(version("layerwatch"), self._settings.monitor, status_page).set(1)
        log.info("daemon.started", monitor=self._settings.monitor, web=self._web.address, pid=os.getpid())
        # what is left of the grace period is for closing everything
        consuming = self._thread("reader", lambda: self._consumer.run(0.8 * self._settings.pipeline.grace_s))
        evaluating = self._thread("evaluator", self._replica.run)
        self._watch_profiles.start()
        while not self._stop.wait(WATCH_S):
            self._watch()
        self._end(consuming, evaluating)
        if self._failure is not None:
            raise self._failure

    # ---------------------------------------------------------------- threads

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except FatalSourceError as error:
                self._fail(str(error), EXIT_UNAVAILABLE)
            except StoreConfigError as error:
                self._fail(str(error), EXIT_CONFIG)
            except ScoringError as error:
                log.exception("pipeline.failed")
                self._fail(str(error))
            except Exception as error:
                log.exception(f"{name}.failed")
                self._fail(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _fail(self, reason: str, status: int = EXIT_SOFTWARE) -> None:
        self._failure = self._failure or CommandError(f"layerwatch run: {reason}", status)
        self._stop.set()

    def _watch(self) -> None:
        """Exit at once when a thread hangs, so that its partitions go to another replica."""
        health, now_s = self._consumer.health, time.monotonic()
        stall_s = self._settings.pipeline.stall_s
        for what, seen_s in (("poll", health.polled_s), ("apply", health.moved_s), ("look", self._replica.seen_s)):
            if now_s - seen_s > stall_s:
                log.error("watchdog.stalled", what=what, seconds=round(now_s - seen_s, 1))
                sys.stderr.flush()
                os._exit(EXIT_SOFTWARE)

    def _end(self, consuming: threading.Thread, evaluating: threading.Thread) -> None:
        """Finish the work in flight, then close everything, all within the grace period."""
        log.info("daemon.stopping", grace_s=self._settings.pipeline.grace_s)
        hard_end = threading.Timer(self._settings.pipeline.grace_s, os._exit, (EXIT_SOFTWARE,))
        hard_end.daemon = True
        hard_end.start()
        self._watch_profiles.stop()
        self._consumer.stop()
        if self._failure is not None:
            self._flush_alerts()
        self._replica.stop()
        consuming.join()
        evaluating.join()
        self._consumer.close()
        for receiver in self._receivers:
            receiver.close()
        self._web.stop()
        self._store.close()
        hard_end.cancel()
        log.info("daemon.stopped")

    def _flush_alerts(self) -> None:
        """Deliver the alert about the failure that ends this process: no other replica may be there to do it."""
        deadline = time.monotonic() + FINAL_FLUSH_S
        backlog = self._store.shards.backlog
        try:
            while time.monotonic() < deadline and any(backlog(receiver.name).entries for receiver in self._receivers):
                time.sleep(0.1)
        except StoreError as error:
            log.warning("daemon.final_flush_failed", error=str(error))

    # ---------------------------------------------------------------- callbacks

    def _on_lease(self, shard: Shard, tenure: Tenure | None) -> None:
        """Who judges a shard also delivers its alerts; who judges the first one does what the fleet does once."""
        if work := self._lease_work.pop(shard.number, None):
            work.close()
        if not tenure:
            return
        work, monitor = self._lease_work.setdefault(shard.number, ExitStack()), self._settings.monitor
        names = [receiver.name for receiver in self._receivers]
        if not shard.number:
            work.callback(FleetExporter(self._store, monitor, names, self._rates).start().stop)
            plan = self._settings.renewal
            if self._renew and plan.every is not None:
                work.callback(RenewalSchedule(self._renew, look_every(plan)).start().stop)
        if self._receivers:
            steady_ms = SteadyClock(self._store.outbox.now_ms)
            context = DeliveryContext(
                self._store, monitor, holds_lease=tenure.holds, observe=_observe, steady_ms=steady_ms, shard=shard
            )
            dispatcher = Dispatcher(context, self._receivers)
            dispatcher.start()
            # together as long as one: all of them end when a process does
            work.callback(dispatcher.stop, STOP_TIMEOUT_S / shard.of)

    def _take_up(self, profiles: Profiles) -> None:
        self._profiles = profiles

    def _conditions_of(self, stream: str) -> Collection[str]:
        return self._profiles.conditions_of(stream)

    def _why_unready(self) -> str:
        return "stopping" if self._stop.is_set() else self._consumer.why_unready()


def _observe(receiver: str, outcome: str, seconds: float) -> None:
    metrics.DELIVERIES.labels(receiver, outcome).inc()
    metrics.DELIVERY_SECONDS.labels(receiver).observe(seconds)
