"""What the lease holder exports for the whole fleet: exact, bounded, and never falling where a counter is promised."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from prometheus_client.core import Metric
from pydantic import SecretStr

from detectors.deferred import Deferred
from monitor.core.buckets import BINS, Layout
from monitor.core.types import Alert, AlertPhase, Delta, Partition, Vector, Verdict
from monitor.fleet.counts import ClosedCounts
from monitor.fleet.exporter import FleetExporter, cumulative
from monitor.store import OTHER_STREAM, Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.telemetry import metrics

stats = Deferred("scipy.stats")
P = Partition("images", 0)
LAYOUT = Layout(("ood", "sharpness"), (999, 999), (False, True), (True, False), (1.0, 1.0))
BUCKET_MS = 10_000
NORMAL = (50, 30, 10, 5, 3, 1, 1, 0, 0)
STRANGE = (0, 0, 0, 0, 0, 0, 0, 0, 100)
_monitors = itertools.count()


def vector(ood: tuple[int, ...] = NORMAL, sharpness: tuple[int, ...] = NORMAL, rejected: int = 0) -> Vector:
    return np.array([*ood, *sharpness, sum(ood), rejected, 0, 0, 0, 1], dtype=np.uint32)


@dataclass
class Fleet:
    """A store that is fed bucket by bucket, and what is exported of it."""

    store: Store
    name: str
    offset: int = 0
    bucket_ms: int = -BUCKET_MS

    def close_bucket(self, vectors: dict[str, Vector], alerts_now: dict[tuple[str, str], Alert] | None = None) -> None:
        """Apply these counts, seal the bucket and commit it as decided, as the daemon does."""
        self.bucket_ms += BUCKET_MS
        counts = {("fp", self.bucket_ms, stream): counted for stream, counted in vectors.items()}
        self.store.partitions.apply([Delta(P, "a", self.offset, self.offset + 1, self.bucket_ms + 1, counts)])
        self.offset += 1
        self.store.partitions.seal([P], self.bucket_ms)
        documents = ["{}"] if alerts_now else []
        assert self.store.evaluation.decide(
            self.store.evaluation.state().version, self.bucket_ms, (alerts_now or {}).values(), documents
        )

    def exported(self, shown: int = 500) -> FleetExporter:
        return FleetExporter(self.store, self.name, ["hook"], (BUCKET_MS, 0), shown)


@pytest.fixture
def fleet(redis_server: PrivateRedis) -> Iterator[Fleet]:
    name = f"fleet-{next(_monitors)}"
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), name)
    store.catalog.register_partitions([P])
    store.catalog.put_layouts({"fp": LAYOUT})
    store.partitions.claim(P, 1, "a")
    store.partitions.start(P, 1, "a", 0)
    yield Fleet(store, name)
    store.close()


def values(families: Iterator[Metric] | list[Metric], sample: str) -> dict[tuple[str, ...], float]:
    """{label values but the monitor's: value} of the samples of that name."""
    return {
        tuple(v for k, v in s.labels.items() if k != "monitor"): s.value
        for family in families
        for s in family.samples
        if s.name == sample
    }


def read(exported: FleetExporter) -> list[Metric]:
    exported.read()
    return list(exported.collect())


def test_counts_shares_and_histograms_are_those_of_the_closed_buckets(fleet: Fleet) -> None:
    fleet.close_bucket({"cam-1": vector()})
    exported = fleet.exported()
    read(exported)
    fleet.close_bucket({"cam-1": vector(STRANGE, rejected=4), "cam-2": vector()})
    families = read(exported)

    assert values(families, "layerwatch_stream_images_total") == {("cam-1",): 200, ("cam-2",): 100}
    assert values(families, "layerwatch_stream_rejected_total") == {("cam-1",): 4, ("cam-2",): 0}
    shares = values(families, "layerwatch_stream_ood_share")
    # 5 + 100 of 200 with p <= .05 (bins 4 to 8), of cam-2 5 of 100
    assert shares["cam-1", "0.05"] == pytest.approx(0.525)
    assert shares["cam-2", "0.05"] == pytest.approx(0.05)
    # a histogram counts from the moment its holder won the lease: the first bucket is another's
    buckets = values(families, "layerwatch_stream_ood_p_value_bucket")
    assert (buckets["cam-1", "0.002"], buckets["cam-1", "+Inf"], buckets["cam-2", "0.5"]) == (100, 100, 50)
    assert values(families, "layerwatch_p_value_bucket")["ood", "+Inf"] == 200
    assert values(families, "layerwatch_partitions") == {(): 1}


def test_the_band_holds_normal_windows_99_times_in_100() -> None:
    counts = ClosedCounts(300_000)
    counts.set_layouts({"fp": LAYOUT})
    counts.add(0, "fp", ["cam-1"], np.stack([vector()]))
    for share in counts.shares()["cam-1"]:
        k = round(share.level * 1000)
        law = stats.betabinom(100, k, 1000 - k)
        inside = law.cdf(share.upper * 100) - law.cdf(share.lower * 100 - 1)
        assert 0.99 <= inside < 0.99999, f"{share}: neither too narrow nor so wide that it says nothing"


def test_what_lies_before_the_window_no_longer_counts() -> None:
    counts = ClosedCounts(30_000)
    counts.set_layouts({"fp": LAYOUT})
    for i in range(3):
        counts.add(i * BUCKET_MS, "fp", ["cam-1", "cam-2"], np.stack([vector(STRANGE), vector()]))
    assert counts.shares()["cam-1"][0].share == 1.0
    for i in range(3, 6):
        counts.add(i * BUCKET_MS, "fp", ["cam-1"], np.stack([vector()]))
    assert counts.shares()["cam-1"][0].share == pytest.approx(0.05)
    assert "cam-2" not in counts.shares()  # silent for longer than the window


def test_streams_beyond_the_limit_are_summed_and_no_counter_ever_falls(fleet: Fleet) -> None:
    """Trouble moves from stream to stream, so that each in turn gets and loses a series of its own."""
    exported = fleet.exported(shown=2)
    names = [f"cam-{i}" for i in range(5)]
    before: dict[tuple[str, ...], float] = {}
    for turn in range(6):
        fleet.close_bucket({s: vector(STRANGE if i == turn % 5 else NORMAL) for i, s in enumerate(names)})
        families = read(exported)
        now = values(families, "layerwatch_stream_images_total")
        assert len(now) == 3
        assert OTHER_STREAM in {stream for (stream,) in now}
        for sample in ("layerwatch_stream_images_total", "layerwatch_stream_ood_p_value_bucket"):
            for labels, value in values(families, sample).items():
                assert value >= before.get((sample, *labels), 0.0)
                before[sample, *labels] = value
    assert values(families, "layerwatch_streams") == {(): 5}
    assert values(families, "layerwatch_p_value_bucket")["ood", "+Inf"] == 500 * 5  # the first read found nothing new


def test_alerts_and_outbox_are_shown_by_receiver_and_stream(fleet: Fleet) -> None:
    verdict = Verdict(True, 0.5, 0.4, 0.2, 100, "much is strange", cause="ood: more images beyond the 5 % cut")
    alert = Alert("drift", "cam-1", AlertPhase.FIRING, "id", since_ms=20_000, fired_ms=30_000, verdict=verdict)
    resolved = Alert("drift", "cam-2", AlertPhase.RESOLVED, "id2", resolved_ms=20_000)
    fleet.store.outbox.keep_receivers(["hook"])
    exported = fleet.exported()
    read(exported)
    for _ in range(2):
        fleet.close_bucket(
            {"cam-1": vector(STRANGE, NORMAL)}, {("drift", "cam-1"): alert, ("drift", "cam-2"): resolved}
        )
    read(exported)
    fleet.close_bucket({"cam-1": vector(STRANGE, NORMAL)})
    families = read(exported)
    assert values(families, "layerwatch_alert_active") == {("drift", "cam-1", "firing"): 1}
    assert values(families, "layerwatch_alerts") == {("drift", "firing"): 1, ("drift", "resolved"): 1}
    assert values(families, "layerwatch_alert_since_timestamp_seconds") == {("drift", "cam-1"): 20}
    assert values(families, "layerwatch_stream_triage") == {("cam-1", "content"): 1}
    assert values(families, "layerwatch_stream_signal_effect")["cam-1", "ood", "learned"] > 0.8
    assert values(families, "layerwatch_outbox_entries") == {("hook",): 2}
    assert 0 <= values(families, "layerwatch_outbox_age_seconds")[("hook",)] < 60


def test_every_exported_family_is_one_of_the_documented_ones(fleet: Fleet) -> None:
    fleet.close_bucket({"cam-1": vector()})
    exported = fleet.exported()
    documented = {m.name.removesuffix("_total"): m for m in metrics.FLEET}
    families = {family.name: family for family in read(exported)}
    assert families.keys() == documented.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (documented[name].kind, documented[name].meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {"monitor", *documented[name].labels}


def test_it_is_on_the_page_only_while_the_lease_is_held(fleet: Fleet) -> None:
    fleet.close_bucket({"cam-1": vector()})
    exported = fleet.exported().start()
    line = f'layerwatch_stream_images_total{{monitor="{fleet.name}",stream="cam-1"}} 100.0'
    deadline = time.monotonic() + 20
    while line not in metrics.exposition()[0].decode():
        assert time.monotonic() < deadline, "not exported"
    exported.stop()
    assert fleet.name not in metrics.exposition()[0].decode()


def test_a_thousand_streams_are_read_in_far_less_than_the_time_between_two_reads(fleet: Fleet) -> None:
    exported = fleet.exported()
    for _ in range(3):
        fleet.close_bucket({f"cam-{i}": vector() for i in range(1000)})
        started = time.process_time()
        families = read(exported)
        took_s = time.process_time() - started
    assert took_s < 2.0
    assert sum(len(family.samples) for family in families) < 500 * 25


def test_the_cumulative_histogram_ends_with_all_images() -> None:
    assert cumulative(np.arange(1, BINS + 1))[0] == ("0.002", 9.0)
    assert cumulative(np.arange(1, BINS + 1))[-1] == ("+Inf", 45.0)


def test_no_created_series_stand_beside_the_counters() -> None:
    metrics.REDIS_ERRORS.inc(0)
    body = metrics.exposition()[0].decode()
    assert "layerwatch_redis_errors_total" in body
    assert "_created" not in body
    assert "process_resident_memory_bytes" in body
