"""The contract of every receiver, against a real HTTP server; and what each of them sends for a document."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import chain
from typing import Any

import pytest
from kafka import KafkaConsumer
from pydantic import TypeAdapter
from standardwebhooks import Webhook, WebhookVerificationError

from monitor.config.schema import Config
from monitor.core.alert_document import test_document as a_test_document
from monitor.notify.receivers.http_client import MAX_RETRY_AFTER_S, retry_after_s
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.protocol import (
    Delivered,
    Outcome,
    Receiver,
    ReceiverConfigError,
    ReceiverSettings,
    Refused,
    Resending,
    Retry,
)
from monitor.notify.receivers.registry import AnyReceiver
from monitor.sources import Producer, open_producer
from monitor.sources.kafka.settings import KafkaSettings
from monitor.sources.protocol import FatalSourceError, SourceError
from tests.kafka.broker import Cluster
from tests.notify.parts import T0_MS, Answer, Clock, Server, eventually, firing, resolved

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
SETTINGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "webhook": lambda url: {"url": f"{url}/hook?token=s3cret", "secret": SECRET, "headers": {"X-Key": "s3cret"}},
    "alertmanager": lambda url: {"urls": [url], "bearer_token": "s3cret"},
    "slack": lambda url: {"url": f"{url}/services/T0/B0/s3cret"},
    "pagerduty": lambda url: {"url": f"{url}/v2/enqueue", "routing_key": "s3cret"},
}


class Topic:
    """A producer into a list, as `monitor.sources.open_producer` gives one; `error` makes the next flush fail."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.closed = False

    def send(self, **record: Any) -> None:
        self.records.append(record)

    def flush(self) -> None:
        error, self.error = self.error, None
        if error:
            raise error

    def close(self) -> None:
        self.closed = True


def no_producer() -> Topic:
    raise AssertionError("only a Kafka receiver needs a producer")


def build(kind: str, settings: dict[str, Any], topic: Topic | Producer | None = None) -> Receiver:
    section: TypeAdapter[ReceiverSettings] = TypeAdapter(AnyReceiver)
    receiver = section.validate_python({"name": "out", "type": kind, "timeout_s": 0.5, **settings})
    return receiver.build((lambda: topic) if topic else no_producer)  # type: ignore[arg-type,return-value]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(params=list(SETTINGS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver(kind: str, server: Server) -> Iterator[Receiver]:
    built = build(kind, SETTINGS[kind](server.url))
    yield built
    built.close()


def answered(receiver: Receiver, server: Server, answer: Answer) -> Outcome:
    server.answers = [answer]
    return receiver.send(Notice.parse(firing()))


# ------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_delivered(receiver: Receiver, server: Server, status: int) -> None:
    assert answered(receiver, server, Answer(status)) == Delivered()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes_is_tried_again(receiver: Receiver, server: Server, status: int) -> None:
    outcome = answered(receiver, server, Answer(status))
    assert isinstance(outcome, Retry)
    assert outcome.after_s is None
    assert f"answered {status}" in outcome.reason


@pytest.mark.parametrize("status", [429, 503])
def test_a_rest_that_is_asked_for_is_reported(receiver: Receiver, server: Server, status: int) -> None:
    outcome = answered(receiver, server, Answer(status, {"Retry-After": "120"}))
    assert isinstance(outcome, Retry)
    assert outcome.after_s == 120


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_tried_again_and_not_followed(receiver: Receiver, server: Server, status: int) -> None:
    outcome = answered(receiver, server, Answer(status, {"Location": f"{server.url}/elsewhere"}))
    assert isinstance(outcome, Retry)
    assert "redirects are not followed" in outcome.reason
    assert len(server.requests) == 1


def test_gone_is_refused_for_good(receiver: Receiver, server: Server) -> None:
    assert isinstance(answered(receiver, server, Answer(410)), Refused)


def test_one_that_does_not_answer_in_time_is_tried_again(receiver: Receiver, server: Server) -> None:
    outcome = answered(receiver, server, Answer(hang=True))
    assert isinstance(outcome, Retry)
    assert "ReadTimeout" in outcome.reason
    assert "s3cret" not in outcome.reason
    assert "/services" not in outcome.reason


def test_one_that_hangs_up_is_tried_again(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    receiver = build(kind, SETTINGS[kind](f"http://127.0.0.1:{port}"))
    outcome = receiver.send(Notice.parse(firing()))
    receiver.close()
    assert isinstance(outcome, Retry)
    assert outcome.reason.startswith(f"127.0.0.1:{port}: ConnectError")


@pytest.mark.parametrize("answer", [Answer(500, body=b"oh"), Answer(302), Answer(410)])
def test_no_reason_shows_a_secret(receiver: Receiver, server: Server, answer: Answer) -> None:
    outcome = answered(receiver, server, answer)
    assert not isinstance(outcome, Delivered)
    assert "s3cret" not in outcome.reason
    assert "/services" not in outcome.reason


def test_no_log_line_shows_a_secret(receiver: Receiver, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answered(receiver, server, Answer(200))
    assert "s3cret" not in caplog.text
    assert "hook" not in caplog.text


@pytest.mark.parametrize(
    "url", ["", "ftp://host/", "hooks.slack.com/services/s3cret", "http://", "http://ho st/s3cret"]
)
def test_a_url_that_cannot_be_used_is_reported_by_its_key_at_the_start(kind: str, url: str) -> None:
    with pytest.raises(ReceiverConfigError, match=r"^receivers\.out\.urls?: must be a URL") as raised:
        build(kind, {**SETTINGS[kind](url), **({"urls": [url]} if kind == "alertmanager" else {"url": url})})
    assert "s3cret" not in str(raised.value)


def test_other_client_errors_are_final_only_where_the_service_says_so(kind: str, server: Server) -> None:
    """A webhook's 401 or 404 can be repaired within the three days of the schedule."""
    final = {
        "webhook": set(),
        "alertmanager": {400},
        "slack": {400, 403, 404},
        "pagerduty": {400},
    }[kind]
    receiver = build(kind, SETTINGS[kind](server.url))
    statuses = (400, 401, 403, 404, 405, 413, 422)
    refused = {status for status in statuses if isinstance(answered(receiver, server, Answer(status)), Refused)}
    receiver.close()
    assert refused == final


def test_a_body_without_end_does_not_hold_the_thread(receiver: Receiver, server: Server) -> None:
    # more is announced than ever comes
    outcome = answered(receiver, server, Answer(200, {"content-length": "1000000"}, b"x"))
    assert outcome == Delivered()


# ------------------------------------------------------------------------------------------------ Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("999999999999999", MAX_RETRY_AFTER_S),
        (formatdate(T0_MS / 1000 + 90, usegmt=True), 90.0),
        (formatdate(T0_MS / 1000 - 90, usegmt=True), 0.0),
        (formatdate(T0_MS / 1000 + 9e6, usegmt=True), MAX_RETRY_AFTER_S),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Fri, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_has_a_limit(header: str, seconds: float | None) -> None:
    assert retry_after_s(header, T0_MS) == (seconds if seconds is None else pytest.approx(seconds))


# ------------------------------------------------------------------------------------------------ webhook


def test_a_webhook_is_signed_so_that_the_library_verifies_it(server: Server) -> None:
    receiver = build("webhook", SETTINGS["webhook"](server.url))
    document = firing(stream="kamera-ß")
    assert receiver.send(Notice.parse(document)) == Delivered()
    receiver.close()
    (request,) = server.requests
    assert Webhook(SECRET).verify(request.body, request.headers) == json.loads(document)
    assert request.headers["webhook-id"] == json.loads(document)["id"]
    assert request.headers["x-key"] == "s3cret"
    assert request.headers["user-agent"].startswith("layerwatch/")
    assert request.path == "/hook?token=s3cret"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(request.body.replace(b"drift", b"draft"), request.headers)


def test_every_try_carries_the_same_id(server: Server) -> None:
    receiver = build("webhook", SETTINGS["webhook"](server.url))
    for _ in range(2):
        receiver.send(Notice.parse(firing()))
    receiver.close()
    assert len(set(server.ids)) == 1


def test_a_webhook_without_secret_is_not_signed(server: Server) -> None:
    receiver = build("webhook", {"url": server.url})
    receiver.send(Notice.parse(firing()))
    receiver.close()
    assert "webhook-signature" not in server.requests[0].headers
    assert server.requests[0].body.decode() == firing()


@pytest.mark.parametrize("secret", ["whsec_", "whsec_no base64!", "MDEyMzQ1Njc4OWFiY2RlZg=="])
def test_a_broken_secret_is_reported_at_the_start_without_showing_it(secret: str) -> None:
    with pytest.raises(ReceiverConfigError, match=r"^receivers\.out\.secret: must be whsec_ and base64$"):
        build("webhook", {"url": "http://host/", "secret": secret})


@pytest.mark.parametrize(("name", "value"), [("X-Key", "a\nb"), ("X Key", "s3cret"), ("X-Key", "s3cret ß")])
def test_a_header_that_http_does_not_allow_is_reported_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ReceiverConfigError, match="header") as raised:
        build("webhook", {"url": "http://host/", "headers": {name: value}})
    assert "s3cret" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ Alertmanager


def alertmanager(*urls: str, **more: Any) -> Receiver:
    return build("alertmanager", {"urls": list(urls), **more})


def test_an_alert_names_itself_by_labels_and_lives_for_four_resends(server: Server) -> None:
    receiver = alertmanager(f"{server.url}/prefix/", resend_s=30)
    receiver._now_ms = receiver._steady_ms = clock = Clock(T0_MS + 15_000)  # type: ignore[attr-defined]
    receiver.send(Notice.parse(firing(labels={"severity": "page", "team-name": "a", "9": "b", "empty": ""})))
    receiver.close()
    (request,) = server.requests
    assert request.path == "/prefix/api/v2/alerts"
    (alert,) = request.json
    assert alert["labels"] == {
        "alertname": "drift",
        "monitor": "layerwatch",
        "rule": "drift",
        "stream": "cam-1",
        "severity": "page",
        "team_name": "a",
        "_9": "b",
    }
    assert (alert["startsAt"], alert["endsAt"]) == ("2026-11-24T08:20:10.000Z", "2026-11-24T08:22:15.000Z")
    assert alert["annotations"]["summary"] == "12 % of 300 images <b>& more</b>"
    assert alert["annotations"]["share"] == "at least 20 % of the images drifted (estimate 25 %)"
    assert not alert["annotations"].keys() & alert["labels"].keys()
    assert alert["generatorURL"].startswith("http://status.example/")
    assert clock() == T0_MS + 15_000


@pytest.mark.parametrize(
    ("now_s", "starts", "ends"),
    [(900, "08:20:10", "08:21:00"), (30, "08:20:10", "08:20:30"), (5, "08:20:05", "08:20:05")],
)
def test_a_resolved_alert_ends_at_its_event_time_and_never_ahead_of_the_clock(
    server: Server, now_s: int, starts: str, ends: str
) -> None:
    receiver = alertmanager(server.url)
    receiver._now_ms = receiver._steady_ms = Clock(T0_MS + 1000 * now_s)  # type: ignore[attr-defined]
    receiver.send(Notice.parse(resolved()))
    receiver.close()
    (alert,) = server.requests[0].json
    assert (alert["startsAt"][11:19], alert["endsAt"][11:19]) == (starts, ends)


def test_every_instance_gets_the_alert_and_one_is_enough(server: Server) -> None:
    with Server() as other:
        receiver = alertmanager(server.url, other.url)
        server.default = Answer(503)
        assert receiver.send(Notice.parse(firing())) == Delivered()
        other.default = Answer(400)
        assert isinstance(receiver.send(Notice.parse(firing())), Retry)
        server.default = Answer(400, body=b"bad  label")
        outcome = receiver.send(Notice.parse(firing()))
        assert isinstance(outcome, Refused)
        assert outcome.reason.endswith("answered 400 bad label")
        assert (len(server.requests), len(other.requests)) == (3, 3)
        receiver.close()


def test_several_alerts_are_sent_again_in_one_request(server: Server) -> None:
    receiver = alertmanager(server.url)
    assert isinstance(receiver, Resending)
    notices = [Notice.parse(firing(f"cam-{i}")) for i in range(3)]
    assert receiver.resend(notices) == Delivered()
    assert [len(request.json) for request in server.requests] == [3]
    server.answers = [Answer(500)]
    assert isinstance(receiver.resend(notices), Retry)
    receiver.close()


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        ({"username": "u", "password": "p"}, "Basic dTpw"),
        ({"bearer_token": "t"}, "Bearer t"),
        ({}, None),
    ],
)
def test_it_logs_in_as_configured(server: Server, settings: dict[str, str], header: str | None) -> None:
    receiver = alertmanager(server.url, **settings)
    receiver.send(Notice.parse(firing()))
    receiver.close()
    assert server.requests[0].headers.get("authorization") == header


# ------------------------------------------------------------------------------------------------ Slack


def test_a_slack_message_escapes_what_streams_and_summaries_bring(server: Server) -> None:
    receiver = build("slack", SETTINGS["slack"](server.url))
    assert receiver.send(Notice.parse(firing(stream="<!channel> & co"))) == Delivered()
    receiver.close()
    message = server.requests[0].json
    text = json.dumps(message, ensure_ascii=False)
    assert "<!channel>" not in text
    assert "[FIRING] drift on &lt;!channel&gt; &amp; co" in message["text"]
    assert "12 % of 300 images &lt;b&gt;&amp; more" in message["blocks"][0]["text"]["text"]
    assert "at least 20 % of the images drifted (estimate 25 %)" in message["blocks"][1]["fields"][0]["text"]
    assert message["blocks"][2]["elements"][0]["text"].endswith("/%3C!channel%3E &amp; co?a=1&amp;b=2|status>")


def test_a_slack_message_stays_within_its_limits(server: Server) -> None:
    receiver = build("slack", SETTINGS["slack"](server.url))
    receiver.send(Notice.parse(firing(stream="&" * 5000)))
    receiver.close()
    blocks = server.requests[0].json["blocks"]
    assert all(len(block["text"]["text"]) <= 3000 for block in blocks if "text" in block)
    assert all(len(field["text"]) <= 2000 for block in blocks for field in block.get("fields", []))
    assert all(len(element["text"]) <= 3000 for block in blocks for element in block.get("elements", []))


# ------------------------------------------------------------------------------------------------ PagerDuty


def test_pagerduty_opens_and_closes_one_incident(server: Server) -> None:
    receiver = build("pagerduty", SETTINGS["pagerduty"](server.url))
    receiver.send(Notice.parse(firing()))
    receiver.send(Notice.parse(resolved()))
    receiver.close()
    trigger, resolve = (request.json for request in server.requests)
    alert_id = json.loads(firing())["data"]["alert_id"]
    assert resolve == {"routing_key": "s3cret", "event_action": "resolve", "dedup_key": alert_id}
    assert (trigger["routing_key"], trigger["event_action"], trigger["dedup_key"]) == ("s3cret", "trigger", alert_id)
    assert trigger["payload"]["summary"].startswith("[FIRING] drift on cam-1: 12 %")
    assert (trigger["payload"]["source"], trigger["payload"]["timestamp"]) == ("cam-1", "2026-11-24T08:20:10.000Z")
    assert trigger["payload"]["custom_details"]["triage"] == "sensor"


@pytest.mark.parametrize(
    ("label", "severity"),
    [("page", "critical"), ("ticket", "warning"), ("info", "info"), ("whatever", "error"), (None, "error")],
)
def test_the_label_severity_becomes_pagerdutys(server: Server, label: str | None, severity: str) -> None:
    receiver = build("pagerduty", SETTINGS["pagerduty"](server.url))
    receiver.send(Notice.parse(firing(labels={"severity": label} if label else {})))
    receiver.close()
    assert server.requests[0].json["payload"]["severity"] == severity


def test_a_summary_too_long_for_pagerduty_is_cut(server: Server) -> None:
    receiver = build("pagerduty", SETTINGS["pagerduty"](server.url))
    receiver.send(Notice.parse(firing(stream="s" * 3000)))
    receiver.send(Notice.parse(a_test_document("layerwatch", T0_MS)))
    receiver.close()
    assert len(server.requests[0].json["payload"]["summary"]) == 1024
    assert server.requests[1].json["payload"]["severity"] == "info"


# ------------------------------------------------------------------------------------------------ Kafka topic


def test_a_record_is_a_cloud_event_keyed_by_its_alert() -> None:
    topic = Topic()
    receiver = build("kafka", {"topic": "alerts"}, topic)
    document = firing(stream="kamera-ß")
    assert receiver.send(Notice.parse(document)) == Delivered()
    receiver.close()
    assert topic.closed
    (record,) = topic.records
    fields = json.loads(document)
    assert record["topic"] == "alerts"
    assert record["value"] == document.encode()
    assert record["key"] == fields["data"]["alert_id"].encode()
    assert record["timestamp_ms"] == T0_MS + 10_000
    assert dict(record["headers"]) == {
        "ce_specversion": b"1.0",
        "ce_id": fields["id"].encode(),
        "ce_type": b"layerwatch.alert.firing",
        "ce_source": b"/layerwatch/layerwatch",
        "ce_subject": "kamera-ß".encode(),
        "ce_time": b"2026-11-24T08:20:10.000Z",
        "content-type": b"application/json",
    }


@pytest.mark.parametrize("error", [SourceError("away"), FatalSourceError("no such topic")])
def test_a_record_that_is_not_acknowledged_is_tried_again(error: Exception) -> None:
    topic = Topic()
    topic.error = error
    receiver = build("kafka", {}, topic)
    assert receiver.send(Notice.parse(firing())) == Retry(str(error))
    assert receiver.send(Notice.parse(firing())) == Delivered()


@pytest.mark.kafka
def test_a_real_broker_gets_the_record_and_a_missing_topic_is_tried_again(kafka_broker: Cluster) -> None:
    settings = Config(kafka=KafkaSettings(bootstrap_servers=(kafka_broker.bootstrap_servers,), request_timeout_s=2.0))
    receiver = build("kafka", {"topic": "notify-alerts"}, open_producer(settings.source_settings()))
    assert isinstance(receiver.send(Notice.parse(firing())), Retry)
    kafka_broker.create_topic("notify-alerts")
    assert receiver.send(Notice.parse(firing())) == Delivered()
    receiver.close()
    consumer = KafkaConsumer(
        "notify-alerts", bootstrap_servers=kafka_broker.bootstrap_servers, auto_offset_reset="earliest"
    )
    records: list[Any] = []
    eventually(lambda: records.extend(chain.from_iterable(consumer.poll(200).values())) or records, 20)
    consumer.close()
    assert [record.value.decode() for record in records] == [firing()]
    assert dict(records[0].headers)["ce_id"] == json.loads(firing())["id"].encode()
    assert records[0].timestamp == T0_MS + 10_000
