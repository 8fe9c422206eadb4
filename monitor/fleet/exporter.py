"""Metrics of the whole monitor, read from Redis by whoever holds the lease, so that each stands once in Prometheus.

A thread reads every ten seconds; a scrape takes what was read last and never waits for Redis. At most STREAMS_SHOWN
streams have series of their own: those with most trouble. The others are summed under "(other)".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor.core.alert_state import UNDER_WAY
from monitor.core.buckets import BINS, Layout
from monitor.core.event_time import closable, fleet_watermark
from monitor.core.types import Alert, AlertPhase, Partition, Totals, Vector
from monitor.fleet.counts import FleetCounts, Share, cumulative
from monitor.store import Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.metrics import FleetMetric

log = structlog.get_logger(__name__)

READ_EVERY_S = 10.0
"""At most; with shorter buckets as often as one closes."""
WINDOW_MS = 300_000
STREAMS_SHOWN = 500
"""13 series each: what one Prometheus scrape carries without notice."""
STREAMS_IN_DETAIL = 50
"""Of which every signal's movement is shown: twenty series each."""
OTHER = "(other)"
DEAD_ALERTS_COUNTED = 1_000

Series = dict[tuple[str, ...], float]
"""{label values: value}."""
Bins = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Now:
    """What one reading found."""

    totals: Mapping[str, Totals]
    active: Sequence[Alert]
    shares: Mapping[str, tuple[Share, ...]]


class FleetMetrics(Collector):
    """Registered while the lease is held: between `start` and `stop`.

    Args:
        receivers: names of the configured receivers.
        rates: (bucket_ms, lateness_ms).
        shown: streams with series of their own at most.
    """

    def __init__(
        self,
        store: Store,
        monitor: str,
        receivers: Iterable[str],
        rates: tuple[int, int],
        shown: int = STREAMS_SHOWN,
    ) -> None:
        self._store, self._monitor, self._receivers = store, monitor, tuple(receivers)
        self._bucket_ms, self._lateness_ms = rates
        self._shown_max = shown
        self._counts = FleetCounts(WINDOW_MS)
        self._read_ms: int | None = None  # the last bucket taken in
        self._layouts: dict[str, Layout] = {}
        self._shown: list[str] = []
        self._before: dict[str, Totals] = {}
        self._rest = Totals()
        self._bins_before: dict[str, Bins] = {}
        self._rest_bins = np.zeros(BINS, dtype=np.int64)
        self._families: Sequence[Metric] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-metrics", daemon=True)

    def start(self) -> FleetMetrics:
        """Begin to read and to export."""
        metrics.REGISTRY.register(self)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Export nothing from now on: another process does."""
        self._stop.set()
        self._families = ()
        metrics.REGISTRY.unregister(self)
        self._thread.join(timeout=1.0)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is to export is not known when this is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What was read last."""
        return self._families

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.read()
            except StoreError as error:
                log.warning("fleet_metrics.redis_away", error=str(error))
            except Exception:
                log.exception("fleet_metrics.failed")
                self._families = ()  # no series rather than old ones; alerts do not come this way
            self._stop.wait(min(READ_EVERY_S, self._bucket_ms / 1000))

    # ---------------------------------------------------------------- reading

    def read(self) -> None:
        """Read Redis once and make what `collect` gives.

        Raises:
            StoreError: Redis does not answer.
        """
        partitions = self._store.catalog.partitions()
        found = list(self._store.evaluation.alerts().values())
        active = [alert for alert in found if alert.phase in UNDER_WAY]
        if self._read_ms is None:
            self._counts.watch({alert.stream for alert in active[:STREAMS_IN_DETAIL]})
        self._take_buckets(partitions)
        totals = self._store.counts.totals(partitions)
        shares = self._counts.shares()
        now = _Now(totals, active, shares)
        self._choose(now)
        self._counts.watch(self._shown[:STREAMS_IN_DETAIL])
        families = [
            *self._monitor_families(now, partitions, found),
            *self._count_families(now),
            *self._share_families(now),
            *self._alert_families(now),
            *self._outbox_families(),
        ]
        if not self._stop.is_set():
            self._families = families

    def _take_buckets(self, partitions: tuple[Partition, ...]) -> None:
        decided = self._store.evaluation.state().bucket_ms
        if decided is None or (self._read_ms is not None and decided < self._read_ms):
            self._counts, self._read_ms = FleetCounts(WINDOW_MS), None  # the state is new, or was set back
            self._bins_before = {}
        self._layouts = self._store.catalog.layouts()
        self._counts.know(self._layouts)
        if decided is None:
            return
        first = self._read_ms is None
        since_ms = decided - WINDOW_MS if self._read_ms is None else self._read_ms + 1
        held: dict[int, dict[str, Mapping[str, Vector]]] = {}
        for fingerprint in self._layouts:
            read = self._store.counts.buckets(partitions, fingerprint, since_ms, decided + 1, ("closed",))
            for start, streams in read.items():
                held.setdefault(start, {})[fingerprint] = streams
        for start in sorted(held):
            # what another holder of the lease has counted is not counted again
            self._counts.add(start, held[start], count=not first)
        self._read_ms = decided

    def _choose(self, now: _Now) -> None:
        """The streams that are shown, those with most trouble first; the rest goes on in "(other)".

        Both kinds of counts are sums of steps, so that a stream that changes sides makes no counter fall.
        """
        trouble: dict[str, tuple[int, int]] = {}
        for alert in now.active:
            firing, pending = trouble.get(alert.stream, (0, 0))
            fires = alert.phase is AlertPhase.FIRING
            trouble[alert.stream] = (firing + fires, pending + (not fires))
        shown_before = set(self._shown)

        def rank(stream: str) -> tuple[tuple[int, int], float, bool, str]:
            share = now.shares.get(stream)
            excess = max(0.0, share[0].share - share[0].upper) if share else 0.0
            return (trouble.get(stream, (0, 0)), excess, stream in shown_before, stream)

        names = {*now.totals, *trouble} - {OTHER}
        self._shown = sorted(sorted(names), key=lambda s: rank(s)[:3], reverse=True)[: self._shown_max]
        shown = set(self._shown)
        for stream, total in now.totals.items():
            if stream not in shown:
                self._rest += _minus(total, self._before.get(stream, Totals()))
        self._before = dict(now.totals)
        for stream, counted in self._counts.p_values.items():
            if stream not in shown:
                self._rest_bins = self._rest_bins + counted - self._bins_before.get(stream, 0)
        self._bins_before = {stream: counted.copy() for stream, counted in self._counts.p_values.items()}

    # ---------------------------------------------------------------- families

    def _monitor_families(self, now: _Now, partitions: tuple[Partition, ...], found: Iterable[Alert]) -> list[Metric]:
        by_phase: Series = {}
        for alert in found:
            key = alert.rule, str(alert.phase)
            by_phase[key] = by_phase.get(key, 0.0) + 1
        return [
            self._family(metrics.STREAMS, {(): len(now.totals)}),
            self._family(metrics.PARTITIONS, {(): len(partitions)}),
            self._family(metrics.BUCKET_LAG, {(): self._bucket_lag_s(partitions)}),
            self._family(metrics.FLEET_READ, {(): time.time()}),
            self._family(metrics.ALERTS, by_phase),
            self._histogram(metrics.P_VALUE, self._counts.signals),
        ]

    def _bucket_lag_s(self, partitions: tuple[Partition, ...]) -> float:
        watermark = fleet_watermark(self._store.partitions.cursors(partitions).values(), self._lateness_ms)
        opened = {start for found in self._store.partitions.open_buckets(partitions).values() for _, start in found}
        due = closable(opened, watermark, self._bucket_ms)
        return max(0.0, ((watermark or 0) - min(due) - self._bucket_ms) / 1000) if due else 0.0

    def _count_families(self, now: _Now) -> list[Metric]:
        counts = {stream: now.totals.get(stream, Totals()) for stream in self._shown}
        bins = {stream: self._counts.p_values.get(stream, np.zeros(BINS, dtype=np.int64)) for stream in self._shown}
        if len(self._shown) < len(now.totals) or self._rest != Totals():
            counts[OTHER], bins[OTHER] = self._rest, self._rest_bins
        return [
            self._family(metrics.STREAM_IMAGES, {(s,): t.applied for s, t in counts.items()}),
            self._family(metrics.STREAM_REJECTED, {(s,): t.rejected for s, t in counts.items()}),
            self._family(metrics.STREAM_LATE, {(s,): t.late for s, t in counts.items()}),
            self._family(metrics.STREAM_DUPLICATES, {(s,): t.duplicates for s, t in counts.items()}),
            self._histogram(metrics.STREAM_P_VALUE, bins),
        ]

    def _share_families(self, now: _Now) -> list[Metric]:
        shares: Series = {}
        bands: Series = {}
        for stream in self._shown:
            for share in now.shares.get(stream, ()):
                level = f"{share.level:g}"
                shares[stream, level] = share.share
                bands[stream, level, "lower"], bands[stream, level, "upper"] = share.lower, share.upper
        alerted = {alert.stream for alert in now.active}
        effects: Series = {}
        looks: Series = {}
        for stream in self._shown[:STREAMS_IN_DETAIL]:
            movement = self._counts.movement(stream)
            for signal, learned, effect in movement.effects if movement else ():
                effects[stream, signal, "learned" if learned else "property"] = effect
            if stream in alerted:
                looks[stream, (movement.triage if movement else None) or "unknown"] = 1.0
        return [
            self._family(metrics.STREAM_OOD_SHARE, shares),
            self._family(metrics.STREAM_OOD_BAND, bands),
            self._family(metrics.STREAM_EFFECT, effects),
            self._family(metrics.STREAM_TRIAGE, looks),
        ]

    def _alert_families(self, now: _Now) -> list[Metric]:
        shown = set(self._shown)
        active: Series = {}
        since: Series = {}
        for alert in now.active:
            stream = alert.stream if alert.stream in shown else OTHER
            key = alert.rule, stream, str(alert.phase)
            active[key] = active.get(key, 0.0) + 1
            since[key[:2]] = min(since.get(key[:2], float("inf")), alert.since_ms / 1000)
        own = [name.partition(" ") for name in self._store.outbox.self_alerts()]
        return [
            self._family(metrics.ALERT_ACTIVE, active),
            self._family(metrics.ALERT_SINCE, since),
            self._family(metrics.OWN_ALERT, {(rule, subject): 1.0 for rule, _, subject in own}),
        ]

    def _outbox_families(self) -> list[Metric]:
        backlogs = {name: self._store.outbox.backlog(name) for name in self._receivers}
        dead: Series = {(name,): 0.0 for name in self._receivers}
        for letter in self._store.outbox.dead_alerts(DEAD_ALERTS_COUNTED):
            if (letter.receiver,) in dead:
                dead[letter.receiver,] += 1
        now_s = time.time()
        ages: Series = {
            (name,): max(0.0, now_s - backlog.oldest_ms / 1000) if backlog.oldest_ms else 0.0
            for name, backlog in backlogs.items()
        }
        return [
            self._family(metrics.OUTBOX_ENTRIES, {(name,): backlog.entries for name, backlog in backlogs.items()}),
            self._family(metrics.OUTBOX_AGE, ages),
            self._family(metrics.DEAD_ALERTS, dead),
            self._family(metrics.OUTBOX_DROPPED, {(): self._store.evaluation.state().outbox_dropped}),
        ]

    def _family(self, metric: FleetMetric, values: Series) -> Metric:
        labels = ("monitor", *metric.labels)
        family: CounterMetricFamily | GaugeMetricFamily = (
            CounterMetricFamily(metric.name, metric.meaning, labels=labels)
            if metric.kind == "counter"
            else GaugeMetricFamily(metric.name, metric.meaning, labels=labels)
        )
        for names, value in values.items():
            family.add_metric([self._monitor, *names], float(value))
        return family

    def _histogram(self, metric: FleetMetric, values: Mapping[str, Bins]) -> Metric:
        family = HistogramMetricFamily(metric.name, metric.meaning, labels=("monitor", *metric.labels))
        for name, counts in values.items():
            family.add_metric([self._monitor, name], cumulative(counts.tolist()), sum_value=None)
        return family


def _minus(a: Totals, b: Totals) -> Totals:
    # a total that fell was counted anew (lost state): all of it is new
    if any(getattr(a, f.name) < getattr(b, f.name) for f in fields(Totals)):
        return a
    return Totals(*(getattr(a, f.name) - getattr(b, f.name) for f in fields(Totals)))
