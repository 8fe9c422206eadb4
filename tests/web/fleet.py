"""A small fleet in a real Redis, filled through the store's own calls: calm, drifting, resolved and hostile streams."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.images.prepare import Preparer
from detectors.images.regions import Region
from monitor.core.buckets import REJECTED, Layout
from monitor.core.heat import Heat
from monitor.core.types import Alert, AlertPhase, Delta, Exemplar, Partition, StreamFacts, Verdict
from monitor.fleet.images import JPEG
from monitor.fleet.renewal import FaultsJson, MovedImageJson, RenewalJson, ShiftJson, keep_renewal
from monitor.ingest.batch import thumbnail
from monitor.ingest.decode.large import large_jpeg
from monitor.rules.rate import RateRule
from monitor.store import Store
from monitor.web.server import WebServer
from monitor.web.settings import WebSettings
from monitor.web.site import Site
from tests.pictures import draw
from tests.vectors import fill

LAYOUT = Layout(
    ("ood", "layer1", "layer2", "sharpness", "noise"),
    (500,) * 5,
    (False, False, False, True, True),
    (True, True, True, False, False),
    (1.0,) * 5,
)
HOSTILE = '<script>alert("x")</script>/../a b'
STREAMS = ("calm", HOSTILE, "site/b/cam 1", "..", "ligne-é-漢字", "c" * 300)
BUCKET_MS, BUCKETS = 10_000, 60
START_MS = 1_760_000_000_000
DRIFT_FROM = 40
"""Bucket from which HOSTILE drifts; the last one is open."""
IMAGES = 30
LARGE_PX = 240
REGIONS = (Region(1 / 12, 1 / 6, 1 / 4, 1 / 6, 2.5), Region(3 / 4, 3 / 4, 1 / 6, 1 / 6, 1.2))
"""Where the images of HOSTILE are unusual: every third of them in both places, and every third in none."""
LOGS = (Partition("images", 0), Partition("images", 1))
RULES = (
    RateRule(name="drift", kind="rate", labels={"severity": "page"}),
    RateRule(name="fog", kind="rate", labels={"severity": "ticket"}),
)


def bucket_ms(b: int) -> int:
    """Start of the b-th bucket."""
    return START_MS + b * BUCKET_MS


NOW_MS = bucket_ms(BUCKETS - 1) + BUCKET_MS - 1


def heat(regions: Sequence[Region]) -> NDArray[np.float32]:
    """(12, 12): a map that is as hot in these as they say."""
    found = np.full((12, 12), 0.4, np.float32)
    y, x = np.mgrid[:12, :12] / 12 + 1 / 24
    for r in regions:
        found[(r.x < x) & (x < r.x + r.width) & (r.y < y) & (y < r.y + r.height)] = r.unusual
    return found


@dataclass
class Fleet:
    """The state, and what has to be known to write more of it."""

    store: Store
    rng: np.random.Generator
    offsets: dict[Partition, int]

    def send(self, b: int, drifting: tuple[str, ...] = ()) -> None:
        """One bucket of images from every stream; of a drifting one every picture and its sharpness are unusual."""
        for i, log in enumerate(LOGS):
            vectors, facts = {}, {}
            exemplars: list[Exemplar] = []
            typical: list[Exemplar] = []
            for stream in STREAMS[i :: len(LOGS)]:
                bad = stream in drifting
                p_values = self.rng.uniform(0.002, 1.0, (IMAGES, 5))
                if bad:
                    p_values[:, :4] = self.rng.uniform(0.002, 0.08, (IMAGES, 4))
                vectors["fp", bucket_ms(b), stream] = fill(LAYOUT, p_values)
                vectors["fp", bucket_ms(b), stream][REJECTED] = b == 3
                event_ms = bucket_ms(b) + BUCKET_MS - 1
                facts[stream] = StreamFacts(b"d", 1, "48x48/RGB", event_ms, event_ms)
                if bad or b % 4 == 0:
                    picture = thumbnail(Preparer(64)(draw(self.rng, stripes=bad)), 48)
                    row = tuple(float(p) for p in p_values[0]) if bad else (0.6,) * 5
                    shown = Exemplar(f"{b}<b>{stream}", stream, event_ms, bucket_ms(b), row[0], row, picture, "fp")
                    (exemplars if bad else typical).append(shown)
            offset = self.offsets[log]
            reasons = {(STREAMS[i], "not-an-image"): 1} if b == 3 else {}
            high_ms = bucket_ms(b) + BUCKET_MS - 1
            (applied,) = self.store.partitions.apply(
                [Delta(log, "t", offset, offset + 1, high_ms, vectors, facts, exemplars, reasons, typical)]
            )
            assert applied.status == "ok"
            for shown in exemplars:
                enlarged = np.repeat(np.repeat(draw(self.rng, stripes=True), 6, axis=0), 6, axis=1)
                regions = REGIONS[: b % 3]
                where = Heat.of(heat(regions), regions) if shown.stream == HOSTILE else None
                self.store.pictures.keep(log, shown, large_jpeg(enlarged, LARGE_PX), where)
            self.offsets[log] = offset + 1

    def decide(self, *alerts: Alert) -> None:
        """Keep these alerts; an inactive one is removed."""
        assert self.store.evaluation.decide(self.store.evaluation.state().version, NOW_MS, alerts, [])


def firing(rule: str, stream: str, b: int = DRIFT_FROM) -> Alert:
    """An alert that fires since that bucket."""
    summary = "90 % of 300 images <i>are</i> beyond the 5 % cut"
    verdict = Verdict(True, 0.9, 0.8, 0.1, 300, summary, (0.7, 0.8, 0.9), "ood: more")
    since_ms = bucket_ms(b)
    return Alert(rule, stream, AlertPhase.FIRING, f"{b:016x}", since_ms, since_ms + BUCKET_MS, verdict=verdict)


def build(store: Store) -> Fleet:
    """Ten minutes of a fleet of which one stream drifts to the end, and another did for a while."""
    store.catalog.register_partitions(LOGS)
    store.catalog.put_layouts({"fp": LAYOUT})
    for log in LOGS:
        store.partitions.start(log, 1, "t", 0)
    fleet = Fleet(store, np.random.default_rng(0), dict.fromkeys(LOGS, 0))
    for b in range(BUCKETS):
        fleet.send(b, (HOSTILE,) if b >= DRIFT_FROM else (STREAMS[2],) if 10 <= b < 20 else ())
        if b < BUCKETS - 1:
            store.partitions.seal(LOGS, bucket_ms(b))
    refused(store)
    over = firing("fog", STREAMS[2], 10)
    fleet.decide(
        firing("drift", HOSTILE),
        Alert("fog", over.stream, AlertPhase.RESOLVED, over.id, over.since_ms, over.fired_ms, 0, bucket_ms(22)),
    )
    return fleet


def refused(store: Store, moved: float = 0.144) -> RenewalJson:
    """A renewal of a store with a hostile name, kept there, that moved too far."""
    shift: dict[str, Any] = {"version": 1, "condition": "", "end": "high", "level": 0.05, "images": 787}
    picture = JPEG + b64encode(large_jpeg(draw(np.random.default_rng(3), stripes=True), LARGE_PX)).decode()
    found = RenewalJson(
        store="models/<line>",
        at=NOW_MS,
        outcome="refused",
        reason="normal has moved by 14.4%, which is more than 3.0%",
        from_version=3,
        first_version=1,
        images=787,
        hours=22,
        streams=2,
        left_out={"during an alert, or near one": 200},
        limit=0.03,
        smallest_seen=0.021,
        moved=moved,
        shifts=[
            ShiftJson(**shift, against="first", signal="ood", which="new", share=0.05 + moved, moved=moved),
            ShiftJson(**shift, against="last", signal="layer1", which="old", share=0.06, moved=0.0),
        ],
        faults=FaultsJson(images=12, seen_before=12, seen=9),
        pictures=[MovedImageJson(id=f"{i}<b>", signal="ood", p_value=0.001, picture=picture) for i in range(12)],
    )
    keep_renewal(store, found)
    return found


@contextmanager
def served(store: Store, settings: WebSettings = WebSettings(port=0), unready: str = "") -> Iterator[str]:  # noqa: B008 - frozen
    """A running server over that state; gives its address."""
    server = WebServer(Site(store, "pages", settings, BUCKET_MS, lambda: unready, RULES), "127.0.0.1", 0)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()
