"""Who may decide and deliver: the lease as its holder sees it; on a real Redis, with a clock that is set by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from monitor.evaluate import lease
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.lease import Lease, Tenure
from monitor.evaluate.presentation import Presentation
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of
from tests.notify.parts import decide, eventually

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
    first, second = Lease(store.evaluation), Lease(store.evaluation)
    tenure = first.renew()
    assert tenure
    assert second.renew() is None
    eventually(lambda: not tenure.holds())
    assert second.renew() is None  # Redis still keeps it for the first
    eventually(second.renew)
    assert first.renew() is None
    assert not tenure.holds()


def test_time_counts_from_before_the_call_so_that_a_slow_answer_gives_less(store: Store) -> None:
    now_s = 100.0
    taken = Lease(store.evaluation, lambda: now_s)
    ask = store.evaluation.lease

    def slowly(token: str, ttl_s: float) -> bool:
        nonlocal now_s
        answer = ask(token, ttl_s)
        now_s += took_s
        return answer

    store.evaluation.lease = slowly  # type: ignore[method-assign]
    took_s = 0.15
    tenure = taken.renew()
    assert tenure
    now_s = 100.0 + LEASE_S - MARGIN_S - 0.001
    assert tenure.holds()
    now_s += 0.001
    assert not tenure.holds()
    took_s = LEASE_S
    assert taken.renew() is None, "the answer came when the lease was over"


def test_an_interrupted_tenure_does_not_come_back(store: Store) -> None:
    now_s = 0.0
    taken = Lease(store.evaluation, lambda: now_s)
    first = taken.renew()
    assert first
    now_s = 0.1
    assert taken.renew() is first
    now_s += LEASE_S
    second = taken.renew()  # nobody else wanted it
    assert second
    assert second is not first
    assert (first.holds(), second.holds()) == (False, True)


def test_what_worked_under_an_interrupted_tenure_is_ended_and_begun_again(store: Store) -> None:
    told: list[Tenure | None] = []
    evaluator = Evaluator(store, (), {}, closing_of(store, lateness_s=0), Presentation("lease"), told.append)
    evaluator._keep_lease()
    (first,) = told
    assert first
    eventually(lambda: not first.holds())
    evaluator._keep_lease()
    assert told[1] is None
    assert told[2]
    assert told[2] is not first


def test_an_evaluator_that_lost_the_lease_decides_nothing(store: Store) -> None:
    decide(store)  # an alert that no rule of these evaluators watches: the first look withdraws it
    stalled = Evaluator(store, (), {}, closing_of(store, lateness_s=0), Presentation("lease"))
    stalled._keep_lease()
    other = Lease(store.evaluation)
    eventually(other.renew)
    before = store.evaluation.state()
    stalled.look()
    assert store.evaluation.state() == before
    other.release()
    stalled._keep_lease()
    stalled.look()
    assert store.evaluation.state().version == before.version + 1
