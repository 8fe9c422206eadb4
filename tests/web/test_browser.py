"""The pages as a person has them: in a real browser, in light and dark, on a phone, by keyboard, without JavaScript."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from monitor.core.alert_document import stream_path
from monitor.core.types import Alert
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.web.settings import WebSettings
from tests.web.fleet import BUCKETS, HOSTILE, LARGE_PX, REGIONS, STREAMS, Fleet, build, firing, served

PATHS = ("/", "/?q=cam", "/streams/calm", "/alerts", "/profile", "/health", "/nothing")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console must stay quiet."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    opened = context.new_page()
    complaints = listen(opened)
    yield opened
    context.close()
    assert complaints == []


def listen(page: Page) -> list[str]:
    """What its console complains about; a page that is not there is no complaint of ours."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if "404" not in message.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    return complaints


def test_no_page_breaks_a_rule_of_accessibility_or_scrolls_sideways(fleet: Fleet, browser: Browser) -> None:
    context = browser.new_context(http_credentials={"username": "ops", "password": "secret"})
    page = context.new_page()
    complaints = listen(page)
    with served(fleet.store, WebSettings(port=0, token=SecretStr("secret"))) as address:
        page.goto(address)
        hostile = page.get_by_role("rowheader").get_by_role("link", name="alert(").get_attribute("href")
        for path in (*PATHS, hostile):
            page.goto(f"{address}{path}")
            page.evaluate(AXE_SCRIPT)  # once for all four: it is half a megabyte
            for width, scheme in itertools.product((360, 1100), SCHEMES):
                page.set_viewport_size({"width": width, "height": 800})
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                violations = Axe("").run(page, options={"resultTypes": ["violations"]}).response["violations"]
                assert [(path, width, scheme, v["id"], v["nodes"][0]["html"]) for v in violations] == []
        context.close()
    assert complaints == []


def test_a_drift_appears_and_goes_without_a_reload(site: str, fleet: Fleet, page: Page) -> None:
    page.goto(site)
    page.evaluate("window.loadedOnce = true")
    expect(page.get_by_text("1 of 6 streams needs a look")).to_be_visible()
    fleet.decide(firing("fog", "calm", BUCKETS - 1))
    expect(page.get_by_text("2 of 6 streams need a look")).to_be_visible(timeout=10_000)
    expect(page.get_by_role("heading", name="calm: drifting since")).to_be_visible()
    assert page.title().startswith("(2)")
    fleet.decide(Alert("fog", "calm"))
    expect(page.get_by_text("1 of 6 streams needs a look")).to_be_visible(timeout=10_000)
    assert page.evaluate("window.loadedOnce") is True


def test_new_counts_appear_and_what_was_opened_stays_open(redis_server: PrivateRedis, page: Page) -> None:
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "growing")
    growing = build(store)
    with served(store) as address:
        page.goto(f"{address}/streams/calm")
        page.get_by_text("The numbers").click()
        first = page.locator("#numbers tbody tr").first
        expect(first.locator("td").first).to_have_text("30")
        growing.send(BUCKETS - 1, (HOSTILE,))
        expect(first.locator("td").first).to_have_text("60", timeout=10_000)
        assert page.locator("#numbers").evaluate("details => details.open") is True
        page.goto("about:blank")  # lets go of the events before the server does
    store.close()


def test_the_worst_images_are_there(site: str, page: Page) -> None:
    page.goto(site)
    page.get_by_role("rowheader").get_by_role("link", name="alert(").click()
    pictures = page.locator("#pictures :not(.large) > .shot > img")
    assert pictures.count() == 12 + 6  # the worst, and typical ones
    assert {picture.evaluate("image => image.naturalWidth") for picture in pictures.all()} == {48}


def test_a_click_or_a_key_shows_one_of_the_worst_images_larger_and_only_then_loads_it(fleet: Fleet, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/pictures/" in request.url else None)
    with served(fleet.store, WebSettings(port=0, external_url="http://proxy.internal/layerwatch")) as address:
        page.goto(f"{address}{stream_path(HOSTILE)}")
        first = page.locator("#pictures .large").first
        assert (page.locator("#pictures .large").count(), asked) == (12, [])
        first.locator("summary").click()
        image = first.get_by_role("img", name=", large")
        expect(image).to_be_visible()
        page.wait_for_function("image => image.complete && image.naturalWidth", arg=image.element_handle())
        assert image.evaluate("image => [image.naturalWidth, image.clientWidth]") == [LARGE_PX, LARGE_PX]
        assert len(asked) == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("Enter")
        expect(image).to_be_hidden()
        page.goto("about:blank")  # lets go of the events before the server does


def test_where_an_image_is_unusual_is_laid_over_it_until_a_key_takes_it_away(site: str, page: Page) -> None:
    page.goto(f"{site}{stream_path(HOSTILE)}")
    figures = page.locator("#pictures figure")
    in_two = figures.filter(has_text="upper left").filter(has=page.locator("rect.box:nth-of-type(4)")).first
    image, heat = in_two.locator("summary .shot > img"), in_two.locator("summary .heat")
    assert (image.get_attribute("alt") or "").endswith(", unusual: upper left")
    frame = image.bounding_box()
    assert frame is not None
    assert heat.bounding_box() == frame
    for box, region in zip(heat.locator("rect.box").all(), REGIONS, strict=True):
        place = box.evaluate("b => { const r = b.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }")
        sides = frame["width"], frame["height"]
        shares = [(place[0] - frame["x"]), (place[1] - frame["y"]), place[2], place[3]]
        wanted = [region.x * sides[0], region.y * sides[1], region.width * sides[0], region.height * sides[1]]
        assert shares == pytest.approx(wanted, abs=4.5)  # the line has a width
    assert figures.filter(has_text="no single place").first.locator("rect").count() == 0
    toggle = page.get_by_label("Show where")
    toggle.focus()
    page.keyboard.press("Space")
    expect(heat).to_be_hidden()
    expect(image).to_be_visible()
    page.keyboard.press("Space")
    expect(heat).to_be_visible()


def test_without_heat_maps_nothing_is_said_of_them(site: str, page: Page) -> None:
    page.goto(f"{site}{stream_path(STREAMS[2], firing('fog', STREAMS[2], 10).id)}")
    expect(page.locator("#pictures .large")).to_have_count(10)
    expect(page.get_by_label("Show where")).to_be_hidden()


def test_a_hostile_name_is_text_everywhere(site: str, page: Page) -> None:
    page.goto(site)
    expect(page.get_by_role("rowheader").get_by_text(HOSTILE)).to_be_visible()
    page.get_by_role("rowheader").get_by_role("link", name="alert(").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    page.goto(f"{site}/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    expect(page.get_by_label("Name contains")).to_have_value('"><script>alert(1)</script>')
    assert page.locator("script").count() == 1


def test_everything_is_shown_without_javascript(site: str, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site)
    expect(page.get_by_text("1 of 6 streams needs a look")).to_be_visible()
    assert page.locator("table.streams tbody tr").count() == 6
    page.get_by_role("rowheader").get_by_role("link", name="calm").click()
    page.get_by_text("The numbers").click()
    expect(page.locator("#numbers tbody tr").first).to_be_visible()
    page.goto(f"{site}{stream_path(HOSTILE)}")
    page.locator("#pictures .large summary").first.click()
    expect(page.get_by_role("img", name=", large")).to_be_visible()
    context.close()


def test_the_keyboard_reaches_a_stream_and_keeps_its_place(site: str, fleet: Fleet, page: Page) -> None:
    page.goto(site)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")  # the first alert's stream
    focused = page.locator(":focus")
    assert focused.inner_text() == HOSTILE
    fleet.decide(firing("fog", "calm", BUCKETS - 1))
    expect(page.get_by_text("2 of 6 streams need a look")).to_be_visible(timeout=10_000)
    assert page.locator(":focus").inner_text() == HOSTILE
    fleet.decide(Alert("fog", "calm"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)


def test_a_silence_is_made_and_ended_by_hand(fleet: Fleet, browser: Browser) -> None:
    context = browser.new_context(http_credentials={"username": "ops", "password": "secret"})
    page = context.new_page()
    complaints = listen(page)
    with served(fleet.store, WebSettings(port=0, token=SecretStr("secret"))) as address:
        page.goto(f"{address}/alerts")
        page.get_by_role("link", name="Silence <script>").click()
        expect(page.get_by_label("Stream")).to_have_value(HOSTILE)
        page.get_by_label("Why").fill("we know")
        page.get_by_role("button", name="Silence").click()
        expect(page.get_by_text("Silenced.")).to_be_visible()
        expect(page.get_by_text("we know")).to_be_visible()
        expect(page.locator("#under-way").get_by_text("silenced until")).to_be_visible()
        page.get_by_role("button", name="End silence").click()
        expect(page.get_by_text("The silence is over.")).to_be_visible()
        assert fleet.store.silences.all() == {}
        context.close()
    assert complaints == []


def test_everything_works_below_a_path_of_a_proxy(fleet: Fleet, browser: Browser) -> None:
    context = browser.new_context(http_credentials={"username": "ops", "password": "secret"})
    page = context.new_page()
    complaints = listen(page)
    outside: list[str] = []
    settings = WebSettings(port=0, token=SecretStr("secret"), external_url="https://ops.example/layerwatch/")
    with served(fleet.store, settings) as address:
        page.on("request", lambda r: None if r.url.startswith(f"{address}/layerwatch/") else outside.append(r.url))
        page.goto(f"{address}/layerwatch/")
        page.get_by_role("rowheader").get_by_role("link", name="alert(").click()
        expect(page.locator("#pictures img").first).to_be_visible()
        page.get_by_role("link", name="drift").first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        page.get_by_role("link", name="Silence this stream").click()
        page.get_by_role("button", name="Silence").click()
        expect(page.get_by_text("Silenced.")).to_be_visible()
        page.get_by_role("button", name="End silence").click()
        expect(page.get_by_text("The silence is over.")).to_be_visible()
        for name in ("Profile", "Health", "API"):
            page.get_by_role("link", name=name, exact=True).click()
            page.wait_for_load_state()
            page.go_back()
        page.get_by_role("link", name="Streams", exact=True).click()
        page.get_by_label("Name contains").fill("calm")
        page.get_by_role("button", name="Find").click()
        expect(page.locator("table.streams tbody tr")).to_have_count(1)
        fleet.decide(firing("fog", "calm", BUCKETS - 1))  # the events come through as well
        expect(page.get_by_role("heading", name="calm: drifting since")).to_be_visible(timeout=10_000)
        fleet.decide(Alert("fog", "calm"))
        context.close()
    assert outside == []
    assert complaints == []


def test_the_page_says_when_the_server_is_gone(fleet: Fleet, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    with served(fleet.store) as address:
        page.goto(address)
        expect(page.get_by_text("1 of 6 streams needs a look")).to_be_visible()
    expect(page.get_by_text("Connection lost")).to_be_visible(timeout=10_000)
    expect(page.get_by_text("1 of 6 streams needs a look")).to_be_visible()
    context.close()
