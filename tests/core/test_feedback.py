"""What people say of alerts: the latest answer counts, all are kept, and each says what it replaced."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from monitor.core.feedback import About, Feedback, as_fields, from_json, in_force

ALERT = About("a" * 16, "drift", "line-1", 1_760_000_000_000, 1_760_000_300_000)
FIRST = Feedback("1", ALERT, "expected", "ops", "new lamp", 1_760_000_400_000)


def test_an_answer_comes_back_from_its_document_as_it_was() -> None:
    for answer in (FIRST, replace(FIRST, about=replace(ALERT, image="4711"), kind="withdrawn", before="fault")):
        assert from_json(json.dumps(as_fields(answer))) == answer


def test_the_latest_answer_about_a_subject_counts_and_a_withdrawn_one_does_not() -> None:
    image = replace(FIRST, id="2", about=replace(ALERT, image="4711"))
    later = replace(FIRST, id="3", kind="fault", at_ms=FIRST.at_ms + 1, before="expected")
    assert in_force([later, image, FIRST]) == {(ALERT.alert_id, ""): later, (ALERT.alert_id, "4711"): image}
    gone = replace(later, id="4", kind="withdrawn", at_ms=later.at_ms + 1)
    assert in_force([FIRST, later, gone]) == {}


@pytest.mark.parametrize("change", [{"kind": "maybe"}, {"before": "x"}, {"kind": None}, {"at": "soon"}, {"id": ...}])
def test_what_is_no_answer_is_refused(change: dict[str, object]) -> None:
    fields = {name: value for name, value in {**as_fields(FIRST), **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=r"."):
        from_json(json.dumps(fields))
