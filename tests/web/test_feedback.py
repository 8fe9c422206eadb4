"""What people say of alerts and images: by page, API and command line; who may; what is kept and exported."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, expect
from pydantic import SecretStr

from monitor.__main__ import main
from monitor.core.alert_document import stream_path
from monitor.core.feedback import About, Feedback, as_fields, from_json
from monitor.core.types import Alert
from monitor.fleet.feedback import read_feedback
from monitor.fleet.stream_view import EXEMPLARS
from monitor.store.feedback import FEEDBACK_TTL_S
from monitor.store.private_server import PrivateRedis
from monitor.web.api import ENDPOINTS
from monitor.web.openapi import document
from monitor.web.settings import WebSettings
from tests.plain_http import NO_AUTHORITIES
from tests.web.fleet import BUCKETS, HOSTILE, LARGE_PX, Fleet, firing, served

ALERT = firing("drift", HOSTILE).id
PAGE = stream_path(HOSTILE, ALERT)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def locked(fleet: Fleet) -> Iterator[str]:
    settings = WebSettings(port=0, token=SecretStr("secret"), username="ops", password=SecretStr("word"))
    with served(fleet.store, settings) as address:
        yield address


@pytest.fixture
def inside(locked: str) -> Iterator[httpx.Client]:
    """Somebody who knows the password."""
    with httpx.Client(base_url=locked, verify=NO_AUTHORITIES, auth=("ops", "word")) as client:
        yield client


@pytest.fixture(autouse=True)
def clean(fleet: Fleet) -> Iterator[None]:
    """No answer outlives its test."""
    yield
    keys = fleet.store.feedback._keys
    kept = [(name, *about) for name in ("feedback", "feedback-pictures") for about in ((), (ALERT,))]
    keys.connection.read_many([("DEL", keys.key(*name)) for name in kept])


@pytest.fixture
def command(redis_server: PrivateRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `layerwatch feedback`: its status, stdout and stderr."""
    config = tmp_path / "config.yaml"
    config.write_text(f"monitor: pages\nredis: {{url: '{redis_server.url}'}}\nbuckets: {{lateness_s: 10}}\n")

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["feedback", *words, "-c", str(config)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def form_of(client: httpx.Client) -> dict[str, str]:
    token = client.get(PAGE).text.split('name="form" value="')[1].split('"')[0]
    return {"form": token, "alert_id": ALERT}


@contextmanager
def expired_evidence(fleet: Fleet) -> Iterator[None]:
    """The images of the evidence are gone, as they are after a week, and come back."""
    client = fleet.store._connection.client
    keys = [key for kind in ("ex", "li", "lp", "lm") for key in client.scan_iter(f"{{lw:pages:*:{kind}:*")]
    gone = {key: client.dump(key) for key in keys}
    client.delete(*keys)
    yield
    for key, dump in gone.items():
        client.restore(key, 0, dump)


def check(answer: httpx.Response, method: str) -> Any:
    """The body, which is what the OpenAPI document says."""
    described = document(ENDPOINTS)
    content = described["paths"]["/feedback"][method]["responses"][str(answer.status_code)]["content"]
    schema = {**content["application/json"]["schema"], "components": described["components"]}
    jsonschema.Draft202012Validator(schema).validate(answer.json())
    return answer.json()


def test_it_is_said_on_the_page_by_the_user_who_logged_in_and_shown_with_what_was_said_before(
    inside: httpx.Client, fleet: Fleet
) -> None:
    assert "Nobody has said what drift was" in inside.get(PAGE).text
    fields = {**form_of(inside), "comment": "<b>lamp</b>", "author": "somebody else"}
    answer = inside.post("/alerts/feedback", data={**fields, "kind": "expected"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}#feedback")
    inside.post("/alerts/feedback", data={**fields, "kind": "fault"})
    page = inside.get(PAGE).text
    assert "<b>Real fault</b>: said of drift by <bdi>ops</bdi>" in page
    assert "before: Expected change" in page
    assert "&lt;b&gt;lamp&lt;/b&gt;" in page
    first, second = read_feedback(fleet.store)
    assert [(a.kind, a.before, a.author, a.about.rule) for a in (first, second)] == [
        ("expected", None, "ops", "drift"),
        ("fault", "expected", "ops", "drift"),
    ]
    inside.post("/alerts/feedback", data={**fields, "kind": "withdrawn"})
    assert "Nobody has said what drift was" in inside.get(PAGE).text
    assert len(read_feedback(fleet.store)) == 3


def test_forms_of_others_and_without_a_token_change_nothing(inside: httpx.Client, site: str, fleet: Fleet) -> None:
    ours = {**form_of(inside), "kind": "fault"}
    json_body = {"alert_id": ALERT, "kind": "fault"}
    assert inside.post("/alerts/feedback", data={**ours, "form": "0" * 64}).status_code == 403
    for header in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.test"}):
        assert inside.post("/alerts/feedback", data=ours, headers=header).status_code == 403
        assert inside.post("/api/v1/feedback", json=json_body, headers=header).status_code == 403
    assert httpx.post(f"{site}/alerts/feedback", data=ours, verify=NO_AUTHORITIES).status_code == 403
    assert httpx.post(f"{site}/api/v1/feedback", json=json_body, verify=NO_AUTHORITIES).status_code == 403
    assert inside.post("/alerts/feedback", data={**ours, "kind": "maybe"}).status_code == 422
    assert inside.post("/alerts/feedback", data={**ours, "alert_id": "gone"}).status_code == 422
    assert read_feedback(fleet.store) == []


def test_the_api_takes_and_lists_what_the_document_says(inside: httpx.Client) -> None:
    shown = inside.get(f"/api/v1{PAGE}").json()["exemplars"]
    whole = check(inside.post("/api/v1/feedback", json={"alert_id": ALERT, "kind": "expected"}), "post")
    image = {"alert_id": ALERT, "kind": "fault", "image": shown[0]["id"], "comment": "scratch"}
    one = check(inside.post("/api/v1/feedback", json=image), "post")
    assert (whole["image"], one["image"], one["author"]) == (None, shown[0]["id"], "ops")
    assert check(inside.get("/api/v1/feedback"), "get") == {"feedback": [whole, one]}
    for wrong in ({"image": "never"}, {"alert_id": "gone"}, {"kind": "maybe"}, {"more": 1}):
        refused = inside.post("/api/v1/feedback", json={**image, **wrong})
        assert refused.status_code == 422
        assert next(iter(wrong)) in check(refused, "post")["error"]


def test_it_outlives_the_alert_and_is_exported(fleet: Fleet, command: Command) -> None:
    fleet.decide(firing("fog", "calm", BUCKETS - 1))
    alert_id = firing("fog", "calm", BUCKETS - 1).id
    status, out, _ = command("give", alert_id, "fault", "--author", "me", "--comment", "dust")
    assert status == 0
    fleet.decide(Alert("fog", "calm"))
    status, exported, _ = command("export")
    assert (status, exported) == (0, out)
    fields = json.loads(exported)
    assert [fields[name] for name in ("kind", "author", "comment", "stream")] == ["fault", "me", "dust", "calm"]
    keys = fleet.store.feedback._keys
    for key in (keys.key("feedback"), keys.key("feedback", alert_id)):
        assert FEEDBACK_TTL_S - 60 < keys.connection.read("TTL", key) <= FEEDBACK_TTL_S
    status, _, error = command("give", alert_id, "expected")
    assert status != 0
    assert error.startswith("layerwatch feedback: alert_id: no such alert")
    keys.connection.read_many([("DEL", keys.key("feedback", alert_id))])
    assert fleet.store.feedback.all() == []
    assert keys.connection.read("EXISTS", keys.key("feedback")) == 0


def test_an_answer_that_comes_after_its_alert_was_read_without_any_stays_in_the_list(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fleet.store.feedback
    keys = store._keys
    first = Feedback("1", About(ALERT, "drift", HOSTILE, 0, 1), "fault", "ops", "", 0)
    store.add(first)
    keys.connection.read_many([("DEL", keys.key("feedback", ALERT))])  # expired
    of = store.of

    def read_then_answered(alert_id: str) -> list[str]:
        found = of(alert_id)
        store.add(replace(first, id="2"))
        return found

    monkeypatch.setattr(store, "of", read_then_answered)
    assert store.all() == []
    monkeypatch.undo()
    assert [from_json(text).id for text in store.all()] == ["2"]


def test_the_pictures_of_what_was_said_are_written_and_thumbnails_are_named(
    fleet: Fleet, inside: httpx.Client, command: Command, tmp_path: Path
) -> None:
    shown = [exemplar["id"] for exemplar in inside.get(f"/api/v1{PAGE}").json()["exemplars"]]
    for body in ({"kind": "fault"}, {"kind": "expected", "image": shown[0]}):
        inside.post("/api/v1/feedback", json={"alert_id": ALERT, **body})
    written = {}
    for kind in ("fault", "expected"):
        status, out, err = command("images", kind, "-o", str(tmp_path / kind))
        assert status == 0
        written[kind] = [json.loads(line) for line in (tmp_path / kind / "images.jsonl").read_text().splitlines()]
        thumbnails = sum(line["thumbnail"] for line in written[kind])
        assert f"{len(written[kind])} pictures, {thumbnails} of them thumbnails" in out
        assert err.startswith("warning: a thumbnail has fewer pixels") == bool(thumbnails)
        for line in written[kind]:
            picture = Image.open(io.BytesIO((tmp_path / kind / line["file"]).read_bytes()))
            assert max(picture.size) == (48 if line["thumbnail"] else LARGE_PX)
            assert line["feedback"]["kind"] == kind
    assert [line["image"] for line in written["expected"]] == [shown[0]]
    assert shown[0] not in {line["image"] for line in written["fault"]}
    assert set(shown[1:]) <= {line["image"] for line in written["fault"]}
    assert all(line["feedback"]["alert_id"] == ALERT for line in written["fault"])


def test_labelled_faults_are_outlier_sets_of_that_name(
    fleet: Fleet, inside: httpx.Client, command: Command, tmp_path: Path
) -> None:
    shown = [exemplar["id"] for exemplar in inside.get(f"/api/v1{PAGE}").json()["exemplars"]]
    inside.post("/api/v1/feedback", json={"alert_id": ALERT, "kind": "fault", "label": "scratches"})
    status, out, _ = command("give", ALERT, "fault", "--image", shown[0], "--label", "drop")
    assert (status, json.loads(out)["label"]) == (0, "drop")
    assert inside.get("/api/v1/feedback").json()["feedback"][0]["label"] == "scratches"
    assert "as <b>scratches</b>" in inside.get(PAGE).text
    status, out, _ = command("images", "fault", "-o", str(tmp_path / "faults"))
    lines = [json.loads(line) for line in (tmp_path / "faults" / "images.jsonl").read_text().splitlines()]
    by_label = {
        label: {x["image"] for x in lines if x["feedback"]["label"] == label} for label in ("drop", "scratches")
    }
    assert by_label["drop"] == {shown[0]}
    assert by_label["scratches"] >= set(shown[1:])
    assert all((tmp_path / "faults" / line["feedback"]["label"] / Path(line["file"]).name).is_file() for line in lines)
    assert f"--ood drop={tmp_path}/faults/drop --ood scratches={tmp_path}/faults/scratches" in out
    for label in ("../up", ".hidden", "a" * 64, "a b"):
        body = {"alert_id": ALERT, "kind": "fault", "label": label}
        assert inside.post("/api/v1/feedback", json=body).status_code == 422
        assert command("give", ALERT, "fault", "--label", label)[0] == 1
    fields = as_fields(read_feedback(fleet.store)[0])
    del fields["label"]  # as it was written before there were labels
    assert from_json(json.dumps(fields)).label == ""


def test_the_pictures_of_what_was_said_are_there_when_the_evidence_has_expired(
    fleet: Fleet, inside: httpx.Client, command: Command, tmp_path: Path
) -> None:
    def written() -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for kind in ("fault", "expected"):
            folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
            assert command("images", kind, "-o", str(folder))[0] == 0
            lines = map(json.loads, (folder / "images.jsonl").read_text().splitlines())
            found[kind] = {line["image"]: (folder / line["file"]).read_bytes() for line in lines}
        return found

    def say(kind: str, image: str = "") -> None:
        body = {"alert_id": ALERT, "kind": kind, "image": image}
        assert inside.post("/api/v1/feedback", json=body).status_code == 201

    shown = inside.get(f"/api/v1{PAGE}").json()["exemplars"]
    ids = [exemplar["id"] for exemplar in shown]
    say("fault")
    say("expected", ids[0])
    before = written()
    assert (set(before["fault"]), set(before["expected"])) == ({*ids[1:]}, {ids[0]})
    assert len(ids) == EXEMPLARS
    with expired_evidence(fleet):
        assert inside.get(f"/api/v1{PAGE}").json()["exemplars"] == []
        assert written() == before
        say("expected")  # of the alert, whose pictures of before stay
        assert set(written()["expected"]) == {*ids}
        say("withdrawn")
        assert written() == {"fault": {}, "expected": before["expected"]}
        keys = fleet.store.feedback._keys
        keys.connection.read("DEL", keys.key("feedback-pictures", ALERT))
        assert written() == {"fault": {}, "expected": {}}
    # as after an answer that a version of before took: from the evidence, while it lasts
    assert written() == {"fault": {}, "expected": before["expected"]}


def test_a_person_says_it_of_an_alert_and_of_an_image(fleet: Fleet, browser: Browser) -> None:
    context = browser.new_context(http_credentials={"username": "ops", "password": "secret"})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    with served(fleet.store, WebSettings(port=0, token=SecretStr("secret"))) as address:
        page.goto(address + PAGE)
        feedback = page.locator("#feedback")
        expect(feedback).not_to_be_in_viewport()
        expect(page.locator("#pictures ~ #feedback")).to_have_count(1)  # who answers has seen them
        page.get_by_role("link", name="say what it was").click()
        expect(feedback.get_by_label("Why")).to_be_in_viewport()
        feedback.get_by_label("Why").fill("a new lamp")
        feedback.get_by_role("button", name="Expected change").click()
        expect(feedback.get_by_role("status")).to_contain_text("Expected change: said of drift by ops")
        expect(feedback.get_by_text("a new lamp")).to_be_visible()
        image = page.locator("#pictures .judged").first
        image.get_by_role("button", name="Real fault").click()
        expect(page.locator("#pictures .judged").first.locator(".tag")).to_have_text("Real fault (ops)")
        violations = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
        page.locator("#pictures .judged").first.get_by_role("button", name="Withdraw").click()
        expect(page.locator("#pictures .judged .tag")).to_have_count(0)
        feedback.get_by_role("button", name="Withdraw").click()
        expect(feedback.get_by_role("status")).to_contain_text("Nobody has said what")
        page.goto("about:blank")
    context.close()
    assert complaints == []
    assert [a.kind for a in read_feedback(fleet.store)] == ["expected", "fault", "withdrawn", "withdrawn"]
