"""Streams with conditions on the pages and in the API: what is in force, whose alert it is, a chart without gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.buckets import IMAGES, REJECTED, Layout, empty
from monitor.core.types import Alert, AlertPhase, Delta, Partition, StreamFacts, Verdict
from monitor.fleet.counts import ClosedCounts
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.vectors import fill
from tests.web.fleet import BUCKET_MS, served

PLAIN = Layout(("ood", "noise"), (500,) * 2, (False, True), (True, False), (1.0,) * 2)
LAYOUTS = {"fp": PLAIN, "fp-day": replace(PLAIN, condition="day"), "fp-night": replace(PLAIN, condition="night")}
LOG, T0_MS = Partition("images", 0), 1_760_000_000_000
NIGHT, BUCKETS, LAST_HOURS = 100, 130, 800
"""By night from that bucket on; the last one by day is `BUCKETS - 1`; later the night is more than an hour ago."""


def bucket(i: int) -> int:
    return T0_MS + i * BUCKET_MS


@pytest.fixture(scope="module")
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    found = open_store(RedisSettings(url=SecretStr(redis_server.url)), "web-conditions")
    found.catalog.register_partitions([LOG])
    found.catalog.put_layouts(LAYOUTS)
    found.partitions.start(LOG, 1, "t", 0)
    rng = np.random.default_rng(1)
    for i in range(BUCKETS):
        by_night = NIGHT <= i < NIGHT + 10
        p = rng.uniform(1e-3, 1, (10, 2))
        p[:5, 1] = 1e-3 if by_night else p[:5, 1]
        vectors = {("fp-night" if by_night else "fp-day", bucket(i), "yard"): fill(PLAIN, p)}
        vectors["fp", bucket(i), "line"] = fill(PLAIN, p)
        if i == BUCKETS - 1:
            vectors["fp", bucket(i), "yard"] = empty(PLAIN)
            vectors["fp", bucket(i), "yard"][REJECTED] = 3
        at_ms = bucket(i) + 9_999
        facts = {name: StreamFacts(b"d", 1, "48x48/RGB", at_ms, at_ms) for name in ("yard", "line")}
        found.partitions.apply([Delta(LOG, "t", i, i + 1, at_ms, vectors, facts)])
        found.partitions.seal([LOG], bucket(i))
    verdict = Verdict(True, 0.5, 0.4, 0.1, 50, "half of them", (0.4, 0.5, 0.6), "noise: more images")
    since_ms = bucket(NIGHT)
    alert = Alert("drift", "yard", AlertPhase.FIRING, "a" * 16, since_ms, since_ms + BUCKET_MS, verdict=verdict)
    found.evaluation.decide(0, bucket(BUCKETS - 1), [replace(alert, condition="night", breached_in=("night",))], [])
    yield found
    found.close()


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    with served(store) as found:
        yield found


def test_the_api_says_which_condition_is_in_force_and_whose_alert_it_is(address: str) -> None:
    streams = httpx.get(f"{address}/api/v1/streams").json()["streams"]
    assert {name: row["conditions"] for name, row in streams.items()} == {"yard": ["day"], "line": []}
    view = httpx.get(f"{address}/api/v1/streams/yard").json()
    (alert,) = view["known_alerts"]
    assert (alert["condition"], alert["phase"]) == ("night", "firing")
    assert view["images_by_condition"] == {"day": 1200, "night": 100}
    assert httpx.get(f"{address}/api/v1/streams/line").json()["images_by_condition"] == {}


def test_the_time_line_goes_on_over_the_change_and_the_evidence_is_the_nights(address: str) -> None:
    view = httpx.get(f"{address}/api/v1/streams/yard").json()
    counted = [point["images"] for point in view["history"]]
    assert sum(counted) == BUCKETS * 10
    assert min(counted) > 0
    assert view["evidence"]["images"] == 100  # the ten buckets by night, of thirty since it began
    assert view["evidence"]["signals"][0]["signal"] == "noise"
    assert view["evidence"]["signals"][0]["effect"] > 0.4


def test_the_pages_show_it(address: str) -> None:
    overview = httpx.get(f"{address}/").text
    assert '<span class="tag">day</span>' in overview
    page = httpx.get(f"{address}/streams/yard").text
    assert "In force: <b>day</b>" in page
    assert "1200 were judged by that of day, 100 were judged by that of night" in page
    assert "firing by images of night" in page
    assert "are of night." in page
    assert "In force" not in httpx.get(f"{address}/streams/line").text


def test_the_profile_page_shows_the_conditions_and_their_sizes(
    store: Store, address: str, profile_folder: Path
) -> None:
    card = json.loads((profile_folder / "profile.json").read_text())
    sizes = {"day": 1200, "night": 340}
    conditions = {"conditions": {name: {"images": {"calibration": n}} for name, n in sizes.items()}}
    store.catalog.put_profiles(
        {"fp": json.dumps(card | conditions), "fp-night": json.dumps(card | {"condition": "night"})}
    )
    page = httpx.get(f"{address}/profile").text
    assert "day (calibrated on 1200 images), night (calibrated on 340 images)" in page
    assert "<code>fp-night</code>, images of night" in page


def test_evidence_of_a_night_that_is_long_over_is_that_of_its_beginning(store: Store, address: str) -> None:
    at_ms = bucket(LAST_HOURS)
    vectors = {("fp-day", at_ms, "yard"): fill(PLAIN, np.random.default_rng(2).uniform(0, 1, (10, 2)))}
    facts = {"yard": StreamFacts(b"d", 1, "48x48/RGB", at_ms, at_ms)}
    store.partitions.apply([Delta(LOG, "t", BUCKETS, BUCKETS + 1, at_ms + 9_999, vectors, facts)])
    with served(store) as fresh:
        view = httpx.get(f"{fresh}/api/v1/streams/yard").json()
    assert (view["evidence"]["since"], view["evidence"]["images"]) == ("2025-10-09T09:10:00.000Z", 100)
    assert view["conditions"] == ["day"]


def test_shares_add_up_over_the_conditions_of_a_window() -> None:
    counts = ClosedCounts(60_000)
    counts.set_layouts(LAYOUTS)
    counts.watch(["yard"])
    table = np.zeros((1, PLAIN.size), dtype=np.uint32)
    for name, beyond, images in (("fp-day", 2, 10), ("fp-night", 6, 10)):
        vector = table.copy()
        vector[0, 0], vector[0, 4], vector[0, IMAGES] = images - beyond, beyond, images
        counts.add(0, name, ["yard"], vector)
    rejected = table.copy()
    rejected[0, REJECTED] = 5
    counts.add(0, "fp", ["yard"], rejected)
    (usual, _) = counts.shares()["yard"]
    assert usual.share == pytest.approx(0.4)
    assert counts.movement("yard")[0]
