"""The evaluator over days and nights, on a real Redis: alerts, evidence, restarts; rules about the stream itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
from pydantic import SecretStr

from monitor.core.buckets import REJECTED, Layout, empty
from monitor.core.shadow import shadow_of
from monitor.core.types import Alert, AlertPhase, Delta, Partition, StreamFacts
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.rules.rate import RateRule
from monitor.rules.rule import Rule
from monitor.rules.sequential.rule import SequentialRule
from monitor.rules.stream_health import RejectedRule
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of, stored_rows
from tests.evaluate.test_evaluator import SCHEMA
from tests.vectors import fill

PLAIN = Layout(("ood",), (1999,), (False,), (True,), (1.0,))
LAYOUTS = {
    "fp": PLAIN,
    "fp-next": PLAIN,
    "fp-day": replace(PLAIN, condition="day"),
    "fp-night": replace(PLAIN, condition="night"),
}
LOG = Partition("images", 0)
BUCKET_MS, T0_MS = 10_000, 1_750_000_000_000
PER_BUCKET = 20
DRIFT = SequentialRule(name="drift", kind="sequential")
RATE = RateRule(name="rate", kind="rate", window_s=60, threshold=0.3, min_images=40, keep_firing_for=30)


class Camera:
    """One stream; each bucket is judged as soon as it is over."""

    def __init__(self, redis_url: str, monitor: str, *rules: Rule) -> None:
        self.store: Store = open_store(RedisSettings(url=SecretStr(redis_url)), monitor)
        self.store.catalog.register_partitions([LOG])
        self.store.catalog.put_layouts(LAYOUTS)
        self.store.partitions.start(LOG, 1, "t", 0)
        self._monitor, self._rules = monitor, rules
        self._rng, self.buckets = np.random.default_rng(7), 0
        self.start()

    def start(self, *conditions: str) -> None:
        """The evaluator of a new process, which takes the lease."""
        self.store._connection.client.delete(self.store._monitor_keys.key("tenure"))
        closing = closing_of(self.store, lateness_s=0)
        self.evaluator = Evaluator(self.store, self._rules, {}, closing, Presentation(self._monitor, "http://page"))
        self.evaluator.memory.conditions_of = lambda _: conditions or ("day", "night")
        self.evaluator.load()

    def send(self, buckets: int, rejected: int = 0, **unusual: float) -> None:
        """That many buckets of images: day=0.3 is a bucket by day of which 30 % are unusual, more or less."""
        for _ in range(buckets):
            start_ms = T0_MS + self.buckets * BUCKET_MS
            vectors = {}
            for condition, share in unusual.items():
                p = self._rng.uniform(1e-3, 1, (PER_BUCKET, 1))
                p[: round(share * PER_BUCKET)] = 0.001
                name = {"plain": "fp", "shadow": shadow_of("fp-next")}.get(condition, f"fp-{condition}")
                vectors[name, start_ms, "cam"] = fill(PLAIN, p)
            if rejected:
                vectors.setdefault(("fp", start_ms, "cam"), empty(PLAIN))[REJECTED] += rejected
            facts = {"cam": StreamFacts(event_time_ms=start_ms + 1, seen_ms=start_ms)}
            high_ms = start_ms + BUCKET_MS
            self.store.partitions.apply([Delta(LOG, "t", self.buckets, self.buckets + 1, high_ms, vectors, facts)])
            self.buckets += 1
            self.evaluator.look()

    def alert(self, rule: str) -> Alert:
        return self.store.evaluation.alerts()[rule, "cam"]

    def documents(self, rule: str) -> list[dict[str, Any]]:
        found = [json.loads(entry.document) for entry in self.store.outbox.fetch("hook", T0_MS)]
        for document in found:
            jsonschema.validate(document, SCHEMA)
        return [document["data"] for document in found if document["data"]["rule"] == rule]


def test_a_fault_by_night_fires_over_the_day_through_restarts_and_ends_by_night(redis_server: PrivateRedis) -> None:
    camera = Camera(redis_server.url, "conditions-nights", DRIFT, RATE)
    camera.send(20, day=0.0)
    camera.send(10, night=0.0)
    camera.send(10, night=0.6)
    for rule in ("drift", "rate"):
        assert (camera.alert(rule).phase, camera.alert(rule).condition) == (AlertPhase.FIRING, "night")
    for _ in range(3):
        camera.start()
        camera.send(10, day=0.0)
    assert [d["phase"] for d in camera.documents("drift") + camera.documents("rate")] == ["firing"] * 2
    camera.send(3, night=0.6)
    camera.send(60, night=0.0)
    for rule in ("drift", "rate"):
        fired, resolved = camera.documents(rule)
        assert (fired["phase"], resolved["phase"]) == ("firing", "resolved")
        assert fired["condition"] == resolved["condition"] == "night"
        assert fired["since"] == str(np.datetime64(T0_MS + 30 * BUCKET_MS, "ms")) + "Z"
        # what moved is judged by the night's images alone: by day and night together most would be normal
        assert fired["signals"][0]["effect"] > 0.4
    camera.store.close()


def test_the_rows_of_each_condition_tighten_apart(redis_server: PrivateRedis) -> None:
    camera = Camera(redis_server.url, "conditions-rows", DRIFT)
    camera.send(3, day=0.0, night=0.0)
    camera.send(2, day=0.0)
    rows = {name: stored_rows(camera.store, "drift", name) for name in LAYOUTS}
    assert (rows["fp"], set(rows["fp-day"]), set(rows["fp-night"])) == ({}, {"cam"}, {"cam"})
    assert rows["fp-day"] != rows["fp-night"]
    camera.store.close()


def test_both_conditions_in_every_bucket_fire_as_long_as_one_is_breached(redis_server: PrivateRedis) -> None:
    camera = Camera(redis_server.url, "conditions-both", DRIFT)
    camera.send(20, day=0.0, night=0.0)
    camera.send(10, day=0.0, night=0.6)
    assert camera.alert("drift").phase is AlertPhase.FIRING
    camera.send(60, day=0.0, night=0.0)
    assert [d["phase"] for d in camera.documents("drift")] == ["firing", "resolved"]
    camera.store.close()


def test_an_alert_of_a_condition_that_is_taken_out_ends_by_the_next_calm_images(redis_server: PrivateRedis) -> None:
    camera = Camera(redis_server.url, "conditions-taken-out", DRIFT)
    camera.send(10, night=0.6)
    camera.send(5, day=0.0)
    assert camera.alert("drift").phase is AlertPhase.FIRING
    camera.start("day")
    camera.send(1, day=0.0)
    assert camera.alert("drift").phase is AlertPhase.RESOLVED
    camera.store.close()


def test_an_alert_of_before_there_were_conditions_ends_by_any_of_them(redis_server: PrivateRedis) -> None:
    camera = Camera(redis_server.url, "conditions-before", DRIFT)
    camera.send(10, plain=0.6)
    assert (camera.alert("drift").phase, camera.alert("drift").condition) == (AlertPhase.FIRING, "")
    camera.send(1, day=0.0)
    assert camera.alert("drift").phase is AlertPhase.FIRING  # images without a condition may still come
    camera.send(31, day=0.0)
    assert camera.alert("drift").phase is AlertPhase.RESOLVED
    camera.store.close()


def test_rejected_records_are_judged_against_the_images_of_all_conditions(redis_server: PrivateRedis) -> None:
    rejected = RejectedRule(name="bad", kind="rejected", window_s=60, threshold=0.3)
    camera = Camera(redis_server.url, "conditions-rejected", rejected)
    camera.send(10, rejected=5, day=0.0, night=0.0)  # 5 of 45
    assert camera.store.evaluation.alerts() == {}
    camera.send(10, rejected=60, day=0.0)
    fired = camera.documents("bad")[0]
    assert "condition" not in fired
    assert fired["since"] == str(np.datetime64(T0_MS + 10 * BUCKET_MS, "ms")) + "Z"
    camera.start()
    camera.send(10, day=0.0)
    assert camera.alert("bad").phase is AlertPhase.RESOLVED
    camera.store.close()
