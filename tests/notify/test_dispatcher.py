"""From the outbox to the receivers: at least once, in order and on schedule, though receivers fail or are silenced."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from monitor.core.alert_document import test_document as a_test_document
from monitor.core.silences import Silence, to_json
from monitor.core.types import Alert, AlertPhase
from monitor.notify.delivery.context import STANDARD_WEBHOOKS_S, DeliveryContext, Timing
from monitor.notify.delivery.dispatcher import Dispatcher
from monitor.notify.delivery.still_firing import RETRY_WITHHELD_MS
from monitor.notify.delivery.worker import Worker
from monitor.notify.receivers.alertmanager import AlertmanagerSender, AlertmanagerSettings
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.pagerduty import PagerDutySender, PagerDutySettings
from monitor.notify.receivers.protocol import Receiver
from monitor.notify.receivers.webhook import WebhookSender, WebhookSettings
from monitor.notify.self_alerts import DELIVERY
from monitor.store import Store, StoreError, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.parts import T0_MS, Answer, Clock, Server, decide, eventually

RESOLVED = AlertPhase.RESOLVED
PAGERDUTY = PagerDutySettings(name="pd", type="pagerduty", routing_key=SecretStr("k"))
_monitors = itertools.count()


@dataclass
class Bench:
    """A store, a clock, and receivers that are real HTTP clients of local servers."""

    store: Store
    url: str
    stack: ExitStack
    clock: Clock = field(default_factory=Clock)
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    timing: Timing = field(default_factory=lambda: Timing(jitter=0.0, poll_s=0.01))

    def server(self) -> Server:
        return self.stack.enter_context(Server())

    def webhook(self, server: Server, name: str = "hook", **settings: Any) -> WebhookSender:
        made = WebhookSender(WebhookSettings(name=name, type="webhook", url=SecretStr(server.url), **settings))
        self.stack.callback(made.close)
        return made

    def worker(self, receiver: Receiver) -> Worker:
        """What one thread of a dispatcher does, step by step; each call is a new process's."""
        return Worker(receiver, self.context(lambda: not self.over.is_set()))

    def context(self, holds_lease: Callable[[], bool]) -> DeliveryContext:
        return DeliveryContext(self.store, "layerwatch", holds_lease, self.clock, self.timing, self.observe)

    def dispatcher(self, *receivers: Receiver, holds_lease: Callable[[], bool] = lambda: True) -> Dispatcher:
        made = Dispatcher(self.context(holds_lease), receivers)
        self.stack.callback(made.stop, 0.2)
        return made

    def observe(self, receiver: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append((receiver, outcome))

    def silence(self, ends_s: float, **matchers: str) -> None:
        silence = Silence("s1", matchers, T0_MS, T0_MS + round(1000 * ends_s))
        self.store.silences.put("s1", to_json(silence))


@pytest.fixture
def bench(redis_server: PrivateRedis) -> Iterator[Bench]:
    with ExitStack() as stack:
        store = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"notify-{next(_monitors)}")
        stack.callback(store.close)
        yield Bench(store, redis_server.url, stack)


def dead_ids(bench: Bench) -> list[str]:
    return [json.loads(dead.document)["id"] for dead in bench.store.outbox.dead_alerts()]


def settled(bench: Bench, receiver: str = "hook") -> bool:
    return bench.store.outbox.backlog(receiver).entries == 0


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
    bench.clock.pass_s(1e6)
    worker.round()
    assert len(server.requests) == 10


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


# ------------------------------------------------------------------------------------------------ given up


@pytest.mark.parametrize(("answer", "outcome"), [(Answer(500), "buried"), (Answer(410), "refused")])
def test_what_is_given_up_is_a_dead_letter_and_alerts_the_others(bench: Bench, answer: Answer, outcome: str) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    dead, well = bench.server(), bench.server()
    dead.default = answer
    fired = decide(bench.store)
    bench.dispatcher(bench.webhook(dead, "dead"), bench.webhook(well, "well")).start()
    eventually(lambda: len(well.requests) == 2 and settled(bench, "dead") and settled(bench, "well"))
    assert dead_ids(bench) == [fired]
    assert ("dead", outcome) in bench.outcomes
    alert = next(request.json for request in well.requests if request.json["data"]["rule"] == DELIVERY)
    assert (alert["type"], alert["data"]["stream"]) == ("alert.firing", "dead")
    assert str(answer.status) in alert["data"]["cause"]
    assert dead.ids == [fired], "a receiver must not get the alert about itself"


def test_a_receiver_that_fails_long_gives_one_alert_and_its_recovery_ends_it(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    dead, well = bench.server(), bench.server()
    dead.default = Answer(500)
    sick, healthy = bench.webhook(dead, "dead"), bench.webhook(well, "well")
    bench.store.outbox.retain_receivers(["dead", "well"])
    for i in range(3):
        decide(bench.store, f"cam-{i}")
    bench.worker(sick).round()
    bench.worker(sick).round()  # gets to see, and not to send, the alert about itself
    dead.default = Answer(200)
    decide(bench.store, "cam-9")
    bench.worker(sick).round()
    bench.worker(sick).round()
    for _ in range(2):
        bench.worker(healthy).round()
    about = [r.json for r in well.requests if r.json["data"]["rule"] == DELIVERY]
    assert [document["type"] for document in about] == ["alert.firing", "alert.resolved"]
    assert about[0]["data"]["alert_id"] == about[1]["data"]["alert_id"]
    assert bench.store.outbox.failing() == {}
    assert len(dead.requests) == 4
    assert settled(bench, "dead")
    assert settled(bench, "well")


def test_two_dead_receivers_do_not_alert_about_each_other_endlessly(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    servers = [bench.server(), bench.server()]
    workers = []
    for i, server in enumerate(servers):
        server.default = Answer(500)
        workers.append(bench.worker(bench.webhook(server, f"dead-{i}")))
    bench.store.outbox.retain_receivers(["dead-0", "dead-1"])
    decide(bench.store)
    for _ in range(10):
        for worker in workers:
            worker.round()
    # each: the alert itself, and the alert about the other
    assert [len(server.requests) for server in servers] == [2, 2]
    assert settled(bench, "dead-0")
    assert settled(bench, "dead-1")


def test_a_receiver_that_is_no_longer_configured_is_forgotten(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    dead, well = bench.server(), bench.server()
    dead.default = Answer(500)
    bench.store.outbox.retain_receivers(["dead", "well"])
    decide(bench.store)
    bench.worker(bench.webhook(dead, "dead")).round()
    assert list(bench.store.outbox.failing()) == ["dead"]
    bench.dispatcher(bench.webhook(well, "well")).start()
    eventually(lambda: len(well.requests) == 3)
    assert [request.json["type"] for request in well.requests] == ["alert.firing", "alert.firing", "alert.resolved"]
    assert bench.store.outbox.retain_receivers(["well"]) == []


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
    bench.clock.pass_s(RETRY_WITHHELD_MS / 1000 + 10)
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


# ------------------------------------------------------------------------------------------------ re-sending


@pytest.fixture
def alertmanager(bench: Bench) -> tuple[Server, AlertmanagerSender]:
    server = bench.server()
    settings = AlertmanagerSettings(name="am", type="alertmanager", urls=(SecretStr(server.url),), resend_s=60)
    receiver = AlertmanagerSender(settings, bench.clock)
    bench.stack.callback(receiver.close)
    return server, receiver


def streams(server: Server) -> list[list[str]]:
    """Streams named in each request."""
    return [sorted(alert["labels"]["stream"] for alert in request.json) for request in server.requests]


def test_what_fires_is_sent_again_until_it_is_resolved(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]
) -> None:
    server, receiver = alertmanager
    worker = bench.worker(receiver)
    worker.round()
    decide(bench.store, "cam-1")
    decide(bench.store, "cam-2")
    worker.round()
    bench.clock.pass_s(59)
    worker.round()
    assert streams(server) == [["cam-1"], ["cam-2"]]
    bench.clock.pass_s(1)
    worker.round()
    assert streams(server)[2:] == [["cam-1", "cam-2"]]
    decide(bench.store, "cam-1", RESOLVED)
    bench.clock.pass_s(60)
    worker.round()
    assert streams(server)[3:] == [["cam-1"], ["cam-2"]], "the end, and the other one again"
    assert server.requests[3].json[0]["endsAt"] == "2026-11-24T08:21:00.000Z"
    # a new process sends them at once: how long the last one was away is not known
    bench.worker(receiver).round()
    assert streams(server)[5:] == [["cam-2"]]
    assert [outcome for _, outcome in bench.outcomes].count("resent") == 3


def test_many_are_sent_again_in_few_requests_and_none_once_the_lease_is_lost(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.notify.delivery.still_firing.RESENT_TOGETHER", 2)
    server, receiver = alertmanager
    for i in range(5):
        decide(bench.store, f"cam-{i}")
    worker = bench.worker(receiver)
    worker.round()
    del server.requests[:]
    bench.clock.pass_s(60)
    worker.round()
    assert [len(request.json) for request in server.requests] == [2, 2, 1]
    resend = receiver.resend

    def lose_the_lease(notices: Any) -> Any:
        bench.over.set()
        return resend(notices)

    receiver.resend = lose_the_lease  # type: ignore[method-assign]
    bench.clock.pass_s(60)
    worker.round()
    assert [len(request.json) for request in server.requests] == [2, 2, 1, 2]


def test_during_a_silence_it_is_not_sent_again(bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]) -> None:
    server, receiver = alertmanager
    worker = bench.worker(receiver)
    decide(bench.store)
    worker.round()
    sent = len(server.requests)
    bench.silence(600, stream="*")
    bench.clock.pass_s(60)
    worker.round()
    assert len(server.requests) == sent
    bench.clock.pass_s(600)
    worker.round()
    assert len(server.requests) == sent + 1


def test_an_alert_whose_end_was_cut_off_is_not_sent_again(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]
) -> None:
    server, receiver = alertmanager
    worker = bench.worker(receiver)
    decide(bench.store)
    worker.round()
    # its end is committed, but the entry falls to the outbox limit
    assert bench.store.evaluation.decide(bench.store.evaluation.state().version, 0, [Alert("drift", "cam-1")], {}, [])
    sent = len(server.requests)
    bench.clock.pass_s(60)
    worker.round()
    assert len(server.requests) == sent
    assert bench.store.outbox.held("am") == {}
