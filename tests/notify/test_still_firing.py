"""What fires reaches its receivers in the end: given up, cut off, to be sent again, or for a receiver that is new."""

from __future__ import annotations

import time
from typing import Any

import pytest

from monitor.core.types import Alert, AlertPhase
from monitor.notify.delivery.context import DeliveryContext, Timing
from monitor.notify.delivery.worker import Worker
from monitor.notify.receivers.alertmanager import AlertmanagerSender
from monitor.notify.self_alerts import DELIVERY, RECEIVER, SelfAlerts
from monitor.store import StoreError, evaluation
from monitor.store.evaluation import Kept
from monitor.telemetry.clock import SteadyClock
from tests.notify.bench import Bench, dead_ids, settled, streams
from tests.notify.parts import T0_MS, Answer, Clock, Server, alert_of, decide, document_of, eventually

RESOLVED = AlertPhase.RESOLVED


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
    bench.store.outbox.keep_receivers(["dead", "well"])
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
    assert len(set(dead.ids[-4:])) == 4, "what was given up fires and is sent again"
    assert settled(bench, "dead")
    assert settled(bench, "well")


def test_an_alert_that_was_given_up_and_still_fires_arrives_when_its_receiver_is_back(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    server = bench.server()
    server.default = Answer(500)
    fired = decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    waits_s = (60, 120, 240, 480, 960, 1920, 3600, 3600)
    for wait_s in waits_s:
        before = len(server.requests)
        worker.round()
        bench.clock.pass_s(wait_s - 1)
        worker.round()
        assert len(server.requests) == before + 1, "no more than one try in that time"
        bench.clock.pass_s(11)
    assert dead_ids(bench) == [fired]
    server.default = Answer()
    worker.round()
    bench.clock.pass_s(3600)
    worker.round()
    assert server.ids == [fired] * (len(waits_s) + 1), "accepted once, then no more"
    assert bench.store.outbox.failing() == {}
    ended = decide(bench.store, phase=RESOLVED)
    worker.round()
    assert server.ids[-1] == ended


def test_one_document_that_a_receiver_refuses_does_not_keep_others_from_it(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(410), Answer(410)]
    ids = {decide(bench.store, "cam-1"), decide(bench.store, "cam-2")}
    worker = bench.worker(bench.webhook(server))
    worker.round()
    bench.clock.pass_s(70)
    server.answers = [Answer(410), Answer()]
    worker.round()
    assert set(server.ids[2:]) == ids
    bench.clock.pass_s(130)
    worker.round()
    assert server.ids[4:] == server.ids[2:3], "the refused one alone"


def test_a_page_of_maintenance_that_redirects_costs_no_alert(bench: Bench) -> None:
    server = bench.server()
    server.answers = [Answer(302, {"Location": f"{server.url}/sorry"})]
    fired = decide(bench.store)
    worker = bench.worker(bench.webhook(server))
    worker.round()
    bench.clock.pass_s(5)
    worker.round()
    assert server.ids == [fired, fired]
    assert settled(bench)
    assert dead_ids(bench) == []


def test_an_alert_cut_off_at_a_full_outbox_arrives_while_it_fires(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "OUTBOX_LIMIT", 1)
    server = bench.server()
    worker = bench.worker(bench.webhook(server))
    worker.round()
    ids = {decide(bench.store, f"cam-{i}") for i in range(3)}
    bench.clock.pass_s(10)
    worker.round()
    assert set(server.ids) == ids
    assert len(server.ids) == 3


def test_two_dead_receivers_do_not_alert_about_each_other_endlessly(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    servers = [bench.server(), bench.server()]
    workers = []
    for i, server in enumerate(servers):
        server.default = Answer(500)
        workers.append(bench.worker(bench.webhook(server, f"dead-{i}")))
    bench.store.outbox.keep_receivers(["dead-0", "dead-1"])
    decide(bench.store)
    for _ in range(10):
        for worker in workers:
            worker.round()
    # each: the alert itself, and the alert about the other
    assert [len(server.requests) for server in servers] == [2, 2]
    assert settled(bench, "dead-0")
    assert settled(bench, "dead-1")


# ------------------------------------------------------------------------------------------------ re-sending


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


def test_a_clock_that_is_set_back_delays_nothing(bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]) -> None:
    server, receiver = alertmanager
    wall = Clock()
    context = DeliveryContext(bench.store, "layerwatch", now_ms=wall, timing=bench.timing, steady_ms=bench.clock)
    receiver._now_ms = wall
    worker = Worker(receiver, context)
    decide(bench.store, "cam-1")
    worker.round()
    wall.pass_s(-3600)
    server.answers = [Answer(500)]
    decide(bench.store, "cam-2")
    worker.round()
    for wait_s in (5, 55):  # the second try of cam-2; then both again
        bench.clock.pass_s(wait_s)
        wall.pass_s(wait_s)
        worker.round()
    assert streams(server) == [["cam-1"], ["cam-2"], ["cam-2"], ["cam-1", "cam-2"]]
    ends = [alert["endsAt"] for request in server.requests for alert in request.json]
    assert min(ends) > "2026-11-24T08:23", "an alert that fires never ends in the past of the receiver"


def test_waits_go_by_the_time_of_redis_and_are_never_set_back(bench: Bench) -> None:
    clock = SteadyClock(bench.store.outbox.now_ms)
    assert abs(clock() - time.time_ns() // 1_000_000) < 5_000
    assert clock() <= clock()


def test_alerts_about_the_monitor_itself_are_sent_again_too(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]
) -> None:
    server, receiver = alertmanager
    SelfAlerts(bench.store, "layerwatch", True, bench.clock).raise_alert("layerwatch-gap", "images:0", "records lost")
    worker = bench.worker(receiver)
    for _ in range(3):
        worker.round()
        bench.clock.pass_s(60)
    assert streams(server) == [["images:0"]] * 3


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
    over, (alert_id,) = [Alert("drift", "cam-1")], bench.store.outbox.held("am")
    version = bench.store.evaluation.state().version
    assert bench.store.evaluation.decide(version, 0, over, [], Kept({alert_id: ""}))
    sent = len(server.requests)
    bench.clock.pass_s(60)
    worker.round()
    assert len(server.requests) == sent
    assert bench.store.outbox.held("am") == {}


def test_an_alert_that_fires_since_before_documents_were_kept_is_sent_again(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]
) -> None:
    server, receiver = alertmanager
    worker = bench.worker(receiver)
    alert = alert_of()
    assert bench.store.evaluation.decide(0, T0_MS, [alert], [document_of(alert)])
    for _ in range(3):
        worker.round()
        bench.clock.pass_s(60)
    assert streams(server) == [["cam-1"]] * 3


# ------------------------------------------------------------------------------------------------ receivers that change


def test_a_renamed_alertmanager_goes_on_holding_its_live_alerts(
    bench: Bench, alertmanager: tuple[Server, AlertmanagerSender]
) -> None:
    server, receiver = alertmanager
    bench.roster("am").look()
    for i in range(2):
        decide(bench.store, f"cam-{i}")
    bench.worker(receiver).round()
    decide(bench.store, "cam-1", RESOLVED)
    bench.worker(receiver).round()
    del server.requests[:]
    receiver.name = "renamed"
    bench.roster("renamed").look()
    worker = bench.worker(receiver)
    for _ in range(4):
        worker.round()
        bench.clock.pass_s(60)
    assert streams(server) == [["cam-0"]] * 4


def test_a_new_receiver_gets_what_fires_already_once(bench: Bench) -> None:
    old, new = bench.server(), bench.server()
    bench.roster("old").look()
    ids = {decide(bench.store, f"cam-{i}") for i in range(2)}
    about = SelfAlerts(bench.store, "layerwatch", True, bench.clock)
    about.raise_alert("layerwatch-gap", "images:0", "records lost")
    bench.worker(bench.webhook(old, "old")).round()
    assert settled(bench, "old")
    bench.roster("old", "new").look()
    worker = bench.worker(bench.webhook(new, "new"))
    for _ in range(3):
        worker.round()
        bench.clock.pass_s(3600)
    assert len(new.ids) == 3
    assert set(new.ids) == {*ids, *(request.headers["webhook-id"] for request in old.requests)}
    ended = decide(bench.store, "cam-1", RESOLVED)
    worker.round()
    assert new.ids[3:] == [ended]


def test_a_new_receiver_gets_what_is_still_in_the_outbox_once(bench: Bench) -> None:
    server = bench.server()
    bench.roster("down").look()
    fired = decide(bench.store)
    bench.roster("down", "new").look()
    worker = bench.worker(bench.webhook(server, "new"))
    for _ in range(2):
        worker.round()
        bench.clock.pass_s(60)
    assert server.ids == [fired]


def test_a_holder_of_the_lease_with_another_configuration_destroys_nothing(bench: Bench) -> None:
    server = bench.server()
    bench.roster("one", "two").look()
    fired = decide(bench.store)
    for _ in range(3):  # holders come and go
        other = bench.roster("one", "three")
        for _ in range(23):
            other.look()
            bench.clock.pass_s(3600)
        bench.roster("one", "two").look()
    bench.clock.pass_s(30 * 86_400)  # nobody holds the lease: that is no absence
    bench.roster("one").look()
    assert bench.store.outbox.receivers() == {"one", "two", "three"}
    bench.worker(bench.webhook(server, "two")).round()
    assert server.ids[:1] == [fired]


def test_a_receiver_in_no_configuration_is_forgotten_after_a_day_and_what_waited_is_counted(bench: Bench) -> None:
    server = bench.server()
    bench.roster("one", "gone").look()
    fired = decide(bench.store)
    roster, worker = bench.roster("one"), bench.worker(bench.webhook(server, "one"))
    for _ in range(25):
        roster.look()
        worker.round()
        bench.clock.pass_s(3600)
    assert bench.store.outbox.receivers() == {"one"}
    about = [r.json for r in server.requests if r.json["data"]["rule"] == RECEIVER]
    assert [(d["type"], d["data"]["stream"]) for d in about] == [("alert.firing", "gone"), ("alert.resolved", "gone")]
    assert "wait for it (1 now)" in about[0]["data"]["summary"]
    assert "2 documents for it were given up" in about[1]["data"]["summary"], "the alert itself waited for it too"
    assert fired in dead_ids(bench)
    assert bench.outcomes.count(("gone", "buried")) == 2


def test_a_holder_that_dies_while_it_forgets_a_receiver_leaves_no_alert_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = bench.store.outbox
    bench.roster("one", "gone").look()
    decide(bench.store)
    roster = bench.roster("one")
    with monkeypatch.context() as broken:
        broken.setattr(outbox, "raise_self_alert", redis_is_away)
        with pytest.raises(StoreError):
            roster.look()
    roster.look()
    assert len(outbox.self_alerts()) == 1, "an alert that Redis did not take is raised again"
    bench.store._connection.client.delete(f"{bench.store._monitor_keys.key('outbox')}:own")
    bench.clock.pass_s(60)
    roster.look()
    assert len(outbox.self_alerts()) == 1, "an alert that a Redis which fell back has lost is raised again"
    for _ in range(23):
        bench.clock.pass_s(3600)
        roster.look()
    bench.clock.pass_s(3600)
    with monkeypatch.context() as broken:
        broken.setattr(outbox, "forget_receiver", redis_is_away)
        with pytest.raises(StoreError):
            roster.look()
    bench.roster("one").look()
    bench.clock.pass_s(3600)
    bench.roster("one").look()
    assert outbox.receivers() == {"one"}
    assert outbox.self_alerts() == {}


def redis_is_away(*_: object) -> None:
    raise StoreError("away")


def test_the_alert_about_a_receiver_ends_when_it_is_no_longer_configured(bench: Bench) -> None:
    bench.timing = Timing(delays_s=(0.0,), poll_s=0.01)
    dead, well = bench.server(), bench.server()
    dead.default = Answer(500)
    bench.store.outbox.keep_receivers(["dead", "well"])
    decide(bench.store)
    bench.worker(bench.webhook(dead, "dead")).round()
    assert list(bench.store.outbox.failing()) == ["dead"]
    bench.dispatcher(bench.webhook(well, "well")).start()
    delivery = lambda: [r.json["type"] for r in well.requests if r.json["data"]["rule"] == DELIVERY]  # noqa: E731
    eventually(lambda: len(delivery()) == 2)
    assert delivery() == ["alert.firing", "alert.resolved"]
