"""The daemon: what runs in which thread, and how it ends. An image's way is `Consumer.run`, an alert's
`Evaluator.look`.

source ─► reader ─► pipeline (decode, score) ─► reader ─► Redis      one thread polls and applies
                                                           │
receivers ◄─ dispatcher ◄─ outbox ◄─ evaluator ◄───────────┘         one thread, where the lease is held
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import structlog

from monitor.config.errors import EXIT_SOFTWARE, EXIT_UNAVAILABLE
from monitor.config.schema import Config
from monitor.evaluate.evaluator import Evaluator
from monitor.fleet.exporter import FleetMetrics
from monitor.ingest.consumer import Consumer
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.image_log import open_image_log
from monitor.ingest.scoring.pipeline import Pipeline, PipelineError
from monitor.ingest.scoring.profiles import Profiles
from monitor.ingest.wiring import counting_of, limits_of, presentation_of, publish_profiles, reader_settings_of
from monitor.notify import Dispatcher, Receiver, build_receiver
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.ruleset import BoundRule
from monitor.sources import open_producer, open_source
from monitor.sources.protocol import FatalSourceError
from monitor.store import StoreError, open_store
from monitor.telemetry import metrics
from monitor.web import WebServer, build_app

log = structlog.get_logger(__name__)

WATCH_S = 0.5
LAST_WORDS_S = 5.0
"""For the alert about what ends this process, within the grace period."""


class Daemon:
    """One process of a monitor, from start to end.

    Args:
        settings: the configuration; parts get their values, never the whole.
        profiles, rules: loaded and checked beforehand, so that a wrong configuration never gets this far.
    """

    def __init__(self, settings: Config, profiles: Profiles, rules: tuple[BoundRule, ...]) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._failure: tuple[int, str] | None = None
        self._store = open_store(settings.redis, settings.monitor, limits_of(settings))
        publish = partial(publish_profiles, self._store, profiles)
        publish()
        decoding = settings.decoding
        self._pipeline = Pipeline(
            DecoderPool(
                Decoder(profiles.preparers(), settings.stream, decoding),
                decoding.workers,
                decoding.timeout_s,
                decoding.worker_memory_bytes,
            ),
            profiles,
            settings.scoring.batch_images,
            settings.scoring.batch_age_s,
            settings.pipeline.queue_bytes,
        )
        self._verdicts = open_image_log(settings, profiles.layouts)
        self._reader = Consumer(
            lambda: open_source(settings.source_settings()),
            self._store,
            self._pipeline,
            counting_of(settings, profiles),
            reader_settings_of(settings, rules),
            SelfAlerts(self._store, settings.monitor, heard=bool(settings.receivers)),
            publish,
            self._verdicts,
        )
        self._receivers: list[Receiver] = [
            build_receiver(receiver, settings.monitor, lambda: open_producer(settings.source_settings()))
            for receiver in settings.receivers
        ]
        self._dispatcher: Dispatcher | None = None
        self._fleet: FleetMetrics | None = None
        self._evaluator = Evaluator(
            self._store,
            rules,
            profiles.layouts,
            (settings.buckets.seconds * 1000, round(settings.buckets.lateness_s * 1000)),
            presentation_of(settings),
            self._on_lease,
        )
        app = build_app(
            self._store,
            settings.monitor,
            settings.web,
            round(settings.buckets.lateness_s * 1000),
            self._why_unready,
            settings.rules,
        )
        self._web = WebServer(app, settings.web.host, settings.web.port)
        metrics.QUEUE_LIMIT_BYTES.set(settings.pipeline.queue_bytes)
        for device, kind in profiles.device_memory():
            metrics.DEVICE_MEMORY.labels(device, kind).set_function(partial(_device_bytes, profiles, device, kind))
        for profile in profiles.all():
            facts = profile.manifest
            metrics.PROFILE.labels(profile.fingerprint, facts["detector"], profile.backbone.spec.model).set(1)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until something cannot be mended here; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._web.start()
        status_page = self._settings.web.external_url.rstrip("/") or self._web.address
        metrics.BUILD.labels(version("layerwatch"), self._settings.monitor, status_page).set(1)
        log.info("daemon.started", monitor=self._settings.monitor, web=self._web.address, pid=os.getpid())
        # what is left of the grace period is for closing everything
        reading = self._thread("reader", lambda: self._reader.run(0.8 * self._settings.pipeline.grace_s))
        evaluating = self._thread("evaluator", self._evaluator.run)
        while not self._stop.wait(WATCH_S):
            self._watch()
        self._end(reading, evaluating)
        if self._failure is None:
            return 0
        status, reason = self._failure
        sys.stderr.write(f"layerwatch run: {reason}\n")
        return status

    # ---------------------------------------------------------------- threads

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except FatalSourceError as error:
                self._fail(EXIT_UNAVAILABLE, str(error))
            except PipelineError as error:
                log.exception("pipeline.failed")
                self._fail(EXIT_SOFTWARE, str(error))
            except Exception as error:
                log.exception(f"{name}.failed")
                self._fail(EXIT_SOFTWARE, f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _fail(self, status: int, reason: str) -> None:
        self._failure = self._failure or (status, reason)
        self._stop.set()

    def _watch(self) -> None:
        """Leave at once when a thread hangs: an owner that neither reads nor gives up its partitions helps nobody."""
        health, now_s = self._reader.health, time.monotonic()
        stall_s = self._settings.pipeline.stall_s
        for what, seen_s in (("poll", health.polled_s), ("apply", health.moved_s), ("look", self._evaluator.seen_s)):
            if now_s - seen_s > stall_s:
                log.error("watchdog.stalled", what=what, seconds=round(now_s - seen_s, 1))
                sys.stderr.flush()
                os._exit(EXIT_SOFTWARE)

    def _end(self, reading: threading.Thread, evaluating: threading.Thread) -> None:
        """SIGTERM: what is in hand is finished, then everything is closed, all within the grace period."""
        log.info("daemon.stopping", grace_s=self._settings.pipeline.grace_s)
        hard_end = threading.Timer(self._settings.pipeline.grace_s, os._exit, (EXIT_SOFTWARE,))
        hard_end.daemon = True
        hard_end.start()
        self._reader.stop()
        if self._failure is not None:
            self._let_alerts_out()
        self._evaluator.stop()
        reading.join()
        evaluating.join()
        self._pipeline.close()
        if self._verdicts is not None:
            self._verdicts.close()
        for receiver in self._receivers:
            receiver.close()
        self._web.stop()
        self._store.close()
        hard_end.cancel()
        log.info("daemon.stopped")

    def _let_alerts_out(self) -> None:
        """What made us fail has just been told; nobody else may be there to deliver it."""
        deadline = time.monotonic() + LAST_WORDS_S
        names = [receiver.name for receiver in self._receivers]
        try:
            while (
                names
                and time.monotonic() < deadline
                and any(self._store.outbox.backlog(name).entries for name in names)
            ):
                time.sleep(0.1)
        except StoreError as error:
            log.warning("daemon.last_words_unsaid", error=str(error))

    # ---------------------------------------------------------------- parts

    def _on_lease(self, held: bool) -> None:
        """Whoever evaluates also delivers, and exports what is known of the whole fleet."""
        if self._fleet is not None:
            self._fleet.stop()
            self._fleet = None
        if held:
            rates = self._settings.buckets.seconds * 1000, round(self._settings.buckets.lateness_s * 1000)
            names = [receiver.name for receiver in self._receivers]
            self._fleet = FleetMetrics(self._store, self._settings.monitor, names, rates).start()
        if self._dispatcher is not None:
            self._dispatcher.stop()
            self._dispatcher = None
        if held and self._receivers:
            self._dispatcher = Dispatcher(
                self._store,
                self._receivers,
                self._settings.monitor,
                holds_lease=lambda: self._evaluator.holds_lease,
                observe=_observe,
            )
            self._dispatcher.start()

    def _why_unready(self) -> str:
        if self._stop.is_set():
            return "stopping"
        health = self._reader.health
        if not health.joined:
            return "not joined to the source yet"
        if not health.redis_ok:
            return "Redis does not answer"
        if not health.letters_ok:
            return "dead letters cannot be written, and reading waits for them"
        if not health.verdicts_ok:
            return "per-image verdicts cannot be written, and reading waits for them"
        return next(iter(health.stopped.values()), "")


def _device_bytes(profiles: Profiles, device: str, kind: str) -> float:
    return profiles.device_memory()[device, kind]


def _observe(receiver: str, outcome: str, seconds: float) -> None:
    metrics.DELIVERIES.labels(receiver, outcome).inc()
    metrics.DELIVERY_SECONDS.labels(receiver).observe(seconds)
