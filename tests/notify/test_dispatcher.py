"""From the outbox to the receivers: at least once, in order and on schedule, though receivers fail or are silenced."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from monitor.core.alert_document import test_document as a_test_document
from monitor.core.types import AlertPhase
from monitor.notify.delivery.context import STANDARD_WEBHOOKS_S, Timing
from monitor.notify.delivery.still_firing import WAIT_S
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.pagerduty import PagerDutySender, PagerDutySettings
from monitor.store import Store, StoreError, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.bench import Bench, dead_ids, settled
from tests.notify.parts import T0_MS, Answer, decide, eventually

RESOLVED = AlertPhase.RESOLVED
PAGERDUTY = PagerDutySettings(name="pd", type="pagerduty", routing_key=SecretStr("k"))


# ------------------------------------------------------------------------------------------------ delivery


def test_what_the_outbox_holds_is_delivered_once_and_in_order(bench: Bench) -> None:
    server = bench.server()
    ids = [decide(bench.store, f"cam-{i}") for i in range(3)]
    bench.dispatcher(bench.webhook(server)).start()
    eventually(lambda: settled(bench))
    ids.append(decide(bench.store, phase=RESOLVED))
    eventually(lambda: len(server.requests) >= 4 and settled(bench))
    assert server.ids == ids
    assert bench.outcomes == [("hook", "delivered")] * 4


def test_a_test_alert_is_delivered_and_leaves_nothing_behind(bench: Bench) -> None:
    server = bench.server()
    bench.silence(3600, stream="*")
    bench.store.outbox.append(a_test_document("layerwatch", T0_MS))
    bench.worker(bench.webhook(server)).round()
    assert server.requests[0].json["type"] == "alert.test"
    assert settled(bench)
    assert bench.store.outbox.held("hook") == {}


def test_the_resolved_is_settled_unsent_where_it_is_not_wanted(bench: Bench) -> None:
    server = bench.server()
    fired = decide(bench.store)
    decide(bench.store, phase=RESOLVED)
    bench.worker(bench.webhook(server, send_resolved=False)).round()
    assert server.ids == [fired]
    assert settled(bench)


def test_text_that_is_no_document_is_buried_and_holds_nothing_up(bench: Bench) -> None:
    server = bench.server()
    bench.store.outbox.append("{}")
    fired = decide(bench.store)
    bench.worker(bench.webhook(server)).round()
    assert server.ids == [fired]
    assert [dead.reason for dead in bench.store.outbox.dead_alerts()] == ["not an alert document: KeyError"]


def test_a_dead_or_slow_receiver_does_not_delay_another(bench: Bench) -> None:
    slow, fast = bench.server(), bench.server()
    slow.default = Answer(hang=True)
    dispatcher = bench.dispatcher(bench.webhook(slow, "slow", timeout_s=30), bench.webhook(fast, "fast"))
    dispatcher.start()
    started = time.monotonic()
    for i in range(5):
        decide(bench.store, f"cam-{i}")
        eventually(lambda i=i: len(fast.requests) == i + 1)  # type: ignore[misc]
    assert time.monotonic() - started < 5
    assert len(slow.requests) == 1
    assert bench.store.outbox.backlog("slow").entries == 5


def test_no_receiver_settles_an_entry_away_from_one_that_has_not_looked_yet(bench: Bench) -> None:
    quick, late = bench.server(), bench.server()
    decide(bench.store)
    dispatcher = bench.dispatcher(bench.webhook(quick, "quick"), bench.webhook(late, "late"))
    looks = dispatcher._workers[1].round
    may_look = threading.Event()
    dispatcher._workers[1].round = lambda: looks() if may_look.is_set() else None  # type: ignore[method-assign]
    dispatcher.start()
    eventually(lambda: quick.requests and settled(bench, "quick"))
    may_look.set()
    eventually(lambda: late.ids == quick.ids)


def test_stopping_takes_seconds_even_while_a_receiver_hangs(bench: Bench) -> None:
    server = bench.server()
    server.default = Answer(hang=True)
    decide(bench.store)
    dispatcher = bench.dispatcher(bench.webhook(server, timeout_s=60))
    dispatcher.start()
    eventually(lambda: server.requests)
    started = time.monotonic()
    with capture_logs() as logs:
        dispatcher.stop(timeout_s=0.5)
    assert time.monotonic() - started < 2
    assert [line["event"] for line in logs] == ["notify.left_behind"]


def test_nothing_is_begun_once_the_lease_is_lost(bench: Bench) -> None:
    server = bench.server()
    held = threading.Event()
    held.set()
    dispatcher = bench.dispatcher(bench.webhook(server), holds_lease=held.is_set)
    dispatcher.start()
    decide(bench.store)
    eventually(lambda: settled(bench) and server.requests)
    held.clear()
    eventually(lambda: not any(thread.is_alive() for thread in dispatcher._threads))
    decide(bench.store, "cam-2")
    assert len(server.requests) == 1
    assert bench.store.outbox.backlog("hook").entries == 1


def test_a_lease_lost_during_a_send_leaves_the_schedule_to_the_next_holder(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(500)]
    decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    send = worker.receiver.send

    def lose_the_lease(notice: Notice) -> Any:
        bench.over.set()
        return send(notice)

    worker.receiver.send = lose_the_lease  # type: ignore[method-assign]
    worker.round()
    (entry,) = bench.store.outbox.fetch("hook", T0_MS)
    assert (entry.attempts, bench.outcomes) == (0, [])


def test_a_lease_lost_before_a_send_leaves_it_to_the_next_holder(bench: Bench) -> None:
    server = bench.server()
    decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    silences = bench.store.silences.all

    def slowly() -> Any:  # the round stood still here, longer than the lease lasts
        bench.over.set()
        return silences()

    bench.store.silences.all = slowly  # type: ignore[method-assign]
    worker.round()
    assert server.requests == []
    assert len(bench.store.outbox.fetch("hook", T0_MS)) == 1


# ------------------------------------------------------------------------------------------------ tries and order


def test_tries_follow_the_schedule_of_standard_webhooks(bench: Bench) -> None:
    server = bench.server()
    server.default = Answer(500)
    decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    for tries, wait_s in enumerate(STANDARD_WEBHOOKS_S):
        bench.clock.pass_s(wait_s - 0.001 if wait_s else 0)
        worker.round()
        assert len(server.requests) == (tries if wait_s else 1), "tried too early"
        bench.clock.pass_s(0.001 if wait_s else 0)
        worker.round()
        assert len(server.requests) == tries + 1
    assert bench.outcomes == [("hook", "retried")] * 9 + [("hook", "buried")]
    assert dead_ids(bench) == server.ids[:1]
    assert len(set(server.ids)) == 1
    decide(bench.store, phase=RESOLVED)
    server.default = Answer()
    bench.clock.pass_s(1e6)
    worker.round()
    assert len(server.requests) == 11, "what is over is not sent any more; its end is"


def test_a_wait_grows_by_its_jitter_and_never_shrinks() -> None:
    timing = Timing(jitter=0.2)
    dues = {timing.next_try_ms(0, 2) for _ in range(200)}
    assert all(due is not None and 300_000 <= due <= 360_000 for due in dues)
    assert len(dues) > 100
    assert timing.next_try_ms(0, 10) is None


@pytest.mark.parametrize(("after_s", "wait_s"), [(None, 5.0), (1.0, 5.0), (90.0, 90.0)])
def test_a_rest_asked_for_lengthens_the_wait_and_never_shortens_it(after_s: float | None, wait_s: float) -> None:
    assert Timing(jitter=0.0).next_try_ms(T0_MS, 1, after_s) == T0_MS + 1000 * wait_s


def test_a_receiver_that_asks_for_a_rest_gets_it_for_all_that_waits(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(429, {"Retry-After": "60"})]
    decide(bench.store, "cam-1")
    decide(bench.store, "cam-2")
    worker = bench.worker(bench.webhook(server))
    worker.round()
    bench.clock.pass_s(59)
    worker.round()
    assert len(server.requests) == 1
    bench.clock.pass_s(1)
    worker.round()
    assert len(server.requests) == 3
    assert settled(bench)
    assert [entry.attempts for entry in bench.store.outbox.fetch("hook", bench.clock())] == []


def test_a_restart_in_the_middle_of_a_schedule_goes_on_where_it_was(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(500), Answer(500)]
    decide(bench.store)
    receiver = bench.webhook(server)
    bench.worker(receiver).round()
    bench.clock.pass_s(5)
    bench.worker(receiver).round()
    bench.clock.pass_s(299)
    bench.worker(receiver).round()
    assert len(server.requests) == 2
    bench.clock.pass_s(1)
    bench.worker(receiver).round()
    assert len(server.requests) == 3
    assert settled(bench)


def test_a_resolved_never_overtakes_its_firing_and_others_pass(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(500)]
    fired = decide(bench.store)
    other = decide(bench.store, "cam-2")
    ended = decide(bench.store, phase=RESOLVED)
    receiver = bench.webhook(server)
    bench.worker(receiver).round()
    assert server.ids == [fired, other]
    bench.clock.pass_s(4)
    bench.worker(receiver).round()  # a new process knows only what Redis knows
    assert server.ids == [fired, other]
    bench.clock.pass_s(1)
    bench.worker(receiver).round()
    assert server.ids == [fired, other, fired, ended]
    assert settled(bench)


def test_killed_between_the_answer_and_the_note_of_it_the_same_id_comes_twice(bench: Bench) -> None:
    server = bench.server()
    fired = decide(bench.store)
    receiver = bench.webhook(server)
    killed = bench.worker(receiver)
    killed._record_success = lambda: None  # type: ignore[method-assign]
    killed.round()
    bench.worker(receiver).round()
    assert server.ids == [fired, fired]
    assert settled(bench)
    assert list(bench.store.outbox.held("hook")) == [fired.removesuffix("-firing")]


# ------------------------------------------------------------------------------------------------ Redis away


def test_a_redis_that_goes_away_is_logged_once_and_delivery_goes_on_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.notify.delivery.dispatcher.STORE_BACKOFF_S", (0.05, 0.1))
    with ExitStack() as stack, PrivateRedis(options=["--appendonly", "yes"]) as redis:
        store = open_store(RedisSettings(url=SecretStr(redis.url)), "away")
        stack.callback(store.close)
        bench = Bench(store, redis.url, stack)
        server = bench.server()
        bench.dispatcher(bench.webhook(server)).start()
        decide(store)
        eventually(lambda: settled(bench) and server.requests)
        with capture_logs() as logs:
            redis.kill()
            eventually(lambda: logs)
            time.sleep(0.3)  # the time in which it must not log it again
            redis.start()
            fired = decide_again(store, "cam-2")
            eventually(lambda: server.ids[-1] == fired)
        assert [line["event"] for line in logs].count("notify.store_away") == 1


def decide_again(store: Store, stream: str) -> str:
    """As `decide`, with connections that the restart has cut."""
    eventually(lambda: _answers(store))
    return decide(store, stream)


def _answers(store: Store) -> bool:
    try:
        store.ping()
    except StoreError:
        return False
    return True


def test_what_was_delivered_while_redis_was_away_is_not_sent_again(bench: Bench) -> None:
    server = bench.server()
    decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    settle = bench.store.outbox.settle

    def away(*_: object, **__: object) -> bool:
        raise StoreError("redis: gone")

    bench.store.outbox.settle = away  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        worker.round()
    bench.store.outbox.settle = settle  # type: ignore[method-assign]
    worker.round()
    assert len(server.requests) == 1
    assert settled(bench)


# ------------------------------------------------------------------------------------------------ silences


def test_a_silenced_alert_is_settled_unsent_from_beginning_to_end(bench: Bench) -> None:
    server = bench.server()
    bench.silence(3600, stream="cam-*", rule="drift")
    worker = bench.worker(bench.webhook(server))
    decide(bench.store)
    worker.round()
    bench.clock.pass_s(3700)  # the end comes after the silence; its beginning was withheld
    decide(bench.store, phase=RESOLVED)
    worker.round()
    assert server.requests == []
    assert settled(bench)
    assert bench.store.outbox.held("hook") == {}
    assert bench.outcomes == [("hook", "silenced")] * 2


def test_an_alert_that_outlives_its_silence_is_sent_then(bench: Bench) -> None:
    server = bench.server()
    bench.silence(3600, stream="cam-1")
    receiver = bench.webhook(server)
    fired = decide(bench.store)
    bench.worker(receiver).round()
    bench.clock.pass_s(3599)
    bench.worker(receiver).round()
    assert server.requests == []
    bench.clock.pass_s(1)
    server.answers = [Answer(500)]
    worker = bench.worker(receiver)
    worker.round()
    bench.clock.pass_s(WAIT_S[0] + 10)
    worker.round()
    bench.clock.pass_s(60)
    worker.round()
    assert server.ids == [fired, fired], "once refused, once delivered, then no more"
    ended = decide(bench.store, phase=RESOLVED)
    worker.round()
    assert server.ids[2:] == [ended]


def test_the_end_of_an_alert_that_was_sent_is_sent_in_spite_of_a_silence(bench: Bench) -> None:
    """Or its incident would stay open."""
    server = bench.server()
    receiver = PagerDutySender(PAGERDUTY.model_copy(update={"url": server.url}))
    bench.stack.callback(receiver.close)
    decide(bench.store)
    bench.worker(receiver).round()
    bench.silence(3600, stream="*")
    decide(bench.store, phase=RESOLVED)
    bench.worker(receiver).round()
    assert [request.json["event_action"] for request in server.requests] == ["trigger", "resolve"]


def test_a_silence_acknowledges_the_incident_of_a_sent_alert_once(bench: Bench) -> None:
    server = bench.server()
    receiver = PagerDutySender(PAGERDUTY.model_copy(update={"url": server.url}))
    bench.stack.callback(receiver.close)
    decide(bench.store)
    worker = bench.worker(receiver)
    worker.round()
    (alert,) = bench.store.evaluation.alerts().values()
    server.answers = [Answer(500)]
    bench.silence(3600, stream="*")
    for _ in range(5):  # refused once, taken once, then no more; also by the next process
        bench.clock.pass_s(120)
        worker.round()
    bench.worker(receiver).round()
    decide(bench.store, phase=RESOLVED)
    bench.clock.pass_s(120)
    bench.worker(receiver).round()
    actions = [request.json["event_action"] for request in server.requests]
    assert actions == ["trigger", "acknowledge", "acknowledge", "resolve"]
    assert {request.json["dedup_key"] for request in server.requests} == {alert.id}
    assert ("pd", "acknowledged") in bench.outcomes


def test_a_silence_that_cannot_be_read_hides_nothing_and_is_logged_once(bench: Bench) -> None:
    server = bench.server()
    bench.store.silences.put("broken", '{"matchers": {}}')
    worker = bench.worker(bench.webhook(server))
    with capture_logs() as logs:
        for i in range(2):
            decide(bench.store, f"cam-{i}")
            worker.round()
    assert len(server.requests) == 2
    assert [line["event"] for line in logs].count("notify.silence_unreadable") == 1
