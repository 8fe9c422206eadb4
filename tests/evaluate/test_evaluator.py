"""What the evaluator does beside judging buckets; on a real Redis. Judging is tested end to end."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydantic import SecretStr

from monitor.config.schema import Config
from monitor.core import alert_state as alerts
from monitor.core.buckets import Layout
from monitor.core.types import Alert, AlertPhase, Delta, Partition, PastAlert, StreamFacts, Verdict
from monitor.daemon import presentation_of
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.memory import Change, Decision
from monitor.evaluate.presentation import Presentation
from monitor.fleet.state import read_state
from monitor.rules.rate import RateRule
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Kept, open_store
from monitor.store.past_alerts import KEPT_MS
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of, store_rows, stored_rows
from tests.vectors import fill

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "alert.schema.json").read_text())
LAYOUT = Layout(("ood",), (999,), (False,), (True,), (1.0,))
BUCKET_MS = 1_750_000_000_000
BREACH = Verdict(True, 0.3, 0.2, 0.1, 500, "30 % of 500 images lie beyond the 5 % cut")


def active(rule: str, stream: str, phase: AlertPhase) -> Alert:
    name = alerts.alert_id("evaluator", rule, stream, BUCKET_MS)
    return Alert(rule, stream, phase, name, since_ms=BUCKET_MS, fired_ms=BUCKET_MS + 10_000, verdict=BREACH)


def test_alerts_that_no_rule_watches_any_more_are_resolved_and_published(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "evaluator")
    watched = active("ood", "cam-1", AlertPhase.FIRING)
    before = [
        watched,
        active("ood", "door-1", AlertPhase.FIRING),  # the rule's streams no longer match it
        active("gone", "cam-1", AlertPhase.FIRING),  # there is no such rule
        active("gone", "cam-2", AlertPhase.PENDING),
    ]
    assert store.evaluation.decide(0, BUCKET_MS, before, [])
    rule = RateRule(name="ood", kind="rate", streams="cam-*", labels={"team": "vision"})
    settings = Config(monitor="evaluator", rules=(rule,), receivers=())
    presentation = presentation_of(settings.model_copy(update={"receivers": ("somebody",)}))
    evaluator = Evaluator(store, settings.rules, {}, closing_of(store), presentation)
    evaluator.load()
    for _ in range(2):
        evaluator.look()
    after = store.evaluation.alerts()
    assert after.pop(("ood", "cam-1")) == watched
    assert {key: (a.phase, a.resolved_ms) for key, a in after.items()} == {
        ("ood", "door-1"): (AlertPhase.RESOLVED, BUCKET_MS + 10_000),
        ("gone", "cam-1"): (AlertPhase.RESOLVED, BUCKET_MS + 10_000),
    }
    documents = [json.loads(entry.document) for entry in store.outbox.fetch("hook", BUCKET_MS)]
    for document in documents:
        jsonschema.validate(document, SCHEMA)
    published = [(d["type"], d["data"]["rule"], d["data"]["kind"], d["data"]["labels"]) for d in documents]
    assert sorted(published, key=str) == [
        ("alert.resolved", "gone", "removed", {}),
        ("alert.resolved", "ood", "rate", {"team": "vision"}),
    ]
    store.close()


def test_what_was_under_way_is_remembered_since_a_version_that_notes_it(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "evaluator-past")
    past = store.shards.past_alerts
    assert (past().alerts, past().known_since_ms) == ([], None)
    ended = [
        PastAlert("ood", "cam-1", "a", BUCKET_MS - 50_000, BUCKET_MS),
        PastAlert("ood", "λ", "b", 1, BUCKET_MS - 1),
    ]

    def decide(number: int, *alerts: PastAlert) -> None:
        version = store.evaluation.state().version
        assert store.evaluation.decide(version, BUCKET_MS + 10_000 * number, [], [], Kept(past=alerts))

    decide(0, *ended)
    decide(1)
    assert past().alerts == sorted(ended, key=lambda alert: alert.until_ms)
    assert past().known_since_ms == BUCKET_MS
    # a version that does not note them has decided a bucket: alerts may be missing
    store._connection.client.hset(store._monitor_keys.key("evaluator"), "bucket", BUCKET_MS + 20_000)
    decide(3)
    assert past().known_since_ms == BUCKET_MS + 30_000
    decide(KEPT_MS // 10_000)
    assert past().alerts == [ended[0]]
    store.close()


def test_documents_of_what_fires_are_kept_until_it_ends_also_without_receivers(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "evaluator-firing")
    rule = RateRule(name="ood", kind="rate")
    evaluator = Evaluator(store, (rule,), {}, closing_of(store), presentation_of(Config(rules=(rule,))))
    evaluator.load()
    alert = active("ood", "cam-1", AlertPhase.FIRING)
    begins, ends = Decision(), Decision()
    begins.add(Change(rule, "", BUCKET_MS, alert))
    ends.add(Change(rule, "", BUCKET_MS, alerts.withdraw(alert, BUCKET_MS + 10_000)))
    assert evaluator._decide(BUCKET_MS, begins)
    (document,) = store.outbox.firing_documents([alert.id]).values()
    assert json.loads(document)["id"] == f"{alert.id}-firing"
    assert evaluator._decide(BUCKET_MS, ends)
    assert store.outbox.firing_documents([alert.id]) == {}
    assert store.outbox.fetch("hook", BUCKET_MS) == []
    store.close()


@pytest.mark.parametrize("of", [1, 3])
def test_a_dead_stream_leaves_nothing_behind_but_an_alert_under_way(redis_server: PrivateRedis, of: int) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"forgetting-{of}")
    store._connection.client.hset(store._monitor_keys.key("shards"), "shards", of)
    shards = store.shards.all()
    partition, streams = Partition("images", 0), ("alive", "dead", "firing")
    store.catalog.register_partitions([partition])
    store.catalog.put_layouts({"fp": LAYOUT})
    store.partitions.start(partition, 1, "a", 0)
    now_ms = BUCKET_MS + 10 * 86_400_000  # longer than the retention
    vectors = {("fp", BUCKET_MS, stream): fill(LAYOUT, np.array([[0.9]])) for stream in streams}
    facts = {stream: StreamFacts(b"digest", seen_ms=now_ms if stream == "alive" else BUCKET_MS) for stream in streams}
    store.partitions.apply([Delta(partition, "a", 0, 1, BUCKET_MS, vectors, facts)])
    rule = SequentialRule(name="drift", kind="sequential")
    firing = active("drift", "firing", AlertPhase.FIRING)
    for shard in shards:
        assert shard.evaluation.decide(0, BUCKET_MS, [firing] if shard.owns("firing") else [], [])
        store_rows(shard, "drift", "fp", {stream: b"state" for stream in streams if shard.owns(stream)})
    for _ in range(2):
        for shard in shards:
            evaluator = Evaluator(store, (rule,), {}, closing_of(store), Presentation("forgetting"), HeldShard(shard))
            evaluator.load()
            evaluator.forget_dead((partition,), now_ms)
        assert store.partitions.facts(partition).keys() == {"alive"}
        kept = [stream for shard in shards for stream in stored_rows(shard, "drift", "fp")]
        assert sorted(kept) == ["alive", "firing"]
        assert read_state(store, 0).totals.keys() == {"alive"}
        assert store.shards.alerts() == {("drift", "firing"): firing}
    assert sum(total.applied for total in store.counts.totals([partition]).values()) == 3
    store.close()
