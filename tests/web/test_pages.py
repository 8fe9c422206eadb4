"""The pages from a real server over a real Redis."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

import detectors
from monitor.core.replicas import Replica
from monitor.core.types import AlertPhase, Delta, StreamFacts
from monitor.fleet.images import ExemplarJson
from monitor.fleet.renewal import RenewalJson, keep_renewal
from monitor.ingest.scoring.profiles import layout_of
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.web.answers import AlertJson
from monitor.web.pages import _environment
from monitor.web.settings import WebSettings
from tests.plain_http import NO_AUTHORITIES, get
from tests.vectors import fill
from tests.web.fleet import HOSTILE, LAYOUT, LOGS, NOW_MS, STREAMS, Fleet, bucket_ms, firing, refused, served

LINK = re.compile(r'<th scope="row"><a href="([^"]+)">')


def test_trouble_comes_first_and_names_are_text(site: str) -> None:
    page = get(site)
    assert page.status_code == 200
    assert "1 of 6 streams needs a look" in page.text
    first, *others = LINK.findall(page.text)
    assert first == "/streams/%3Cscript%3Ealert%28%22x%22%29%3C%2Fscript%3E%2F..%2Fa%20b"
    assert len(others) == 5
    assert page.text.count("<script") == 1  # ours
    assert "&lt;i&gt;are" in page.text
    assert "unsafe" not in page.headers["content-security-policy"]
    assert " style=" not in page.text


def test_the_overview_says_since_when_how_bad_what_it_is_and_what_to_do(site: str) -> None:
    text = unescape(re.sub(r"<[^>]+>", "", get(site).text))
    assert f"{HOSTILE}: drifting since 9 Oct 09:00:00" in text.replace("\n", "")
    assert "(3 min)" in text
    assert "At least 70 % of the images drifted (estimate 80 %)" in text
    assert "Looks like the sensor" in text
    assert "What to do: Look at the camera" in text
    assert get(site).text.count('alt="Unusual image') == 4


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_s_own_page_is_found_by_its_link(site: str, stream: str) -> None:
    with httpx.Client(base_url=site, verify=NO_AUTHORITIES) as client:
        pages = [client.get(unescape(link)) for link in LINK.findall(client.get("/").text)]
    assert all(page.status_code == 200 for page in pages)
    assert any(f"<h1><bdi>{_escaped(stream)}</bdi>" in page.text for page in pages)


def test_a_stream_s_page_shows_what_moved_and_the_worst_images(site: str) -> None:
    with httpx.Client(base_url=site, verify=NO_AUTHORITIES) as client:
        page = client.get(LINK.findall(client.get("/").text)[0])
    moved = page.text.split('id="moved"')[1].split('id="pictures"')[0]
    named = re.findall(r"<figcaption><b>([^<]+)</b>", moved)
    assert sorted(named) == ["layer 1 of the network", "layer 2 of the network", "sharpness", "the picture as a whole"]
    pictures = page.text.split('id="pictures"')[1]
    worst, typical = pictures.split("Typical images")
    assert worst.count("data:image/jpeg;base64,") == 12
    assert "&lt;b&gt;&lt;script&gt;" in pictures
    p_values = [float(p) for p in re.findall(r"<b>p = ([^<]+)</b>", worst)]
    assert p_values == sorted(p_values)
    assert typical.count("data:image/jpeg;base64,") == 6
    assert set(re.findall(r"<b>p = ([^<]+)</b>", typical)) == {"0.6"}
    assert "from before it began" in typical
    assert re.findall(r'class="id">(\d+)&lt;b&gt;', typical) == ["36", "32", "28", "24", "20", "16"]


def test_a_resolved_alert_s_page_shows_its_own_time(site: str, fleet: Fleet) -> None:
    alert = next(a for a in (firing("fog", STREAMS[2], 10),))
    page = get(f"{site}/streams/site%2Fb%2Fcam%201", params={"alert": alert.id})
    assert "Shown as it was during <b>fog</b>" in page.text
    assert "10&lt;b&gt;" in page.text  # the image of the first bucket of that drift
    now = get(f"{site}/streams/site%2Fb%2Fcam%201")
    assert "Shown as it was" not in now.text
    assert "None kept in this time" in now.text


def test_the_time_line_says_in_numbers_what_it_draws(site: str) -> None:
    page = get(f"{site}/streams/calm").text
    table = page.split('id="numbers"')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">([\d:]+)</th><td class="number">(\d+)</td>', table)
    assert len(rows) == page.count('class="hit"') == 60
    assert {images for _, images in rows} == {"30"}
    assert "not-an-image 1" in page


def test_unknown_streams_and_pages_are_not_found(site: str) -> None:
    for path in ("/streams/nobody", "/streams/", "/nothing"):
        page = get(site + path)
        assert page.status_code == 404
        assert "Not found" in page.text


@pytest.mark.parametrize(
    "query", ["", "?profile=fp&stream=calm&time=1760000000000", "?profile=fp&stream=calm&time=1e400", "?time=--5"]
)
def test_a_picture_that_is_not_there_is_not_found(site: str, query: str) -> None:
    assert httpx.get(f"{site}/pictures/0123456789abcdef{query}").status_code == 404


def test_search_and_further_pages_find_every_stream(site: str) -> None:
    with httpx.Client(base_url=site, verify=NO_AUTHORITIES) as client:
        assert LINK.findall(client.get("/", params={"q": "CAM"}).text) == ["/streams/site%2Fb%2Fcam%201"]
        assert "No stream has that in its name" in client.get("/", params={"q": "<b>"}).text
        for page in ("0", "99999999999", "x", "-1"):
            assert len(LINK.findall(client.get("/", params={"page": page}).text)) == 6


def test_all_pages_are_whole_html_with_safe_headers(site: str) -> None:
    for path in ("/", "/streams/calm", "/alerts", "/profile", "/health", "/nothing"):
        page = get(site + path)
        assert page.text.rstrip().endswith("</html>"), path
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("stripped", [True, False], ids=["by the proxy", "by us"])
def test_links_stay_below_the_path_of_a_proxy_that_strips_it_or_does_not(fleet: Fleet, stripped: bool) -> None:
    token = {"Authorization": "Bearer secret"}
    settings = WebSettings(port=0, token=SecretStr("secret"), external_url="https://ops.example/layerwatch")
    with served(fleet.store, settings) as address, httpx.Client(headers=token, verify=NO_AUTHORITIES) as client:
        base = address if stripped else f"{address}/layerwatch"
        for path in ("/", "/streams/calm", "/streams/?name=..", "/alerts", "/profile", "/health", "/nothing"):
            page = client.get(base + path).text
            targets = re.findall(r' (?:href|src|action)="((?!data:)[^"#]*)', page)
            assert all(target.startswith("/layerwatch/") for target in targets if target), path
            assert len(targets) > 7
        assert get(f"{base}/healthz").text == "ok\n"
        assert get(f"{base}/alerts").status_code == 401
        assert client.get(f"{address}/layerwatchful").status_code == 404


def test_health_names_what_is_wrong(fleet: Fleet) -> None:
    with served(fleet.store, unready="no <source>") as address:
        page = get(f"{address}/health").text
        assert "This process is not ready" in page
        assert "no &lt;source&gt;" in page
        assert "images:0" in page
        ready = get(f"{address}/readyz")
        assert (ready.status_code, ready.text) == (503, "no <source>\n")


def test_the_model_card_of_a_real_profile_is_shown(redis_server: PrivateRedis, profile_folder: Path) -> None:
    profile = detectors.load_profile(profile_folder)
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "cards")
    store.catalog.put_layouts({profile.fingerprint: layout_of(profile)})
    with served(store) as address:
        assert "has not been published" in get(f"{address}/profile").text
        store.catalog.put_profiles({profile.fingerprint: json.dumps(profile.manifest)})
        page = get(f"{address}/profile").text
        assert profile.fingerprint in page
        assert "300 images" in page
        assert "300 images of the same kind" in page
        assert "a patch of another image, pasted into 150 images, stood out in" in page
        assert "none: the reference has no 16-bit images" in page
        deep = profile.manifest | {"tones": {"white_level": 4095, "alpha": "composite"}}
        store.catalog.put_profiles({profile.fingerprint: json.dumps(deep)})
        assert "4095: the largest value" in get(f"{address}/profile").text
        assert page.count('<tr><th scope="row">') == len(profile.signals)
        assert "No images yet" in get(address).text
    store.close()


def test_processes_that_score_with_different_profiles_are_shown(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "processes")
    store.catalog.put_replica(Replica("host/1", {"store": "store@1"}, ["aaaa"]))
    with served(store) as address:
        assert "<h2" not in get(f"{address}/profile").text
        assert get(f"{address}/api/v1/profile").json()["disagree"] is False
    store.catalog.put_replica(Replica("host/2", {"store": "store@2"}, ["bbbb"], "profile.json is <damaged>"))
    with served(store) as address:
        page, answer = get(f"{address}/profile").text, get(f"{address}/api/v1/profile").json()
    store.close()
    assert "Processes score with different profiles" in page
    assert "profile.json is &lt;damaged&gt;" in page
    assert [(r["name"], r["fingerprints"]) for r in answer["replicas"]] == [("host/1", ["aaaa"]), ("host/2", ["bbbb"])]
    assert answer["disagree"] is True


def test_a_renewal_that_was_refused_shows_what_moved_and_one_that_was_not_how_to_promote_it(
    redis_server: PrivateRedis,
) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "renewals")
    with served(store) as address:
        assert "Renewal of" not in get(f"{address}/profile").text
        found = refused(store)
        page, (answer,) = get(f"{address}/profile").text, get(f"{address}/api/v1/profile").json()["renewals"]
        assert RenewalJson.model_validate(answer) == found
        assert "models/&lt;line&gt;</code>: refused" in page
        assert "787 images of 22 calm hours, 2 streams" in page
        assert "200 during an alert, or near one" in page
        assert "by 14 % from version 1, which a person made or accepted, or from version 3" in page
        assert "9 of 12 are unusual by it, 12 by version 1" in page
        assert page.count('alt="Image ') == len(found.pictures)
        assert "--accept-shift REASON" in page
        keep_renewal(store, found.model_copy(update={"outcome": "candidate", "version": 4, "reason": ""}))
        page = get(f"{address}/profile").text
        assert "layerwatch profile promote models/&lt;line&gt; 4" in page
        assert "--accept-shift" not in page
        store.renewals.put("models/line", "{damaged")
        assert get(f"{address}/profile").text.count("Renewal of") == 1
    store.close()


def test_each_profile_names_the_streams_that_it_judges_now(redis_server: PrivateRedis) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "two-profiles")
    store.catalog.register_partitions([LOGS[0]])
    store.catalog.put_layouts({"one": LAYOUT, "two": LAYOUT, "unused": LAYOUT})
    store.partitions.start(LOGS[0], 1, "t", 0)
    vector = fill(LAYOUT, np.full((3, 5), 0.5))
    many = {("one", bucket_ms(0), f"cam-{i:02}"): vector for i in range(30)}
    facts = {name: StreamFacts(event_time_ms=bucket_ms(0)) for _, _, name in many}
    moved = {("two", bucket_ms(12), name): vector for name in ("cam-03", HOSTILE)}
    store.partitions.apply([Delta(LOGS[0], "t", 0, 1, bucket_ms(0), many, facts)])
    store.partitions.seal([LOGS[0]], bucket_ms(0))
    facts = {name: StreamFacts(event_time_ms=bucket_ms(12)) for _, _, name in moved}
    store.partitions.apply([Delta(LOGS[0], "t", 1, 2, bucket_ms(12), moved, facts)])
    with served(store) as address:
        assert get(address).text.count("no images for 2 min") == 29
        parts = re.split(r"<h2 id=", get(f"{address}/profile").text)[1:]
        answer = get(f"{address}/api/v1/profile").json()["profiles"]
    store.close()
    assert [re.findall(r"Judges (\d+) stream", part) for part in parts] == [["29"], ["2"], []]
    assert parts[0].count('<a href="/streams/cam-') == 29
    assert "9 more" in parts[0]
    assert "cam-03" not in parts[0]
    assert "&lt;script&gt;" in parts[1]
    assert "Judged no image" in parts[2]
    assert answer["two"]["streams"] == sorted([HOSTILE, "cam-03"])
    assert answer["unused"]["streams"] == []


def test_a_stream_whose_frames_depend_on_each_other_is_told_so(redis_server: PrivateRedis) -> None:
    """Sixty buckets of five scenes of six frames each, by a profile that takes images to be independent."""
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "dependent")
    store.catalog.register_partitions([LOGS[0]])
    store.catalog.put_layouts({"fp": LAYOUT})
    store.partitions.start(LOGS[0], 1, "t", 0)
    rng = np.random.default_rng(1)
    for b in range(60):
        vector = fill(LAYOUT, np.repeat(rng.uniform(0.002, 1.0, (5, 5)), 6, axis=0))
        facts = {"cam": StreamFacts(event_time_ms=bucket_ms(b))}
        store.partitions.apply(
            [Delta(LOGS[0], "t", b, b + 1, bucket_ms(b), {("fp", bucket_ms(b), "cam"): vector}, facts)]
        )
        store.partitions.seal([LOGS[0]], bucket_ms(b))
    with served(store) as address:
        page = get(f"{address}/streams/cam").text
        answer = get(f"{address}/api/v1/streams/cam").json()["dependence"]
    store.close()
    assert answer["clear"]
    assert 1.5 < answer["at_least"] < 6 < 1.5 * answer["observed"] < 18
    assert answer["assumed"] == 1
    assert f"vary {answer['observed']:.2g} times as much as those of independent images; the profile assumes 1." in page


def test_a_pending_alert_is_named_in_words(site: str, fleet: Fleet) -> None:
    pending = firing("drift", "calm", 58)
    pending = type(pending)("drift", "calm", AlertPhase.PENDING, pending.id, pending.since_ms, verdict=pending.verdict)
    fleet.decide(pending)
    try:
        with served(fleet.store) as address:
            assert "may be drifting" in get(f"{address}/streams/calm").text
    finally:
        fleet.decide(type(pending)("drift", "calm"))


def _escaped(text: str) -> str:
    shown = text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")


@pytest.mark.parametrize(("triage", "shown"), [("content", True), ("mix", False)])
def test_a_card_about_a_mix_shows_no_single_images_since_none_is_unusual(triage: str, shown: bool) -> None:
    alert = AlertJson(
        alert_id="a", rule="drift", kind="sequential", stream="cam", phase="firing", since=NOW_MS, fired_at=NOW_MS,
        resolved_at=None, summary="", cause="mix2: fewer images", condition="", value=None, bound=None, threshold=None,
        images=None, severity=None, silenced_by=None, warming=None, silence=None, duration_ms=1000,
    )  # fmt: skip
    image = ExemplarJson(id="images/0/1", event_time=NOW_MS, p_value=0.01, p_values={}, thumbnail="data:,", name="")
    page = _environment("").from_string(
        '{% import "parts.html" as parts with context %}{{ parts.card([alert], triage, exemplars=[image]) }}'
    )
    assert ("images/0/1" in page.render(alert=alert, triage=triage, image=image)) == shown
