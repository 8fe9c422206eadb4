"""Several shards, and other numbers of them, give the documents of one; on a real Redis.

The fleet is that of `test_checkpoints.py`: 120 streams, of which some drift for a while.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest

from monitor.evaluate import rule_states
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.presentation import Presentation
from monitor.evaluate.replica import Replica
from monitor.fleet.state import read_state
from monitor.notify.self_alerts import GAP, SelfAlerts
from monitor.store.keyspace import slot_of
from monitor.store.outbox import OutboxEntry
from monitor.store.private_server import PrivateRedis
from monitor.store.shards import shard_of
from monitor.telemetry import failpoints
from tests.evaluate.parts import closing_of
from tests.evaluate.test_checkpoints import BUCKET_MS, DRIFTING, LAYOUT, RULES, STREAMS, T0_MS, Fleet, P, fleet_on

pytestmark = pytest.mark.slow

CRASHES = {2, 9, 11, 23}
"""Before the first row is stored, while alerts begin and fire, when they resolve."""


@pytest.fixture
def redis(redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(rule_states, "PER_BUCKET_BYTES", 1)  # one slice after each bucket
    yield redis_server.url
    failpoints.arm("")


def process(fleet: Fleet, shards: int = 1) -> Replica:
    """One that is configured for so many."""

    def evaluator_of(held: HeldShard) -> Evaluator:
        return Evaluator(fleet.store, RULES, {}, closing_of(fleet.store, lateness_s=0), Presentation("fleet"), held)

    return Replica(fleet.store, evaluator_of, RULES, shards)


def settled(*processes: Replica) -> None:
    """Each looks as often as it takes to share the shards out, or to change their number, and to decide what is due."""
    found: list[object] = []
    while len(found) < 3 or not found[-3] == found[-2] == found[-1]:  # what one has written, another may answer
        for one in processes:
            one.turn()
        held = [{n: (j.tenure, j.evaluator.memory.decided_ms) for n, j in one.judged.items()} for one in processes]
        found.append(([one.leases.seats for one in processes], held))


@contextmanager
def paused(one: Replica, *shards: int) -> Iterator[None]:
    """These shards are not judged meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for number in shards:
            patch.setattr(one.judged[number].evaluator, "look", lambda _: False)
        yield


def documents(fleet: Fleet, receiver: str = "hook") -> list[str]:
    """All that the receiver is owed, shard by shard."""
    return [entry.document for entry in entries(fleet, receiver)]


def entries(fleet: Fleet, receiver: str = "hook") -> list[OutboxEntry]:
    return [entry for shard in fleet.store.shards.all() for entry in shard.outbox.fetch(receiver, 2**50)]


def by_alert(texts: Sequence[str]) -> dict[str, list[str]]:
    """{alert id: its documents, in order}."""
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(json.loads(text)["data"]["alert_id"], []).append(text)
    return found


def rows(fleet: Fleet) -> dict[tuple[str, str], bytes | None]:
    """{(rule, stream): packed row} as another process reads them from its shards."""
    found: dict[tuple[str, str], bytes | None] = {}
    for shard in fleet.store.shards.all():
        made = Evaluator(
            fleet.store,
            RULES,
            {},
            closing_of(fleet.store, lateness_s=0),
            Presentation("fleet"),
            HeldShard(shard),
        )
        made.load()
        for rule in RULES:
            kept = made.memory.rule_states.rows(rule, "fp", LAYOUT)
            found |= {(rule.name, stream): kept.get(stream) for stream in STREAMS if shard.owns(stream)}
    return found


@pytest.fixture(scope="module")
def undisturbed(redis_server: PrivateRedis) -> Iterator[Fleet]:
    """Thirty buckets judged in one shard by one process."""
    fleet = fleet_on(redis_server.url)
    one = process(fleet)
    for _ in range(30):
        fleet.send()
        one.turn()
    assert len(documents(fleet)) >= 2 * len(DRIFTING)
    yield fleet
    fleet.store.close()


def same(fleet: Fleet, undisturbed: Fleet, got: Sequence[str] | None = None) -> None:
    """It has the alerts, past ones too, the documents in the order of each alert, and the rows of the other fleet."""
    assert by_alert(documents(fleet) if got is None else got) == by_alert(documents(undisturbed))
    assert fleet.store.shards.alerts() == undisturbed.store.shards.alerts()
    past, of_other = fleet.store.shards.past_alerts(), undisturbed.store.shards.past_alerts()
    assert sorted(past.alerts, key=str) == sorted(of_other.alerts, key=str) != []
    assert past.known_since_ms == of_other.known_since_ms == T0_MS
    assert rows(fleet) == rows(undisturbed)
    fleet.store.close()


# ------------------------------------------------------------------------------------------------ several shards


def test_sixteen_shards_of_three_processes_give_the_documents_of_one(redis: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    processes = [process(fleet, 16) for _ in range(3)]
    settled(*processes)
    assert sorted(len(one.judged) for one in processes) == [5, 5, 6]
    for _ in range(30):
        fleet.send()
        settled(*processes)
    assert len({shard_of(stream, 16) for stream in DRIFTING}) > 6, "what drifts lies in several"
    same(fleet, undisturbed)


def test_shards_of_a_process_that_dies_go_on_elsewhere(redis: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    dies, stays = process(fleet, 4), process(fleet, 4)
    settled(dies, stays)
    assert 0 in dies.judged, "buckets are closed by another process then"
    for _ in range(12):
        fleet.send()
        settled(dies, stays)
    assert fleet.store.shards.held() == [True] * 4
    dies.leases.release()  # as Redis does it when they are over
    assert fleet.store.shards.held().count(False) == 2
    for _ in range(18):
        fleet.send()
        settled(stays)
    same(fleet, undisturbed)


@pytest.mark.parametrize("place", ["after_seal", "before_judge", "before_decide", "after_decide", "before_checkpoint"])
def test_a_crash_in_the_midst_of_a_bucket_changes_no_document(redis: str, place: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 4)
    settled(one)
    for bucket in range(30):
        fleet.send()
        if bucket in CRASHES:
            failpoints.arm(f"{place}:error{'' if place == 'after_seal' else '@3'}")  # of the four shards, the third
            one = crashed(fleet, one, place)
        settled(one)
    same(fleet, undisturbed)


def crashed(fleet: Fleet, one: Replica, place: str, shards: int = 4) -> Replica:
    """It dies there, and another takes over."""
    with pytest.raises(RuntimeError, match=place):
        settled(one)
    one.leases.release()
    return process(fleet, shards)


def test_a_shard_that_was_not_judged_for_a_while_judges_the_same_buckets(redis: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 4)
    settled(one)
    for bucket in range(30):
        fleet.send()
        with paused(one, 1, 2) if 5 <= bucket < 15 else nullcontext():
            settled(one)
        if bucket == 14:
            assert {judged.evaluator.memory.decided_ms for judged in one.judged.values()} == {
                T0_MS + 3 * BUCKET_MS,
                T0_MS + 13 * BUCKET_MS,
            }
            assert read_state(fleet.store, 0).evaluator.bucket_ms == T0_MS + 3 * BUCKET_MS, "as people see it"
            assert one.judged[0].evaluator._slowest_ms() == T0_MS + 3 * BUCKET_MS, "what it needs is not rolled up"
            one.leases.release()
            one = process(fleet, 4)
    same(fleet, undisturbed)


def test_each_shard_reads_its_own_streams_alone(redis: str) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 4)
    settled(one)
    fleet.send()
    fleet.send()
    settled(one)
    read = {
        number: {s for s in STREAMS if judged.evaluator.memory.windows.fingerprints_of(s)}
        for number, judged in one.judged.items()
    }
    assert all(shard_of(stream, 4) == number for number, streams in read.items() for stream in streams)
    assert min(map(len, read.values())) > 10
    fleet.store.close()


def test_shards_lie_on_every_node_of_a_cluster(redis: str) -> None:
    fleet = fleet_on(redis)
    slots = [slot_of(fleet.store.shards.shard(i, 16).keys.key("").partition("}")[0][1:]) for i in range(16)]
    assert slot_of("123456789") == 0x31C3 % 16384  # the check value of the specification of Redis Cluster
    for nodes in (3, 4, 6):
        assert len({slot * nodes // 16384 for slot in slots}) == nodes
    assert len({slot * 3 // 16384 for slot in slots[:4]}) == 3, "four shards on three nodes"
    fleet.store.close()


# ------------------------------------------------------------------------------------------------ a node falls back


def test_a_shard_that_is_behind_waits_for_a_node_that_fell_back(redis: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 4)
    settled(one)
    client = fleet.store._connection.client
    pattern = fleet.store.partitions._keys.prefix(P) + "*"
    before: dict[bytes, bytes] = {}
    for bucket in range(30):
        fleet.send()
        with paused(one, 1, 2) if 8 <= bucket < 14 else nullcontext():
            settled(one)
        if bucket == 10:
            before = {key: client.dump(key) for key in client.scan_iter(pattern)}
        if bucket == 13:  # two shards stand at bucket 6, two at 12, the partition at 9
            for key in client.scan_iter(pattern):
                client.delete(key)
            for key, dump in before.items():
                client.restore(key, 0, dump)
            settled(one)
            decided = {state.bucket_ms for state in fleet.store.shards.states()}
            assert decided == {T0_MS + 6 * BUCKET_MS, T0_MS + 12 * BUCKET_MS}, "they wait"
            for delta in fleet.log[P][11:]:
                fleet.store.partitions.apply([delta])
            settled(one)
            assert {state.bucket_ms for state in fleet.store.shards.states()} == {T0_MS + 12 * BUCKET_MS}
    same(fleet, undisturbed)


# ------------------------------------------------------------------------------------------------ another number


def test_the_number_changes_once_all_processes_wish_it(redis: str) -> None:
    fleet = fleet_on(redis)
    before, after = process(fleet, 1), process(fleet, 4)
    settled(before, after)
    assert fleet.store.shards.layout().shards == 1, "the one that is configured for one shard still lives"
    before.leases.release()
    settled(after)
    assert (fleet.store.shards.layout().shards, sorted(after.judged)) == (4, [0, 1, 2, 3])
    fleet.store.close()


def test_other_numbers_of_shards_change_no_alert_and_publish_none_twice(redis: str, undisturbed: Fleet) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 1)
    for bucket in range(30):
        fleet.send()
        if bucket in {9, 12, 22}:  # some fire, all fire, some are resolved
            one.leases.release()
            one = process(fleet, {9: 4, 12: 3, 22: 1}[bucket])
        settled(one)
    assert fleet.store.shards.layout().epoch == 3
    assert fleet.store._connection.client.keys(fleet.store.shards.shard(1, 4).keys.key("alerts")) == []
    same(fleet, undisturbed)


@pytest.mark.parametrize("place", ["shards_changed", "shards_copied", "shards_removed"])
def test_a_crash_in_the_midst_of_the_change_moves_everything_once(redis: str, place: str, undisturbed: Fleet) -> None:
    fleet, got = fleet_on(redis), Receiver("fast")
    one, number = process(fleet, 1), 1
    for bucket in range(30):
        fleet.send()
        settled(one)
        got.serve(fleet)
        if bucket in {9, 12, 22}:
            one.leases.release()
            number = {9: 4, 12: 3, 22: 1}[bucket]
            failpoints.arm(f"{place}:error")
            one = crashed(fleet, process(fleet, number), place, number)
            settled(one)
            got.serve(fleet)
    same(fleet, undisturbed, got.documents)  # each once, in the order of its alert


class Receiver:
    """Settles what it gets as a worker does, and holds what fires."""

    def __init__(self, name: str) -> None:
        self.name, self.documents = name, list[str]()

    def serve(self, fleet: Fleet) -> None:
        for shard in fleet.store.shards.all():
            for entry in shard.outbox.fetch(self.name, 2**50):
                self.documents.append(entry.document)
                data = json.loads(entry.document)["data"]
                shard.outbox.settle(self.name, entry.id, data["alert_id"], "told" if data["phase"] == "firing" else "")


def test_what_receivers_hold_and_wait_for_goes_with_the_alerts(redis: str) -> None:
    fleet = fleet_on(redis)
    one = process(fleet, 1)
    for _ in range(12):
        fleet.send()
        settled(one)
    outbox = fleet.store.outbox
    outbox.keep_receivers(["fast", "slow", "dead"])
    Receiver("fast").serve(fleet)
    for entry in outbox.fetch("slow", 0)[:-1]:
        outbox.postpone("slow", entry.id, 3, 7_000, "its-alert")
    for entry in outbox.fetch("dead", 0)[:5]:
        outbox.bury("dead", entry, "answered 410")
    SelfAlerts(fleet.store, "fleet", has_receivers=True).raise_alert(GAP, "images:0", "a gap")
    held, backlog, dead = outbox.held("fast"), outbox.backlog("slow").entries, outbox.dead_alerts()
    owed = {name: Counter(documents(fleet, name)) for name in ("fast", "slow", "dead")}
    assert (len(held), len(owed["fast"]), len(dead)) == (len(DRIFTING), 1, 5)
    for shards in (4, 3, 1):
        one.leases.release()
        one = process(fleet, shards)
        settled(one)
        found = fleet.store.shards.all()
        assert len(found) == shards
        assert {name: Counter(documents(fleet, name)) for name in owed} == owed
        assert {k: v for shard in found for k, v in shard.outbox.held("fast").items()} == held
        tried = [(entry.attempts, entry.not_before_ms, entry.alert_id) for entry in entries(fleet, "slow")]
        assert sorted(tried) == [(0, 0, ""), (0, 0, ""), *[(3, 7_000, "its-alert")] * (backlog - 2)]
        assert fleet.store.shards.backlog("slow").entries == backlog
        assert Counter(letter.document for letter in fleet.store.shards.dead_alerts()) == Counter(
            letter.document for letter in dead
        )
        assert len(outbox.self_alerts()) == 1
        for shard in found:
            mine = {alert.id for alert in shard.evaluation.alerts().values()}
            assert {
                json.loads(entry.document)["data"]["alert_id"] for entry in shard.outbox.fetch("slow", 2**50)
            } - mine == ({next(iter(by_alert(list(outbox.self_alerts().values()))))} if shard.number == 0 else set())
            assert set(shard.outbox.firing_alerts()) == mine & set(held)
    fleet.store.close()


def test_a_process_that_stood_still_during_the_change_decides_and_delivers_nothing(redis: str) -> None:
    fleet = fleet_on(redis)
    stalled = process(fleet, 1)
    for _ in range(12):
        fleet.send()
        settled(stalled)
    fleet.store._connection.client.delete(fleet.store._monitor_keys.key("tenure"))
    fleet.store._connection.client.delete(fleet.store._monitor_keys.key("processes"))
    other = process(fleet, 4)
    settled(other)
    assert fleet.store.shards.layout().shards == 4
    before = [(shard.evaluation.state(), shard.evaluation.alerts()) for shard in fleet.store.shards.all()]
    evaluator = stalled.judged[0].evaluator
    fleet.send()
    decision = evaluator._judge(T0_MS + 11 * BUCKET_MS)
    evaluator._held = HeldShard(evaluator._shard)  # it does not even ask for its lease
    assert not evaluator._decide(T0_MS + 11 * BUCKET_MS, decision)
    assert [(shard.evaluation.state(), shard.evaluation.alerts()) for shard in fleet.store.shards.all()] == before
    fleet.store.close()
