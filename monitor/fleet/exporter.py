"""Metrics of the whole monitor, read from Redis and exported by the holder of the lease alone.

A thread reads every ten seconds; a scrape returns what was read last and never waits for Redis. At most STREAMS_SHOWN
streams have series of their own: those with the most urgent alerts. The others are summed under "(other)".
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import astuple
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor.core.buckets import BINS, LEVELS
from monitor.core.event_time import closable
from monitor.core.readers import Unread
from monitor.core.types import AlertPhase, Totals
from monitor.fleet.counts import ClosedCounts, Counts, Share
from monitor.fleet.state import FleetState, read_state
from monitor.fleet.tables import grown
from monitor.store import OTHER_STREAM, Store, StoreError
from monitor.telemetry import metrics
from monitor.telemetry.metrics import FleetMetric

log = structlog.get_logger(__name__)

READ_EVERY_S = 10.0
"""At most; with shorter buckets as often as one closes."""
WINDOW_MS = 300_000
STREAMS_SHOWN = 500
"""13 series each: 6,500 in one scrape are no burden for Prometheus."""
STREAMS_IN_DETAIL = 50
"""Of which every signal's movement is shown: twenty series each."""
DEAD_ALERTS_COUNTED = 1_000

FIRING, PENDING = AlertPhase.FIRING, AlertPhase.PENDING
Series: TypeAlias = Mapping[tuple[str, ...], float | Counts]
"""{label values: value}; a histogram's value is (9,) counts per bin."""
Values: TypeAlias = tuple[FleetMetric, Series]


class FleetExporter(Collector):
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
        self._shown_max, self._shown = shown, list[str]()
        self._forget()
        self._totals_before: Mapping[str, Totals] = {}
        self._rest, self._rest_bins = Totals(), np.zeros(BINS, dtype=np.int64)
        self._families: Sequence[Metric] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-exporter", daemon=True)

    def start(self) -> FleetExporter:
        """Begin to read and to export."""
        metrics.REGISTRY.register(self)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop reading and exporting: another process takes over."""
        self._stop.set()
        self._families = ()
        metrics.REGISTRY.unregister(self)
        self._thread.join(timeout=1.0)

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
                self._families = ()  # no series rather than stale ones; alerts do not depend on them
            self._stop.wait(min(READ_EVERY_S, self._bucket_ms / 1000))

    def read(self) -> None:
        """Read Redis once and make what `collect` returns.

        Raises:
            StoreError: Redis does not answer.
        """
        state = read_state(self._store, self._lateness_ms)
        if self._counted_ms is None:
            self._counts.watch({alert.stream for alert in state.active[:STREAMS_IN_DETAIL]})
        self._count_closed(state)
        shares = self._counts.shares()
        self._shown = self._most_urgent(state, shares)
        self._counts.watch(self._shown[:STREAMS_IN_DETAIL])
        self._add_to_rest(state)
        values = [
            *self._monitor_values(state),
            *self._stream_values(state),
            *self._share_values(shares),
            *self._movement_values({alert.stream for alert in state.active}),
            *self._alert_values(state),
            *self._outbox_values(),
        ]
        exported = [_family(self._monitor, metric, series) for metric, series in values]
        if not self._stop.is_set():
            self._families = exported

    # ---------------------------------------------------------------- counting

    def _forget(self) -> None:
        self._counts, self._bins_before = ClosedCounts(WINDOW_MS), np.zeros((0, BINS), dtype=np.int64)
        self._counted_ms: int | None = None  # start of the newest bucket that was counted

    def _count_closed(self, state: FleetState) -> None:
        decided_ms = state.evaluator.bucket_ms
        if decided_ms is None or (self._counted_ms is not None and decided_ms < self._counted_ms):
            self._forget()  # the state is new, or Redis lost its last writes
        self._counts.set_layouts(state.layouts)
        if decided_ms is None:
            return
        # buckets before the first read only fill the window: another holder of the lease has counted them
        first = self._counted_ms is None
        since_ms = decided_ms - WINDOW_MS if self._counted_ms is None else self._counted_ms + 1
        closed = self._store.counts.members(state.partitions, since_ms, until_ms=decided_ms + 1)
        for bucket in sorted(closed, key=itemgetter(2)):
            _, fingerprint, start = bucket
            self._counts.add(start, fingerprint, *self._store.counts.table(bucket), count=not first)
        self._counted_ms = decided_ms

    # ---------------------------------------------------------------- choosing

    def _most_urgent(self, state: FleetState, shares: Mapping[str, tuple[Share, ...]]) -> list[str]:
        """The shown streams: by firing alerts, then pending ones, then how far the OOD share lies above normal."""
        alerts = Counter((alert.stream, alert.phase) for alert in state.active)
        shown_before = set(self._shown)

        def rank(stream: str) -> tuple[int, int, float, bool]:
            share = shares.get(stream)
            excess = max(0.0, share[0].share - share[0].upper) if share else 0.0
            return alerts[stream, FIRING], alerts[stream, PENDING], excess, stream in shown_before

        names = sorted({*state.totals, *(stream for stream, _ in alerts)} - {OTHER_STREAM})
        return sorted(names, key=rank, reverse=True)[: self._shown_max]

    def _add_to_rest(self, state: FleetState) -> None:
        """Add the growth of the streams without series to "(other)".

        Its counts are sums of steps, so that no counter falls when a stream gets or loses its series.
        """
        shown = set(self._shown)
        for stream, total in state.totals.items():
            if stream not in shown:
                self._rest += _minus(total, self._totals_before.get(stream, Totals()))
        self._totals_before = state.totals
        now = self._counts.p_values
        hidden = [i for i, stream in enumerate(self._counts.streams.names) if stream not in shown]
        self._rest_bins += (now - grown(self._bins_before, len(now)))[hidden].sum(axis=0)
        self._bins_before = now.copy()

    # ---------------------------------------------------------------- values

    def _monitor_values(self, state: FleetState) -> Iterator[Values]:
        opened = {start for _, _, start in self._store.counts.members(state.partitions, 0, ("open",))}
        due = closable(opened, state.watermark_ms, self._bucket_ms)
        lag_ms = (state.watermark_ms or 0) - min(due) - self._bucket_ms if due else 0
        yield metrics.STREAMS, {(): len(state.totals)}
        yield metrics.PARTITIONS, {(): len(state.partitions)}
        left_out = Counter(state.left_out.values())
        yield metrics.PARTITIONS_LEFT_OUT, {(kind,): left_out[kind] for kind in Unread}
        by_profile = Counter(fingerprint for replica in state.replicas for fingerprint in replica.fingerprints)
        yield metrics.REPLICAS, {(fingerprint,): count for fingerprint, count in by_profile.items()}
        yield metrics.BUCKET_LAG, {(): max(0.0, lag_ms / 1000)}
        yield metrics.FLEET_READ, {(): time.time()}
        yield metrics.P_VALUE, {(signal,): counts for signal, counts in self._counts.signals.items()}
        yield metrics.OUTBOX_DROPPED, {(): state.evaluator.outbox_dropped}
        yield metrics.OWN_ALERT, {(alert.rule, alert.subject): 1 for alert in state.self_alerts}

    def _stream_values(self, state: FleetState) -> Iterator[Values]:
        p_values = dict(zip(self._counts.streams.names, self._counts.p_values, strict=True))
        totals = {stream: state.totals.get(stream, Totals()) for stream in self._shown}
        nothing = np.zeros(BINS, dtype=np.int64)
        bins: dict[tuple[str, ...], Counts] = {(s,): p_values.get(s, nothing) for s in self._shown}
        if len(self._shown) < len(state.totals) or self._rest != Totals():
            totals[OTHER_STREAM], bins[OTHER_STREAM,] = self._rest, self._rest_bins
        yield metrics.STREAM_IMAGES, {(s,): total.applied for s, total in totals.items()}
        yield metrics.STREAM_REJECTED, {(s,): total.rejected for s, total in totals.items()}
        yield metrics.STREAM_LATE, {(s,): total.late for s, total in totals.items()}
        yield metrics.STREAM_DUPLICATES, {(s,): total.duplicates for s, total in totals.items()}
        yield metrics.STREAM_P_VALUE, bins

    def _share_values(self, shares: Mapping[str, Sequence[Share]]) -> Iterator[Values]:
        found = {(s, f"{share.level:g}"): share for s in self._shown for share in shares.get(s, ())}
        bands: Series = {
            (*labels, bound): getattr(share, bound) for labels, share in found.items() for bound in ("lower", "upper")
        }
        yield metrics.STREAM_OOD_SHARE, {labels: share.share for labels, share in found.items()}
        yield metrics.STREAM_OOD_BAND, bands

    def _movement_values(self, alerting: Set[str]) -> Iterator[Values]:
        found = {stream: self._counts.movement(stream) for stream in self._shown[:STREAMS_IN_DETAIL]}
        effects: Series = {(s, *labels): effect for s, (moved, _) in found.items() for labels, effect in moved.items()}
        yield metrics.STREAM_EFFECT, effects
        yield metrics.STREAM_TRIAGE, {(s, look or "unknown"): 1 for s, (_, look) in found.items() if s in alerting}

    def _alert_values(self, state: FleetState) -> Iterator[Values]:
        shown = set(self._shown)
        active = [(a.rule, a.stream if a.stream in shown else OTHER_STREAM, a) for a in state.active]
        since: dict[tuple[str, ...], float] = {}
        for rule, stream, alert in active:
            since[rule, stream] = min(since.get((rule, stream), math.inf), alert.since_ms / 1000)
        yield metrics.ALERTS, Counter((alert.rule, str(alert.phase)) for alert in state.alerts)
        yield metrics.ALERT_ACTIVE, Counter((rule, stream, str(alert.phase)) for rule, stream, alert in active)
        yield metrics.ALERT_SINCE, since

    def _outbox_values(self) -> Iterator[Values]:
        backlogs = {name: self._store.shards.backlog(name) for name in self._receivers}
        oldest_s = {name: backlog.oldest_ms / 1000 for name, backlog in backlogs.items() if backlog.oldest_ms}
        now_s = time.time()
        dead = Counter(letter.receiver for letter in self._store.shards.dead_alerts(DEAD_ALERTS_COUNTED))
        yield metrics.OUTBOX_ENTRIES, {(name,): backlog.entries for name, backlog in backlogs.items()}
        yield metrics.OUTBOX_AGE, {(name,): max(0.0, now_s - oldest_s.get(name, now_s)) for name in self._receivers}
        yield metrics.DEAD_ALERTS, {(name,): dead[name] for name in {*self._receivers, *dead}}


def _minus(now: Totals, before: Totals) -> Totals:
    steps = [a - b for a, b in zip(astuple(now), astuple(before), strict=True)]
    # a total that fell was counted again from the start (lost state): all of it is new
    return now if min(steps) < 0 else Totals(*steps)


def cumulative(counts: Counts) -> list[tuple[str, float]]:
    """(9,) counts per bin as a Prometheus histogram: (upper edge, images with a p-value up to it)."""
    edges = [*(f"{level:g}" for level in reversed(LEVELS)), "+Inf"]
    return list(zip(edges, map(float, np.cumsum(counts[::-1])), strict=True))


def _family(monitor: str, metric: FleetMetric, series: Series) -> Metric:
    labels = ("monitor", *metric.labels)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=labels)
        for own, counts in series.items():
            histogram.add_metric([monitor, *own], cumulative(np.asarray(counts)), sum_value=None)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=labels)
    for own, value in series.items():
        family.add_metric([monitor, *own], float(value))
    return family
