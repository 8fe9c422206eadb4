"""Rule states are stored now and then and made again from the counts, as if nothing had happened; on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.core.types import AlertPhase, Delta, Partition
from monitor.evaluate import rule_states
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.rules.rule import Rule
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Store, open_store
from monitor.store.checkpoints import SLICES, Kept
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.telemetry import failpoints
from tests.evaluate.parts import closing_of, stored_rows
from tests.evaluate.test_new_rule import CrowdRule

pytestmark = pytest.mark.slow

LAYOUT = Layout(("ood",), (1999,), (False,), (True,), (1.0,))
P, Q = Partition("images", 0), Partition("images", 1)
T0_MS, BUCKET_MS = 1_750_000_000_000, 10_000
STREAMS = [f"cam-{i}" for i in range(120)]
DRIFTING = STREAMS[::10]
FROM, UNTIL = 6, 20
"""The buckets in which they drift."""
RULES: tuple[Rule, ...] = (
    SequentialRule(name="drift", kind="sequential"),
    CrowdRule(name="crowd", kind="crowd", most=10**6),
)
_monitors = itertools.count()


class Fleet:
    """120 streams in two partitions, one in ten of which drifts for a while; some send nothing now and then."""

    def __init__(self, store: Store) -> None:
        self.store, self._rng, self._sent = store, np.random.default_rng(0), 0
        self.log: dict[Partition, list[Delta]] = {P: [], Q: []}
        store.catalog.register_partitions([P, Q])
        store.catalog.put_layouts({"fp": LAYOUT})
        for partition in (P, Q):
            store.partitions.start(partition, 1, "t", 0)

    def send(self) -> None:
        """The images of one more bucket; they close the one before."""
        bucket, self._sent = self._sent, self._sent + 1
        start_ms, shares = T0_MS + bucket * BUCKET_MS, -np.diff([1.0, *LEVELS, 0.0])
        for partition, streams in ((P, STREAMS[::2]), (Q, STREAMS[1::2])):
            vectors = {}
            for stream in streams:
                drifts = stream in DRIFTING and FROM <= bucket < UNTIL
                odd = self._rng.multinomial(20, np.eye(BINS)[-1] if drifts else shares)
                if self._rng.random() < 0.8:
                    vector = np.zeros(LAYOUT.size, dtype=np.uint32)
                    vector[:BINS], vector[IMAGES] = odd, 20
                    vectors["fp", start_ms, stream] = vector
            self.log[partition].append(Delta(partition, "t", bucket, bucket + 1, start_ms, vectors))
            self.store.partitions.apply(self.log[partition][-1:])

    def evaluator(self) -> Evaluator:
        """Another replica takes over."""
        self.store._connection.client.delete(self.store._monitor_keys.key("tenure"))
        made = Evaluator(self.store, RULES, {}, closing_of(self.store, lateness_s=0), Presentation("fleet"))
        made.load()
        return made

    def documents(self) -> list[str]:
        return [entry.document for entry in self.store.outbox.fetch("hook", T0_MS)]

    def firing(self) -> set[str]:
        alerts = self.store.evaluation.alerts()
        return {stream for (_, stream), alert in alerts.items() if alert.phase is AlertPhase.FIRING}


def rows_of(evaluator: Evaluator, streams: Sequence[str] = STREAMS) -> dict[tuple[str, str], bytes | None]:
    """{(rule, stream): packed row} in memory."""
    states = evaluator.memory.rule_states
    return {(rule.name, stream): states.rows(rule, "fp", LAYOUT).get(stream) for rule in RULES for stream in streams}


@pytest.fixture
def redis(redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(rule_states, "PER_BUCKET_BYTES", 1)  # one slice after each bucket
    yield redis_server.url
    failpoints.arm("")


def fleet_on(url: str) -> Fleet:
    return Fleet(open_store(RedisSettings(url=SecretStr(url)), f"checkpoints-{next(_monitors)}"))


def run(fleet: Fleet, buckets: int, evaluator: Evaluator) -> None:
    for _ in range(buckets):
        fleet.send()
        evaluator.look()


def test_rows_that_are_read_and_advanced_are_those_of_the_evaluator_that_went_on(redis: str) -> None:
    fleet = fleet_on(redis)
    going_on = fleet.evaluator()
    for bucket in range(50):  # more than there are slices
        run(fleet, 1, going_on)
        if bucket in {0, 9, 30, 49}:
            assert rows_of(fleet.evaluator()) == rows_of(going_on), bucket
    assert len(fleet.documents()) >= 2 * len(DRIFTING)
    marks = fleet.store.checkpoints.marks()[0].values()
    assert 30 * BUCKET_MS <= max(marks) - min(marks) < SLICES * BUCKET_MS, (
        "each bucket stores one slice that holds streams"
    )
    fleet.store.close()


@pytest.fixture(scope="module")
def undisturbed(redis_server: PrivateRedis) -> Iterator[tuple[Fleet, Evaluator]]:
    """Thirty buckets judged by one evaluator."""
    fleet = fleet_on(redis_server.url)
    evaluator = fleet.evaluator()
    run(fleet, 30, evaluator)
    yield fleet, evaluator
    fleet.store.close()


@pytest.mark.parametrize("place", ["after_seal", "before_decide", "after_decide", "before_checkpoint"])
def test_a_crash_in_the_midst_of_a_bucket_changes_no_document_and_no_row(
    redis: str, place: str, undisturbed: tuple[Fleet, Evaluator]
) -> None:
    calm, first = undisturbed
    crashing = fleet_on(redis)
    evaluator = crashing.evaluator()
    for bucket in range(30):
        crashing.send()
        if bucket in {2, 9, 11, 23}:  # before the first row is stored, while alerts begin and fire, when they resolve
            failpoints.arm(f"{place}:error")
            with pytest.raises(RuntimeError, match=place):
                evaluator.look()
            # the same evaluator goes on, or another
            evaluator = evaluator if bucket == 11 else crashing.evaluator()
        evaluator.look()
    assert crashing.documents() == calm.documents()
    assert rows_of(evaluator) == rows_of(first) == rows_of(crashing.evaluator())
    crashing.store.close()


def test_rows_of_the_version_before_go_on_and_what_fires_keeps_firing(redis: str) -> None:
    fleet = fleet_on(redis)
    before = fleet.evaluator()
    run(fleet, 12, before)
    assert fleet.firing() == set(DRIFTING)
    rows, client, keys = rows_of(before), fleet.store._connection.client, fleet.store._monitor_keys
    for key in client.scan_iter(keys.key("rows", "*")):
        client.delete(key)
    client.delete(keys.key("checkpoints"))
    for (rule, stream), packed in rows.items():
        client.hset(keys.key("rule", "fp", rule), stream, packed)
    after = fleet.evaluator()
    assert rows_of(after) == rows
    run(fleet, 3, after)
    assert rows_of(fleet.evaluator()) == rows_of(after)
    assert fleet.firing() == set(DRIFTING)
    run(fleet, 45, after)
    assert client.keys(keys.key("rule", "fp", "*")) == [], "all of them were stored anew"
    assert len(fleet.documents()) == 2 * len(DRIFTING)
    fleet.store.close()


def test_what_fires_keeps_firing_though_redis_lost_the_counts(redis: str) -> None:
    fleet = fleet_on(redis)
    run(fleet, 12, fleet.evaluator())
    client = fleet.store._connection.client
    for partition in (P, Q):
        for key in client.scan_iter(fleet.store.partitions._keys.of(partition, "b:*")):
            client.delete(key)
    evaluator = fleet.evaluator()
    run(fleet, 3, evaluator)
    assert fleet.firing() == set(DRIFTING)
    fleet.store.close()


def test_an_evaluator_that_has_been_replaced_stores_no_rows(redis: str) -> None:
    fleet = fleet_on(redis)
    run(fleet, 3, fleet.evaluator())
    store = fleet.store
    before, marks = stored_rows(store, "crowd", "fp"), store.checkpoints.marks()
    version = store.evaluation.state().version
    assert not store.checkpoints.write(version - 1, {("crowd", "fp"): {"cam-1": Kept(T0_MS, b"0")}}, {0: T0_MS + 1})
    assert (stored_rows(store, "crowd", "fp"), store.checkpoints.marks()) == (before, marks)
    fleet.store.close()


def test_slices_are_stored_before_the_buckets_since_expire(redis: str) -> None:
    fleet = fleet_on(redis)
    evaluator = fleet.evaluator()
    evaluator.memory.rule_states._oldest_ms = 5 * BUCKET_MS
    run(fleet, 20, evaluator)
    marks = fleet.store.checkpoints.marks()[0].values()
    assert max(marks) - min(marks) <= 5 * BUCKET_MS
    fleet.store.close()
