"""Every answer of the API is what its OpenAPI document says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest
from pydantic import SecretStr

from monitor.__main__ import main
from monitor.store.private_server import PrivateRedis
from monitor.web.api import ENDPOINTS
from monitor.web.openapi import document
from monitor.web.settings import WebSettings
from tests.plain_http import NO_AUTHORITIES
from tests.web.fleet import HOSTILE, STREAMS, Fleet, firing, served

DOCUMENT = document(ENDPOINTS)


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Iterator[httpx.Client]:
    """With the right to write."""
    with served(fleet.store, WebSettings(port=0, token=SecretStr("secret"))) as address:
        base = f"{address}/api/v1"
        with httpx.Client(base_url=base, verify=NO_AUTHORITIES, headers={"Authorization": "Bearer secret"}) as client:
            yield client


def check(answer: httpx.Response, path: str, method: str = "get") -> Any:
    """The body, which is what the document says of that path and status."""
    described = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
    if "content" not in described:
        assert answer.content == b""
        return None
    ((kind, content),) = described["content"].items()
    assert answer.headers["content-type"].partition(";")[0] == kind
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    body = answer.json() if kind == "application/json" else answer.text
    jsonschema.Draft202012Validator(schema).validate(body)
    return body


def test_the_document_itself_is_served_and_its_schemas_are_schemas(api: httpx.Client) -> None:
    assert api.get("/openapi.json").json() == DOCUMENT
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_all_streams_are_listed_with_their_counts(api: httpx.Client) -> None:
    body = check(api.get("/streams"), "/streams")
    assert sorted(body["streams"]) == sorted(STREAMS)
    calm = body["streams"]["calm"]
    assert (calm["applied"], calm["rejected"], calm["rejected_by_reason"]) == (1800, 1, {"not-an-image": 1})
    assert body["streams"][HOSTILE]["alerts"] == ["drift"]
    assert body["streams"][HOSTILE]["ood_share"] > 0.4
    assert calm["ood_share"] < 0.2


def test_streams_come_in_pages_that_hold_each_once(api: httpx.Client) -> None:
    found: list[str] = []
    asked: dict[str, str | int] = {"limit": 2}
    while True:
        body = check(api.get("/streams", params=asked), "/streams")
        assert len(body["streams"]) <= 2
        assert body["total"] == len(STREAMS)
        found += body["streams"]
        if body["next"] is None:
            break
        asked["after"] = body["next"]
    assert found == sorted(STREAMS)
    for wrong in ("0", "-1", "x", "²"):
        check(api.get("/streams", params={"limit": wrong}), "/streams")


@pytest.mark.parametrize("stream", STREAMS)
def test_one_stream_has_its_line_its_signals_and_its_worst_images(api: httpx.Client, stream: str) -> None:
    plain = stream.strip(".")
    path = f"/streams/{quote(stream, safe='')}" if plain else f"/streams/?name={quote(stream)}"
    body = check(api.get(path), "/streams/{name}")
    assert body["stream"] == stream
    assert sum(point["images"] for point in body["history"]) == body["applied"] == 1800
    # independent images: also where an alert that is over changed their counts, and no word about it during one
    assert body["dependence"] is None if stream == HOSTILE else not body["dependence"]["clear"]
    if stream == HOSTILE:
        assert body["evidence"]["triage"] == "sensor"
        assert len(body["exemplars"]) == 12
        assert body["exemplars"][0]["thumbnail"].startswith("data:image/jpeg;base64,/9j/")
        assert body["exemplars"][0]["picture"].startswith("/pictures/")
        assert {len(exemplar["boxes"]) for exemplar in body["exemplars"]} == {0, 1, 2}
        assert {exemplar["heat"][:22] for exemplar in body["exemplars"]} == {"data:image/png;base64,"}
        assert {exemplar["heat"] for exemplar in body["typical"]} == {None}
        assert body["evidence"]["images"] == 20 * 30
        assert all(point["share"] > point["band"][1] for point in body["history"][41:])


def test_the_time_line_is_as_long_as_asked_for(api: httpx.Client) -> None:
    path = f"/streams/{quote(HOSTILE, safe='')}"
    body = check(api.get(path, params={"span": "7d"}), "/streams/{name}")
    assert sum(point["images"] for point in body["history"]) == 1800
    assert body["evidence"] == check(api.get(path), "/streams/{name}")["evidence"]
    refused = api.get(path, params={"span": "8d"})
    assert refused.status_code == 422
    assert refused.json()["error"] == "span: one of 1h, 6h, 1d, 7d, 30d, 90d"


def test_a_stream_is_shown_at_the_time_of_an_alert(api: httpx.Client) -> None:
    alert = firing("fog", STREAMS[2], 10)
    body = check(api.get(f"/streams/{quote(STREAMS[2], safe='')}", params={"alert": alert.id}), "/streams/{name}")
    assert body["evidence"]["since"] == body["history"][10]["start"]
    assert len(body["exemplars"]) == 10
    assert {exemplar["boxes"] for exemplar in body["exemplars"]} == {None}  # its profile has no heat maps
    (known,) = body["known_alerts"]
    assert (known["phase"], known["rule"], known["kind"]) == ("resolved", "fog", "rate")


def test_alerts_profile_and_health(api: httpx.Client) -> None:
    alerts = check(api.get("/alerts"), "/alerts")["alerts"]
    assert [(a["rule"], a["stream"], a["phase"]) for a in alerts] == [
        ("drift", HOSTILE, "firing"),
        ("fog", STREAMS[2], "resolved"),
    ]
    assert list(check(api.get("/profile"), "/profile")["profiles"]) == ["fp"]
    health = check(api.get("/health"), "/health")
    assert [p["next_offset"] for p in health["partitions"]] == [60, 60]
    assert health["ready"] is True


def test_a_silence_is_made_listed_and_ended(api: httpx.Client, fleet: Fleet) -> None:
    wanted = {"matchers": {"severity": "pag*"}, "duration_s": 3600, "author": "me", "comment": "known"}
    made = check(api.post("/silences", json=wanted), "/silences", "post")
    assert check(api.get("/silences"), "/silences")["silences"] == [made]
    by_rule = {a["rule"]: a["silenced_by"] for a in api.get("/alerts").json()["alerts"]}
    assert by_rule == {"drift": made["id"], "fog": None}
    check(api.delete(f"/silences/{made['id']}"), "/silences/{id}", "delete")
    assert check(api.get("/silences"), "/silences")["silences"] == []
    assert check(api.delete(f"/silences/{made['id']}"), "/silences/{id}", "delete")["error"] == "no such silence"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"matchers": {}, "duration_s": 3600},
        {"matchers": {"stream": "*"}},
        {"matchers": {"stream": "*"}, "duration_s": 0},
        {"matchers": {"stream": ""}, "duration_s": 3600},
        {"matchers": {"stream": "*"}, "duration_s": 3600, "ends": "never"},
        {"matchers": {"stream": "*"}, "duration_s": 3600, "comment": "x" * 501},
        [],
    ],
)
def test_what_is_no_silence_is_refused_with_a_reason(api: httpx.Client, body: Any) -> None:
    answer = api.post("/silences", json=body)
    assert answer.status_code == 422
    assert check(answer, "/silences", "post")["error"]


def test_errors_are_json_as_described(api: httpx.Client) -> None:
    assert check(api.get("/streams/nobody"), "/streams/{name}") == {"error": "no such stream"}
    assert api.get("/nothing").json() == {"error": "no such path"}
    check(api.get("/streams", headers={"Authorization": "Bearer wrong"}), "/streams")
    check(api.post("/silences", content=b"{}"), "/silences", "post")


def test_the_command_line_says_the_same(
    api: httpx.Client, redis_server: PrivateRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"monitor: pages\nredis: {{url: '{redis_server.url}'}}\nbuckets: {{lateness_s: 10}}\n")
    assert main(["streams", "--json", "-c", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == {"streams": api.get("/streams").json()["streams"]}
