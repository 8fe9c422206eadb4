"""Who may decide and deliver: the lease as its holder sees it; on a real Redis, with a clock that is set by hand."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import pytest
from pydantic import SecretStr

from monitor.evaluate import lease
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.lease import Leases, Tenure
from monitor.evaluate.presentation import Presentation
from monitor.evaluate.replica import Replica
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.store.shards import Seats
from tests.evaluate.parts import closing_of
from tests.notify.parts import decide, eventually

pytestmark = pytest.mark.slow

LEASE_S, MARGIN_S = 0.4, 0.2
_monitors = itertools.count()


@pytest.fixture
def store(redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    monkeypatch.setattr(lease, "MARGIN_S", MARGIN_S)
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"lease-{next(_monitors)}")
    yield opened
    opened.close()


def test_a_holder_that_stood_still_is_over_before_redis_gives_the_lease_away(store: Store) -> None:
    first, second = Leases(store.shards), Leases(store.shards)
    tenure = first.renew()[0]
    assert second.renew() == {}
    eventually(lambda: not tenure.holds())
    assert second.renew() == {}  # Redis still keeps it for the first
    eventually(second.renew)
    assert first.renew() == {}
    assert not tenure.holds()


def test_time_counts_from_before_the_call_so_that_a_slow_answer_gives_less(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    taken = Leases(store.shards, clock=lambda: now_s)
    ask = store.shards.lease

    def slowly(token: str, ttl_s: float, wished: int, give_up: Collection[int]) -> Seats:
        nonlocal now_s
        answer = ask(token, ttl_s, wished, give_up)
        now_s += took_s
        return answer

    monkeypatch.setattr(store.shards, "lease", slowly)
    took_s = 0.15
    tenure = taken.renew()[0]
    now_s = 100.0 + LEASE_S - MARGIN_S - 0.001
    assert tenure.holds()
    now_s += 0.001
    assert not tenure.holds()
    took_s = LEASE_S
    assert taken.renew() == {}, "the answer came when the lease was over"


def test_an_interrupted_tenure_does_not_come_back(store: Store) -> None:
    now_s = 0.0
    taken = Leases(store.shards, clock=lambda: now_s)
    first = taken.renew()[0]
    now_s = 0.1
    assert taken.renew()[0] is first
    now_s += LEASE_S
    second = taken.renew()[0]  # nobody else wanted it
    assert second is not first
    assert (first.holds(), second.holds()) == (False, True)


def replica(store: Store, told: list[Tenure | None] | None = None) -> Replica:
    def evaluator_of(held: HeldShard) -> Evaluator:
        return Evaluator(store, (), {}, closing_of(store, lateness_s=0), Presentation("lease"), held)

    seen: list[Tenure | None] = [] if told is None else told
    return Replica(store, evaluator_of, on_lease=lambda _, tenure: seen.append(tenure))


def test_what_worked_under_an_interrupted_tenure_is_ended_and_begun_again(store: Store) -> None:
    told: list[Tenure | None] = []
    process = replica(store, told)
    process.turn()
    (first,) = told
    assert first
    eventually(lambda: not first.holds())
    process.turn()
    assert told[1] is None
    assert told[2]
    assert told[2] is not first


def test_an_evaluator_that_lost_the_lease_decides_nothing(store: Store) -> None:
    stalled, other = replica(store), Leases(store.shards)
    stalled.turn()
    decide(store)  # an alert that no rule of these evaluators watches: the first look withdraws it
    eventually(other.renew)
    before = store.evaluation.state()
    stalled.judged[0].evaluator.look()
    assert store.evaluation.state() == before
    other.release()
    eventually(lambda: stalled.turn() or store.evaluation.state().version == before.version + 1)


# ------------------------------------------------------------------------------------------------ several shards


@pytest.fixture
def sixteen(store: Store) -> Store:
    """A monitor whose streams lie in sixteen shards."""
    store._connection.client.hset(store._monitor_keys.key("shards"), mapping={"shards": 16, "epoch": 1})
    return store


def settle(processes: Sequence[Leases]) -> list[int]:
    """Shards that each holds, once all have asked a few times."""
    for _ in range(3):
        for process in processes:
            held = process.renew()
            process.renew(give_up=sorted(held)[process.seats.target :])
    return [len(process.renew()) for process in processes]


def test_shards_lie_evenly_over_the_processes_that_live(sixteen: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 2.0)
    processes = [Leases(sixteen.shards, 16) for _ in range(3)]
    assert settle(processes[:1]) == [16]
    assert settle(processes[:2]) == [8, 8]
    assert settle(processes) == [6, 5, 5]
    held = [number for process in processes for number in process.renew()]
    assert sorted(held) == list(range(16)), "each is held once"
    processes[0].release()
    assert settle(processes[1:]) == [8, 8], "one that leaves gives its shards away at once"
    eventually(lambda: settle(processes[2:]) == [16])  # one that died, when its leases are over


def test_nobody_takes_more_than_its_part_while_another_is_slow(sixteen: Store) -> None:
    first, second = Leases(sixteen.shards, 16), Leases(sixteen.shards, 16)
    first.renew()
    second.renew()
    assert first.seats.target + len(second.renew()) == 16
    assert (first.seats.target, second.seats.target) == (16, 8)
    first.renew()
    assert first.seats.target == 8


def test_other_wishes_change_nothing_while_they_differ(sixteen: Store) -> None:
    first, second = Leases(sixteen.shards, 4), Leases(sixteen.shards, 16)
    second.renew()
    first.renew()
    assert (first.seats.change_to, second.seats.change_to) == (0, 0)
    second.release()
    first.renew()
    assert (first.seats.change_to, first.seats.target) == (4, 16)
