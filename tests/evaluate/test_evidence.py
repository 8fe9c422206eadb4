"""What alert documents say of a drift, judged by the evaluator itself on a real Redis; the page says the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from detectors import load_profile
from monitor.core.buckets import Layout
from monitor.core.types import Delta, Partition, StreamFacts, Vector
from monitor.evaluate.evaluator import Evaluator
from monitor.evaluate.presentation import Presentation
from monitor.fleet.evidence import StreamEvidence, stream_evidence
from monitor.fleet.overview import Overview
from monitor.fleet.stream_view import Asked, view_stream
from monitor.ingest.scoring.profiles import layout_of
from monitor.rules.rate import RateRule
from monitor.rules.rule import Rule
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of
from tests.pictures import encoded, pictures
from tests.vectors import fill

LAYOUT = Layout(("ood", "noise"), (1999,) * 2, (False, True), (True, False), (1.0,) * 2)
LOG = Partition("images", 0)
BUCKET_MS, T0_MS = 10_000, 1_750_000_000_000
PER_BUCKET = 20
SLOW = SequentialRule(name="slow", kind="sequential", signals=("noise",))
RATE = RateRule(name="rate", kind="rate", window_s=60, threshold=0.3)


class Story:
    """Buckets of one stream, each judged as soon as it is over."""

    def __init__(self, redis_url: str, monitor: str, *rules: Rule, layout: Layout = LAYOUT) -> None:
        self.store: Store = open_store(RedisSettings(url=SecretStr(redis_url)), monitor)
        self.store.catalog.register_partitions([LOG])
        self.store.catalog.put_layouts({"fp": layout})
        self.store.partitions.start(LOG, 1, "t", 0)
        closing = closing_of(self.store, lateness_s=0)
        self._evaluator = Evaluator(self.store, rules, {}, closing, Presentation(monitor, "http://page"))
        self._evaluator.load()
        self._rng, self.buckets = np.random.default_rng(7), 0

    def send(self, buckets: int, p_value: float = 0.001, **drifting: float) -> None:
        """That many buckets; a share of the images is unusual by a signal: noise=0.3."""
        for _ in range(buckets):
            p = self._rng.uniform(1e-3, 1, (PER_BUCKET, 2))
            for signal, share in drifting.items():
                p[: round(share * PER_BUCKET), LAYOUT.signals.index(signal)] = p_value
            self.count(fill(LAYOUT, p))

    def count(self, *vectors: Vector) -> None:
        """Buckets with these counts."""
        for vector in vectors:
            start_ms = T0_MS + self.buckets * BUCKET_MS
            facts = {"cam": StreamFacts(event_time_ms=start_ms + 1, seen_ms=start_ms)}
            counts = {("fp", start_ms, "cam"): vector}
            high_ms = start_ms + BUCKET_MS
            self.store.partitions.apply([Delta(LOG, "t", self.buckets, self.buckets + 1, high_ms, counts, facts)])
            self.buckets += 1
            self._evaluator.look()

    def documents(self) -> dict[tuple[str, str], dict[str, Any]]:
        """{(rule, phase): data}."""
        data = [json.loads(entry.document)["data"] for entry in self.store.outbox.fetch("hook", T0_MS)]
        return {(d["rule"], d["phase"]): d for d in data}


def at(bucket: int) -> str:
    """Start of a bucket, as documents write it."""
    return str(np.datetime64(T0_MS + bucket * BUCKET_MS, "ms")) + "Z"


def test_two_rules_on_one_drift_agree_on_its_begin_on_the_sensor_and_on_the_images(redis_server: PrivateRedis) -> None:
    story = Story(redis_server.url, "agree", SLOW, RATE)
    story.send(40)
    story.send(8, noise=0.4, ood=0.6)
    found = story.documents()
    assert set(found) == {("slow", "firing"), ("rate", "firing")}
    for data in found.values():
        assert (data["since"], data["triage"]) == (at(40), "sensor")
        assert data["images"] > 0
        assert {s["signal"] for s in data["signals"]} == {"noise", "ood"}
    assert found["slow", "firing"]["severity"]["estimate"] == pytest.approx(0.4, abs=0.1)
    view = view_stream(
        story.store, Overview(story.store, 0).snapshot(), "cam", Asked(found["rate", "firing"]["alert_id"])
    )
    assert (view.evidence.triage, view.evidence.since) == ("sensor", T0_MS + 40 * BUCKET_MS)
    assert view.evidence.causes == ["noise", "ood"]
    story.store.close()


def test_an_alert_of_a_rebuild_that_resolves_right_after_it_is_told_from_its_begin(redis_server: PrivateRedis) -> None:
    """Receivers may know it as firing from before Redis lost its state: its end must reach them."""
    story = Story(redis_server.url, "rebuilt", RATE)
    story.store.partitions.start(LOG, 1, "t", 0, "", 49)
    story.send(40)
    story.send(8, ood=0.6)
    assert story.documents() == {}, "what is counted again is judged in silence"
    calm = np.random.default_rng(8).uniform(1e-3, 1, (5000, 2))
    story.count(fill(LAYOUT, calm))  # beyond the rebuild, and calm enough to end it at once
    assert set(story.documents()) == {("rate", "firing"), ("rate", "resolved")}
    story.store.close()


def test_a_drift_that_was_noticed_late_begins_where_it_began(redis_server: PrivateRedis) -> None:
    """The windows in memory reach back five minutes only."""
    story = Story(redis_server.url, "late", SLOW)
    story.send(100)
    while not (found := story.documents()) and story.buckets < 300:
        story.send(1, noise=0.05, p_value=0.04)
    data = found["slow", "firing"]
    late_s = (np.datetime64(data["fired_at"][:-1]) - np.datetime64(at(100)[:-1])) / np.timedelta64(1, "s")
    assert late_s > 300
    assert abs(np.datetime64(data["since"][:-1]) - np.datetime64(at(100)[:-1])) <= np.timedelta64(60, "s")
    assert sum(data["signals"][0]["histogram"]) == data["images"] > 30 * PER_BUCKET
    story.store.close()


@pytest.mark.parametrize("pending_s", [0, 20])
def test_a_drift_soon_after_another_does_not_begin_in_that_one(redis_server: PrivateRedis, pending_s: int) -> None:
    story = Story(redis_server.url, f"again-{pending_s}", RATE.model_copy(update={"for_s": pending_s}))
    story.send(30)
    story.send(12, ood=0.9)
    story.send(15)
    assert ("rate", "resolved") in story.documents()
    story.send(6, ood=0.9)
    assert story.documents()["rate", "firing"]["since"] == at(30 + 12 + 15)
    story.store.close()


def test_the_end_of_an_alert_says_what_it_was_and_links_to_its_evidence(redis_server: PrivateRedis) -> None:
    story = Story(redis_server.url, "ended", SLOW)
    story.send(20)
    story.send(20, noise=0.5)
    story.send(150)
    data = story.documents()["slow", "resolved"]
    assert data["summary"].startswith("no drift any more")
    assert data["images"] > 0
    assert (data["triage"], data["signals"][0]["signal"]) == ("sensor", "noise")
    assert data["links"]["status"] == f"http://page/streams/cam?alert={data['alert_id']}"
    view = view_stream(story.store, Overview(story.store, 0).snapshot(), "cam", Asked(data["alert_id"]))
    assert [s.signal for s in view.evidence.signals] == [s["signal"] for s in data["signals"]]
    assert (view.evidence.images, view.evidence.triage) == (sum(data["signals"][0]["histogram"]), "sensor")
    story.store.close()


def test_a_signal_that_was_always_the_same_is_named_only_where_it_moved(profile_folder: Path) -> None:
    """Grey pictures of one size: chance alone orders their colours and sizes, so these cannot move a little."""
    profile = load_profile(profile_folder, device="cpu")
    grey = [profile.prepare(image.mean(axis=2).astype(np.uint8)) for _, image in pictures(1, 120)]
    profile.calibrate(profile.values(profile.features(grey), profile.measured(grey)), [image.key for image in grey])
    layout = Layout.from_json(layout_of(profile).to_json())  # as the pages read it

    def evidence(images: Iterable[NDArray[np.uint8]]) -> StreamEvidence:
        scores = profile.score([profile.prepare(image) for image in images])
        return stream_evidence(layout, [fill(layout, scores.p_values)], [], T0_MS)

    unsure: set[str] = set()
    for seed in range(2, 8):
        few = evidence(image.mean(axis=2).astype(np.uint8) for _, image in pictures(seed, 6))
        unsure |= {signal.signal for signal in few.moved if signal.bound <= 0}
    assert unsure
    assert not unsure & {"saturation", "red_ratio", "blue_ratio", "width", "height", "aspect_ratio"}
    coloured = evidence(image for _, image in pictures(8, 40))
    sure = {signal.signal for signal in coloured.moved if signal.bound > 0}
    assert "saturation" in sure
    assert "width" not in sure


def test_a_recording_of_the_reference_played_again_is_called_that(
    redis_server: PrivateRedis, profile_folder: Path
) -> None:
    """The rule that the documentation recommends, on real scores: new images do not raise it, learned ones do."""
    profile = load_profile(profile_folder, device="cpu")
    layout = layout_of(profile)
    replayed = RateRule(name="replayed", kind="rate", signal="seen", threshold=0.5, window_s=60)

    def buckets(images: Iterable[tuple[str, NDArray[np.uint8]]]) -> list[Vector]:
        p = profile.score([encoded(image, "JPEG") for _, image in images]).p_values
        return [fill(layout, p[start : start + PER_BUCKET]) for start in range(0, len(p), PER_BUCKET)]

    story = Story(redis_server.url, "recording", replayed, layout=layout)
    story.count(*buckets(pictures(80, 160)))
    assert not story.documents()
    story.count(*buckets(pictures(0, 160)))
    data = story.documents()["replayed", "firing"]
    assert data["triage"] == "replay"
    assert next(signal["effect"] for signal in data["signals"] if signal["signal"] == "seen") > 0.5
    view = view_stream(story.store, Overview(story.store, 0).snapshot(), "cam", Asked(data["alert_id"]))
    assert view.evidence.triage == "replay"
    story.store.close()
