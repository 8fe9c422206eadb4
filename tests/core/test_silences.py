"""A silence hides what all of its matchers match, while it is in force, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from monitor.core.alert_document import test_document as a_test_document
from monitor.core.silences import Silence, from_json, silenced, to_json
from tests.notify.parts import T0_MS, firing, resolved

DOCUMENT = json.loads(firing("cam-1", "drift", {"team": "line-a"}))


def silence(**matchers: str) -> Silence:
    return Silence("s", matchers, T0_MS, T0_MS + 1000, "ana", "belt is cleaned")


@pytest.mark.parametrize(
    ("matchers", "hidden"),
    [
        ({"stream": "cam-1"}, True),
        ({"stream": "cam-?"}, True),
        ({"stream": "*"}, True),
        ({"stream": "CAM-1"}, False),
        ({"stream": "cam"}, False),
        ({"rule": "drift"}, True),
        ({"rule": "dr*", "stream": "cam-2"}, False),
        ({"rule": "dr*", "stream": "cam-[12]"}, True),
        ({"team": "line-*"}, True),
        ({"team": "line-b"}, False),
        ({"site": "x"}, False),
        ({"site": "*"}, True),
    ],
)
def test_all_matchers_must_match(matchers: dict[str, str], hidden: bool) -> None:
    assert (silenced(DOCUMENT, [silence(**matchers)], T0_MS) is not None) == hidden


@pytest.mark.parametrize(("now_ms", "hidden"), [(T0_MS - 1, False), (T0_MS, True), (T0_MS + 999, True)])
def test_it_hides_from_its_start_to_its_end(now_ms: int, hidden: bool) -> None:
    one = silence(stream="*")
    assert silenced(DOCUMENT, [silence(stream="no"), one], now_ms) is (one if hidden else None)
    assert silenced(DOCUMENT, [one], T0_MS + 1000) is None


def test_resolved_alerts_are_hidden_too_and_test_alerts_never() -> None:
    hides_all = [silence(stream="*")]
    assert silenced(json.loads(resolved()), hides_all, T0_MS) is not None
    assert silenced(json.loads(a_test_document("layerwatch", T0_MS)), hides_all, T0_MS) is None


def test_it_reads_back_as_it_was_written() -> None:
    assert from_json(to_json(silence(stream="kamera-ß", rule="*"))) == silence(stream="kamera-ß", rule="*")


@pytest.mark.parametrize("text", ["2026-11-24T10:20:00+02:00", "2026-11-24T08:20:00"])
def test_times_of_any_offset_are_read_and_are_utc_without_one(text: str) -> None:
    fields = json.loads(to_json(silence(stream="*"))) | {"starts": text}
    assert from_json(json.dumps(fields)).starts_ms == T0_MS


@pytest.mark.parametrize(
    "change",
    [{"matchers": {}}, {"matchers": None}, {"starts": "now"}, {"ends": "tomorrow"}, {"starts": None}],
)
def test_what_is_no_silence_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(json.dumps(json.loads(to_json(silence(stream="*"))) | change))
