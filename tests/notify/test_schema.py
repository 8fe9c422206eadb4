"""Every document that can reach a receiver follows docs/alert.schema.json; others do not pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from monitor.core.alert_document import test_document as a_test_document
from monitor.notify.receivers.notice import Notice
from monitor.notify.self_alerts import delivery_alert, delivery_alert_end
from tests.notify.parts import T0_MS, alert_of, document_of, firing, resolved

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "alert.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
FAILING = delivery_alert("layerwatch", "hook", T0_MS, T0_MS + 5, 10, "answered 500")
DOCUMENTS = {
    "firing": firing(),
    "resolved": resolved(),
    "test": a_test_document("layerwatch", T0_MS),
    "delivery fails": FAILING,
    "delivery works again": delivery_alert_end(FAILING, "hook", T0_MS + 9),
}


def test_the_schema_is_one_itself() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_a_document_and_its_title_name_the_condition_where_there_is_one() -> None:
    document = document_of(replace(alert_of("cam-1", "drift"), condition="night"))
    VALIDATOR.validate(tree := json.loads(document))
    assert tree["data"]["condition"] == "night"
    assert Notice.parse(document).title == "[FIRING] drift on cam-1 (night)"
    assert "condition" not in json.loads(firing())["data"]
    assert Notice.parse(firing()).title == "[FIRING] drift on cam-1"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_sent_follows_the_schema(name: str) -> None:
    VALIDATOR.validate(json.loads(DOCUMENTS[name]))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"type": "alert.pending"},
        {"type": "alert.resolved"},
        {"timestamp": "2026-11-24 08:20:00"},
        {"schema": "layerwatch.alert/2"},
        {"data": {}},
    ],
)
def test_what_breaks_the_contract_does_not_pass(change: dict[str, object]) -> None:
    assert not VALIDATOR.is_valid(json.loads(firing()) | change)


def test_the_alert_about_a_receiver_ends_as_the_one_that_began() -> None:
    began, ended = json.loads(FAILING), json.loads(DOCUMENTS["delivery works again"])
    assert began["data"]["alert_id"] == ended["data"]["alert_id"]
    assert (began["type"], ended["type"]) == ("alert.firing", "alert.resolved")
    assert began["data"]["stream"] == "hook"
    assert "10 tries" in began["data"]["summary"]
