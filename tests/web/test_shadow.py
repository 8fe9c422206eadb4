"""A profile in shadow on the page and in the API: what it finds, and the alerts that each profile would have raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from pydantic import SecretStr

from monitor.cli.judged import documents_of
from monitor.config.schema import Config
from monitor.core.shadow import shadow_of
from monitor.core.types import Delta, Partition
from monitor.fleet import comparison
from monitor.rules.rate import RateRule
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.web.api import ENDPOINTS
from monitor.web.openapi import document
from monitor.web.server import WebServer
from monitor.web.settings import WebSettings
from monitor.web.site import Site
from tests.plain_http import NO_AUTHORITIES
from tests.vectors import fill
from tests.web.fleet import BUCKET_MS, LAYOUT, START_MS

LOG, SHADOW = Partition("images", 0), shadow_of("new")
STREAMS = ("a", "b", "c", "only judged")
DRIFTING = {("a", "fp"), ("b", "new"), ("c", "fp"), ("c", "new")}
"""(stream, profile by which it drifts from bucket FROM to TO)."""
BUCKETS, FROM, TO = 40, 10, 20
RULES = (
    RateRule(name="many", kind="rate", min_images=20, window_s=20),
    SequentialRule(name="drift", kind="sequential"),
)


@pytest.fixture(scope="module")
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    """Two profiles on the same images; they disagree on two of four streams."""
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), "in-shadow")
    opened.catalog.register_partitions([LOG])
    opened.catalog.put_layouts({"fp": LAYOUT})
    opened.catalog.put_shadows({SHADOW: LAYOUT})
    opened.partitions.start(LOG, 1, "t", 0)
    rng = np.random.default_rng(5)
    for b in range(BUCKETS):
        start_ms, vectors = START_MS + b * BUCKET_MS, {}
        for stream in STREAMS:
            for profile in ("fp", "new"):
                if (stream, profile) == ("only judged", "new"):
                    continue
                p_values = rng.uniform(0.002, 1.0, (30, 5))
                if (stream, profile) in DRIFTING and FROM <= b < TO:
                    p_values[:, :3] = rng.uniform(0.002, 0.02, (30, 3))
                name = profile if profile == "fp" else SHADOW
                vectors[name, start_ms, stream] = fill(LAYOUT, p_values)
        opened.partitions.apply([Delta(LOG, "t", b, b + 1, start_ms + BUCKET_MS - 1, vectors)])
        if b < BUCKETS - 1:
            opened.partitions.seal([LOG], start_ms)
    yield opened
    opened.close()


@pytest.fixture
def address(store: Store) -> Iterator[str]:
    server = WebServer(Site(store, "in-shadow", WebSettings(port=0), 0, lambda: "", RULES), "127.0.0.1", 0)
    server.start()
    yield server.address
    server.stop()


def asked(address: str) -> dict[str, Any]:
    """The only comparison of the API, which is what the OpenAPI document says."""
    answer = httpx.get(f"{address}/api/v1/profile", verify=NO_AUTHORITIES).json()
    described = document(ENDPOINTS)
    schema = described["paths"]["/profile"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": described["components"]}).validate(answer)
    (found,) = answer["shadows"]
    assert isinstance(found, dict)
    return found


def test_both_sides_count_the_images_that_both_have_seen(address: str) -> None:
    found = asked(address)
    assert found["shadow"] == SHADOW
    assert list(found["streams"]) == ["a", "b", "c"]
    assert found["judging_side"]["images"] == found["shadow_side"]["images"] == 3 * 30 * BUCKETS
    shares = {s: (o["judging"]["ood_share"] > 0.2, o["shadow"]["ood_share"] > 0.2) for s, o in found["streams"].items()}
    assert shares == {"a": (True, False), "b": (False, True), "c": (True, True)}


def test_the_alerts_are_those_that_the_evaluator_would_have_sent(address: str, store: Store) -> None:
    sides = comparison.sides_of(store, {"fp": LAYOUT}, SHADOW, (0, 2**52))
    found = asked(address)["alerts"]
    settings = Config.model_validate({"monitor": "in-shadow", "buckets": {"seconds": BUCKET_MS // 1000}})
    for side, name, buckets in (
        ("judging", "fp", sides.judging),
        ("shadow", "new", comparison.as_judging(sides.shadow)),
    ):
        counts = {(name, at, s): vector for at, tables in buckets.items() for s, vector in tables[name].items()}
        documents = documents_of(counts, {name: LAYOUT}, RULES, settings)
        fired = [d for d in documents if d["type"] == "alert.firing"]
        sent = sorted((d["timestamp"], d["data"]["rule"], d["data"]["stream"]) for d in fired)
        assert sorted((a["fired_at"], a["rule"], a["stream"]) for a in found[side]) == sent
        assert {stream for _, _, stream in sent} == {stream for stream, by in DRIFTING if by == name}
        assert {rule for _, rule, _ in sent} == {"many", "drift"}


def test_of_many_streams_the_newest_buckets_are_judged_and_the_answer_says_since_when(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "MOST_JUDGED", 3 * (BUCKETS - TO) + 2)
    found = asked(address)
    assert found["alerts"]["since"] == "2025-10-09T08:56:40.000Z"
    assert (found["alerts"]["judging"], found["alerts"]["shadow"]) == ([], [])
    assert found["judging_side"]["images"] == 3 * 30 * BUCKETS


def test_a_rule_that_cannot_judge_by_a_profile_raises_nothing_by_it(store: Store) -> None:
    sides = comparison.sides_of(store, {"fp": LAYOUT}, SHADOW, (0, 2**52))
    unfit = RateRule(name="other", kind="rate", signal="layer9", min_images=20)
    found = comparison.raised_alerts(sides, {"fp": LAYOUT, "new": LAYOUT}, (*RULES, unfit), BUCKET_MS)
    assert {alert.rule for alert in found.judging} == {"many", "drift"}


def test_who_asks_again_at_once_does_not_make_it_judge_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked(address)
    monkeypatch.setattr(comparison, "would_fire", lambda *_: pytest.fail("judged again"))
    assert asked(address) == first


def test_a_person_sees_which_alerts_each_would_have_raised(address: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{address}/profile")
    section = page.get_by_role("region", name=f"In shadow: {SHADOW}")
    expect(section).to_contain_text("the profile that judges would have raised 4 alerts and this one 4")
    table = section.get_by_role("group", name="Alerts that each would have raised")
    listed = [row.split("\t")[2:] for row in table.locator("tbody").inner_text().splitlines()]
    by = {"fp": "the profile that judges", "new": "the profile in shadow"}
    assert sorted(listed) == sorted([stream, by[name]] for stream, name in DRIFTING for _ in RULES)
    assert [(v["id"], v["nodes"][0]["html"]) for v in Axe().run(page).response["violations"]] == []
    page.close()
