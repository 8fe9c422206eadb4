import json
from pathlib import Path

import jsonschema
import pytest

from detectors.images.regions import Region
from monitor.core.alert_document import (
    About,
    Evidence,
    MovedSignal,
    alert_document,
    dashboard_url,
    rfc3339,
    stream_url,
)
from monitor.core.alert_document import test_document as document_for_tests
from monitor.core.types import Alert, AlertPhase, Exemplar, Verdict

AT_MS = 1_795_508_410_000  # 2026-11-24T08:20:10Z
VERDICT = Verdict(True, 0.31, 0.24, 0.1, 300, "12 % of 300 images", (0.2, 0.25, 1 / 3), "ood: more images")
ABOUT = About("layerwatch", "drift", "rate", {"team": "b", "severity": "page"}, "http://m/streams/cam-1", "")


def firing() -> Alert:
    return Alert("drift", "cam-1", AlertPhase.FIRING, "9f0c6a1b2c3d4e5f", AT_MS - 10_000, AT_MS, verdict=VERDICT)


def exemplar(name: str, p: float) -> Exemplar:
    return Exemplar(name, "cam-1", AT_MS - 1, AT_MS - 10_000, p, (p,), b"jpeg")


SCHEMA = Path(__file__).parents[2] / "docs" / "alert.schema.json"
MOVED = MovedSignal("layer3", True, 0.41234567, 0.35, "low", (1, 2, 3, 4, 5, 6, 7, 8, 9))


def test_a_firing_alert_says_what_moved_since_when_and_shows_its_worst_images() -> None:
    alert = firing()
    exemplars = [exemplar(f"images/0/{i}", 0.001 * (i + 1)) for i in range(20)][::-1]
    text = alert_document(ABOUT, alert, Evidence([MOVED] * 9, "content", exemplars))
    assert "\n" not in text
    document = json.loads(text)
    assert document["schema"] == "layerwatch.alert/1"
    assert document["type"] == "alert.firing"
    assert document["id"] == "9f0c6a1b2c3d4e5f-firing"
    assert document["timestamp"] == "2026-11-24T08:20:10.000Z"
    data = document["data"]
    assert data["since"] == "2026-11-24T08:20:00.000Z"
    assert data["fired_at"] == "2026-11-24T08:20:10.000Z"
    assert data["resolved_at"] is None
    assert list(data["labels"]) == ["severity", "team"]
    assert data["severity"] == {"lower": 0.2, "estimate": 0.25, "upper": 0.333333}
    assert (data["value"], data["bound"], data["threshold"], data["images"]) == (0.31, 0.24, 0.1, 300)
    assert (data["phase"], data["triage"], data["kind"], data["stream"]) == ("firing", "content", "rate", "cam-1")
    assert data["links"] == {"status": "http://m/streams/cam-1", "dashboard": ""}
    assert len(data["signals"]) == 8
    assert data["signals"][0]["effect"] == 0.412346
    assert data["signals"][0]["histogram"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [e["id"] for e in data["exemplars"]] == [f"images/0/{i}" for i in range(12)]
    assert data["exemplars"][0] == {"id": "images/0/0", "event_time": "2026-11-24T08:20:09.999Z", "p_value": 0.001}


def test_an_image_whose_heat_map_is_known_says_where_it_is_unusual() -> None:
    local, whole, unknown = (exemplar(name, 0.001 * (i + 1)) for i, name in enumerate("abc"))
    regions = {local.name: (Region(0.1234567, 0.5, 0.25, 0.125, 3.0), Region(0, 0, 0.1, 0.1, 1.1)), whole.name: ()}
    document = json.loads(
        alert_document(ABOUT, firing(), Evidence([MOVED], "content", [local, whole, unknown], regions))
    )
    listed = {entry["id"]: entry.get("boxes") for entry in document["data"]["exemplars"]}
    assert listed == {
        "a": [
            {"x": 0.123457, "y": 0.5, "width": 0.25, "height": 0.125},
            {"x": 0.0, "y": 0.0, "width": 0.1, "height": 0.1},
        ],
        "b": [],
        "c": None,
    }
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))


def test_the_same_transition_gives_the_same_text_whatever_the_order_of_what_went_in() -> None:
    alert = firing()
    images = [exemplar("a", 0.002), exemplar("b", 0.001)]
    turned = About(ABOUT.monitor, ABOUT.rule, ABOUT.kind, dict(reversed(list(ABOUT.labels.items()))), ABOUT.status_url)
    first = alert_document(ABOUT, alert, Evidence((), None, images))
    assert alert_document(turned, alert, Evidence((), None, images[::-1])) == first


def test_a_resolved_alert_keeps_its_id_and_says_when_it_ended() -> None:
    alert = firing()
    ended = Alert("drift", "cam-1", AlertPhase.RESOLVED, alert.id, alert.since_ms, alert.fired_ms, AT_MS, AT_MS + 5)
    document = json.loads(alert_document(ABOUT, ended))
    assert (document["type"], document["id"]) == ("alert.resolved", "9f0c6a1b2c3d4e5f-resolved")
    assert document["data"]["alert_id"] == alert.id
    assert document["data"]["resolved_at"] == "2026-11-24T08:20:10.005Z"
    assert document["data"]["severity"] is None


def test_a_pending_alert_has_no_document() -> None:
    with pytest.raises(ValueError, match="pending"):
        alert_document(ABOUT, Alert("drift", "cam-1", AlertPhase.PENDING, "id", AT_MS))


def test_a_test_document_has_every_field_of_a_real_one_and_an_id_of_its_own() -> None:
    real, tried = json.loads(alert_document(ABOUT, firing())), json.loads(document_for_tests("layerwatch", AT_MS))
    assert tried["type"] == "alert.test"
    assert tried.keys() == real.keys()
    assert tried["data"].keys() == real["data"].keys()
    assert tried["id"] != json.loads(document_for_tests("layerwatch", AT_MS + 1))["id"]


def test_every_kind_of_document_is_valid_by_the_published_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    evidence = Evidence([MOVED], "sensor", [exemplar("a", 0.01)])
    for text in (alert_document(ABOUT, firing(), evidence), document_for_tests("layerwatch", AT_MS)):
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


def test_times_are_utc_with_milliseconds_and_names_are_quoted_in_links() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(AT_MS + 7) == "2026-11-24T08:20:10.007Z"
    assert (
        stream_url("https://watch.example/", "line 2/cam ä") == "https://watch.example/streams/line%202%2Fcam%20%C3%A4"
    )
    assert stream_url("", "cam") == ""
    assert stream_url("https://ops.example/watch", "..") == "https://ops.example/watch/streams/?name=.."


def test_the_link_to_the_dashboard_names_the_stream() -> None:
    url = "https://grafana.example/d/streams?var-stream={stream}&var-range=${__range}"
    expected = "https://grafana.example/d/streams?var-stream=line%202%2F%7Bcam%7D%26ä&var-range=${__range}"
    assert dashboard_url(url, "line 2/{cam}&ä") == expected.replace("ä", "%C3%A4")
    assert dashboard_url("", "cam") == ""
