"""A rule that this project does not know, added as docs/how-to/add-a-rule.md says, judged by the evaluator itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt, SecretStr, TypeAdapter

from monitor.core.buckets import Layout, images
from monitor.core.types import AlertPhase, Delta, Partition, StreamFacts, Vector, Verdict
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.rules.registry import KINDS, any_rule, unsuited_rules, wrong_numbers
from monitor.rules.rule import ClosedBucket, Judgement, LastSeen, PackedRows, Rule
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of, stored_rows
from tests.vectors import fill

LAYOUT = Layout(("ood",), (1999,), (False,), (True,), (1.0,))
LOG = Partition("images", 0)
BUCKET_MS = 10_000
T0_MS = 1_750_000_000_000


class CrowdRule(Rule):
    """Breached once a stream has sent more than `most` images in all: keeps one number per stream."""

    kind: Literal["crowd"]
    most: PositiveInt

    keeps_state: ClassVar[bool] = True

    def check_numbers(self, bucket_s: int) -> None:
        assert bucket_s * 1000 == BUCKET_MS

    def check(self, layout: Layout) -> None:
        layout.index("ood")

    def judge(self, bucket: ClosedBucket, rows: PackedRows) -> Judgement:
        totals = {stream: int(rows.get(stream, b"0")) + images(counts) for stream, counts in bucket.counts.items()}
        rows.put({s: str(n).encode() for s, n in totals.items()})
        return Judgement(
            {s: Verdict(n > self.most, n, n, self.most, n, f"{n} images so far") for s, n in totals.items()}
        )

    def onset_ms(self, layout: Layout, row: bytes | None, buckets: Sequence[tuple[int, Vector]]) -> int | None:
        assert layout == LAYOUT
        assert row is not None
        return buckets[0][0]


class AwakeRule(Rule):
    """Breached while the stream has ever sent an image: a rule by the clock."""

    kind: Literal["awake"]

    reads_clock: ClassVar[bool] = True

    def judge_clock(self, last_seen: LastSeen) -> Mapping[str, Verdict]:
        return {s: Verdict(bool(seen), 1.0, 1.0, 0.0, 0, "awake") for s, seen in last_seen.seen_ms.items()}


def count(store: Store, bucket: int, sent: int) -> None:
    """`sent` images of cam-1 in that bucket; one of the bucket after the next closes it."""
    start_ms = T0_MS + bucket * BUCKET_MS
    vectors = {
        ("fp", start_ms, "cam-1"): fill(LAYOUT, np.full((sent, 1), 0.9)),
    }
    facts = {"cam-1": StreamFacts(event_time_ms=start_ms, seen_ms=T0_MS)}
    store.partitions.apply([Delta(LOG, "t", bucket, bucket + 1, start_ms + BUCKET_MS, vectors, facts)])


def test_a_new_kind_of_rule_needs_only_its_own_class(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "crowd")
    store.catalog.register_partitions([LOG])
    store.partitions.start(LOG, 1, "t", 0)
    store.catalog.put_layouts({"fp": LAYOUT})
    entries = [
        {"name": "crowd", "kind": "crowd", "most": 25, "labels": {"team": "doors"}},
        {"name": "awake", "kind": "awake", "except": ["cam-9"]},
    ]
    any_kind = any_rule((*KINDS, CrowdRule, AwakeRule))
    section: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(tuple[any_kind, ...])  # type: ignore[valid-type]
    rules = section.validate_python(entries)
    assert wrong_numbers(rules, BUCKET_MS // 1000) == []
    assert unsuited_rules(rules, {"fp": LAYOUT}) == []

    evaluator = Evaluator(store, rules, {}, closing_of(store, BUCKET_MS // 1000, 0), Presentation("crowd"))
    evaluator.load()
    for bucket in range(2):
        count(store, bucket, 10)
    evaluator.look()
    alerts = store.evaluation.alerts()
    assert {key: alert.phase for key, alert in alerts.items()} == {("awake", "cam-1"): AlertPhase.FIRING}
    assert stored_rows(store, "crowd", "fp") == {"cam-1": b"20"}

    count(store, 2, 10)
    evaluator.load()  # as another replica does: the rows come from Redis
    evaluator.look()
    alert = store.evaluation.alerts()["crowd", "cam-1"]
    assert (alert.phase, alert.since_ms) == (AlertPhase.FIRING, T0_MS)
    assert alert.verdict is not None
    assert alert.verdict.summary == "30 images so far"
    documents = [json.loads(entry.document)["data"] for entry in store.outbox.fetch("hook", T0_MS)]
    published = {data["rule"]: (data["kind"], data["labels"]) for data in documents}
    assert published == {"awake": ("awake", {}), "crowd": ("crowd", {"team": "doors"})}
    store.close()
