"""The pages from a real server over a real Redis, and in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from detectors.images import Preparer
from monitor import alerts
from monitor.buckets import IMAGES, Layout, fill
from monitor.config import Redis, Web
from monitor.private_redis import PrivateRedis
from monitor.store import Store, open_store
from monitor.thumbnails import thumbnail
from monitor.types import Alert, AlertPhase, Delta, Exemplar, Partition, StreamFacts, Verdict
from monitor.web import WebServer, build_app
from tests.pictures import draw

P = Partition("images", 0)
LAYOUT = Layout(("ood", "layer1", "sharpness"), (500,) * 3, (False, False, True), (True, True, False), (1.0,) * 3)
HOSTILE = '<script>alert("x")</script>/../a b'
NOW_MS = 1_760_000_000_000


@dataclass(frozen=True)
class Site:
    """A running server."""

    address: str
    store: Store


def fill_state(store: Store) -> None:
    rng = np.random.default_rng(0)
    store.register_partitions([P])
    store.put_layouts({"fp": LAYOUT.to_json()})
    store.start(P, 1, "t", 0)
    vectors, facts, exemplars = {}, {}, []
    for i, (stream, drifted) in enumerate((("calm", False), (HOSTILE, True))):
        p_values = rng.uniform(0.002, 0.05 if drifted else 1.0, (200, 3))
        vectors["fp", NOW_MS, stream] = fill(LAYOUT, p_values)
        facts[stream] = StreamFacts(b"d", 1, "48x48/RGB", NOW_MS, NOW_MS)
        picture = thumbnail(Preparer(64)(draw(rng)), 48)
        exemplars.append(Exemplar(f"{i}<b>", stream, NOW_MS, NOW_MS, 0.002, (0.002, 0.01, 0.01), picture, "fp"))
    assert int(vectors["fp", NOW_MS, "calm"][IMAGES]) == 200
    store.apply([Delta(P, "t", 0, 400, NOW_MS, vectors, facts, exemplars)])
    verdict = Verdict(True, 0.9, 0.8, 0.1, 200, "90 % of 200 images <i>are</i> unusual", (0.7, 0.8, 0.9), "ood: more")
    firing = Alert("drift", HOSTILE, AlertPhase.FIRING, "a" * 16, NOW_MS, NOW_MS, verdict=verdict)
    assert store.decide(0, NOW_MS, {("drift", HOSTILE): alerts.to_json(firing)}, {}, [])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with PrivateRedis() as redis:
        store = open_store(Redis(url=SecretStr(redis.url)), "pages")
        fill_state(store)
        server = WebServer(build_app(store, "pages", Web(port=0), 10_000, lambda: ""), "127.0.0.1", 0)
        server.start()
        yield Site(server.address, store)
        server.stop()
        store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed (Debian: chromium)")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


def test_trouble_comes_first_and_names_are_text(site: Site) -> None:
    page = httpx.get(site.address)
    assert page.status_code == 200
    assert "1 alert under way" in page.text
    assert page.text.index("&lt;script&gt;") < page.text.index(">calm</a>")
    assert page.text.count("<script") == 1  # ours
    assert "&lt;i&gt;are" in page.text
    assert "unsafe" not in page.headers["content-security-policy"]


def test_a_stream_s_page_shows_what_moved_and_the_worst_images(site: Site) -> None:
    with httpx.Client(base_url=site.address) as client:
        link = client.get("/").text.split('href="/streams/')[1].split('"')[0]
        page = client.get(f"/streams/{link}")
    assert page.status_code == 200
    assert "drift: firing, since" in page.text
    assert page.text.count("<rect") == 9 * page.text.count("<svg")
    assert "data:image/jpeg;base64," in page.text
    assert "0&lt;b&gt;" not in page.text  # the other stream's
    assert "1&lt;b&gt;" in page.text
    assert httpx.get(f"{site.address}/streams/nobody").status_code == 404


def test_a_new_alert_appears_without_a_reload(site: Site, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(site.address)
    assert page.get_by_text("fog is firing").count() == 0
    new = Alert("fog", "calm", AlertPhase.FIRING, "b" * 16, NOW_MS, NOW_MS)
    state = site.store.evaluator()
    assert site.store.decide(state.version, NOW_MS, {("fog", "calm"): alerts.to_json(new)}, {}, [])
    page.get_by_text("fog is firing").wait_for(timeout=15_000)
    assert site.store.decide(state.version + 1, NOW_MS, {("fog", "calm"): None}, {}, [])
    page.close()


def test_everything_but_health_asks_for_the_token(site: Site) -> None:
    settings = Web(port=0, token=SecretStr("open-sesame"))
    server = WebServer(build_app(site.store, "pages", settings, 10_000, lambda: "no source"), "127.0.0.1", 0)
    server.start()
    try:
        for path in ("/", "/streams/calm", "/metrics", "/api/v1/streams"):
            assert httpx.get(server.address + path).status_code == 401
            given = {"Authorization": "Bearer open-sesame"}
            assert httpx.get(server.address + path, headers=given).status_code == 200
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        ready = httpx.get(f"{server.address}/readyz")
        assert (ready.status_code, ready.text) == (503, "no source\n")
    finally:
        server.stop()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1100, "dark")])
def test_a_browser_finds_nothing_wrong(site: Site, browser: Browser, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for path in ("/", "/streams/calm"):
        page.goto(site.address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
    page.goto(site.address)
    page.get_by_role("link", name="alert(").first.click()
    assert page.locator("img").first.evaluate("image => image.naturalWidth") == 48
    assert complaints == []
    context.close()
