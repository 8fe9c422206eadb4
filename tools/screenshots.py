"""Pictures of the status page for the README and docs/: a real profile, real images, the real evaluator and a browser.

An hour of six inspection cameras is drawn, scored and judged: the lens of one gets smeared and stays so, in front of
another a foreign part appears for a while. Takes some two minutes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from detectors.images.regions import hottest
from detectors.profile.fit import FitOptions, fit_profile
from monitor.config.schema import Config
from monitor.core.aggregate import Aggregation, Judged, aggregate
from monitor.core.heat import Heat
from monitor.core.kept_images import KeptImages
from monitor.core.settings import BucketSettings
from monitor.core.types import Delta, Partition, StreamFacts
from monitor.daemon import presentation_of
from monitor.demo.scene import FOREIGN_KIND, KINDS, draw, jpeg, light_at
from monitor.demo.story import reference
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator
from monitor.ingest.batch import thumbnail
from monitor.ingest.decode.large import large_jpeg
from monitor.ingest.scoring.profiles import layout_of
from monitor.notify.self_alerts import SelfAlerts
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.web.server import WebServer
from monitor.web.site import Site

FOLDER = Path(__file__).parent.parent / "docs" / "images"
SEED = 7
STREAMS = tuple(f"hall-{hall}/camera-{n}" for hall in "ab" for n in (1, 2, 3))
SMEARED, FOREIGN = STREAMS[1], STREAMS[3]
BUCKET_S, EVERY_S = 10, 2
LENGTH_S = 3600
SMEAR_S, FOREIGN_S = (2700, LENGTH_S), (900, 1500)
LOG = Partition("inspection", 0)
SETTINGS: dict[str, Any] = {
    "monitor": "plant-7",
    "buckets": {"seconds": BUCKET_S},
    "rules": [
        {"name": "drift", "kind": "sequential", "expected_streams": len(STREAMS), "labels": {"severity": "page"}},
        {"name": "many-unusual", "kind": "rate", "threshold": 0.2, "min_images": 100, "labels": {"severity": "ticket"}},
    ],
    "web": {"token": "for-the-picture"},
}
COLOURS = 64
"""Pages use few colours: a palette reduces a picture to a third of its size."""
TALLEST_PX = 2200


def pictures(rng: np.random.Generator, time_s: int) -> Iterator[tuple[str, bytes]]:
    """What each camera shows at that time."""
    for i, stream in enumerate(STREAMS):
        kind, smear = str(rng.choice(KINDS)), 0.0
        if stream == SMEARED and SMEAR_S[0] <= time_s < SMEAR_S[1]:
            smear = 0.7 * min(1.0, (time_s - SMEAR_S[0]) / 300)
        elif stream == FOREIGN and FOREIGN_S[0] <= time_s < FOREIGN_S[1] and rng.random() < 0.35:
            kind = FOREIGN_KIND
        yield stream, jpeg(draw(rng, kind, light_at(time_s, i / len(STREAMS)), smear))


def play(store: Store, settings: Config) -> None:
    """Fit, then score, count and judge the hour, bucket by bucket."""
    profile = fit_profile(reference(np.random.default_rng(SEED), 1000), FitOptions(device="cpu", seed=SEED))
    layouts = {profile.fingerprint: layout_of(profile)}
    store.catalog.register_partitions([LOG])
    store.catalog.put_layouts(layouts)
    with tempfile.TemporaryDirectory() as folder:
        profile.save(folder)
        store.catalog.put_profiles({profile.fingerprint: (Path(folder) / "profile.json").read_text()})
    store.partitions.start(LOG, 1, "t", 0)
    buckets = BucketSettings(seconds=BUCKET_S)
    how = Aggregation(buckets, layouts, lambda _: profile.fingerprint, 12, lambda prepared: thumbnail(prepared, 96))
    evaluator = Evaluator(
        store,
        settings.rules,
        layouts,
        Closing(store, buckets, SelfAlerts(store, settings.monitor, has_receivers=False)),
        presentation_of(settings),
    )
    evaluator.load()
    kept = KeptImages()
    rng, facts, high_ms = np.random.default_rng(SEED), dict[str, StreamFacts](), 0
    begin_ms = time.time_ns() // 1_000_000 // buckets.length_ms * buckets.length_ms - LENGTH_S * 1000
    for offset, start_s in enumerate(range(0, LENGTH_S, BUCKET_S)):
        taken = [(t, *shot) for t in range(start_s, start_s + BUCKET_S, EVERY_S) for shot in pictures(rng, t)]
        prepared = [profile.prepare(image) for _, _, image in taken]
        judged = [
            [Judged(f"{stream}/{t:06}.jpg", stream, begin_ms + 1000 * t, profile.fingerprint, row, image)]
            for (t, stream, _), row, image in zip(taken, profile.score(prepared).p_values, prepared, strict=True)
        ]
        begin = Delta(LOG, "t", offset, offset + 1, high_ms, {})
        found = aggregate(judged, begin, facts, time.time_ns() // 1_000_000, how, kept)
        delta = found.delta
        facts, high_ms = {**facts, **delta.facts}, delta.high_ms
        store.partitions.apply([delta])
        kept.worst.add(delta.exemplars)
        kept.sample.add(delta.sample)
        of_id = {record[0].id: shot[2] for record, shot in zip(judged, taken, strict=True)}
        for exemplar, image in zip(delta.exemplars, found.unusual, strict=True):
            (heat,) = profile.heat_maps([image.prepared])
            large = large_jpeg(profile.preparer.upright(of_id[image.id]), 512)
            store.pictures.keep(LOG, exemplar, large, Heat.of(heat, hottest(heat)))
        evaluator.look()


def shoot(browser: Browser, address: str, folder: Path, name: str, path: str, width: int, scheme: str) -> None:
    """One picture, of the upper part of the page."""
    context = browser.new_context(
        viewport={"width": width, "height": 740},
        color_scheme=scheme,  # type: ignore[arg-type]
        http_credentials={"username": "ops", "password": SETTINGS["web"]["token"]},
    )
    page = context.new_page()
    page.goto(f"{address}{path}")
    page.wait_for_timeout(1500)
    target = folder / f"page-{name}.png"
    page.screenshot(path=target, full_page=True)
    context.close()
    with Image.open(target) as shot:
        top = shot.convert("RGB").crop((0, 0, shot.width, min(shot.height, TALLEST_PX)))
        small = top.quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size // 1024} KiB")


def main() -> None:
    """Fill the store, serve it and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = Config.model_validate(SETTINGS)
    with PrivateRedis() as redis, sync_playwright() as playwright:
        store = open_store(RedisSettings(url=SecretStr(redis.url)), settings.monitor)
        play(store, settings)
        site = Site(store, settings.monitor, settings.web, 10_000, lambda: "", settings.rules)
        server = WebServer(site, "127.0.0.1", 0)
        server.start()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--no-zygote"]
        )
        smeared, foreign = (f"/streams/{stream.replace('/', '%2F')}" for stream in (SMEARED, FOREIGN))
        over = next(a for a in store.evaluation.alerts().values() if a.stream == FOREIGN)
        for name, path, width, scheme in (
            ("overview", "/", 1100, "light"),
            ("overview-phone", "/", 360, "dark"),
            ("stream", smeared, 1100, "light"),
            ("stream-dark", smeared, 1100, "dark"),
            ("stream-phone", smeared, 360, "light"),
            ("stream-resolved", f"{foreign}?alert={over.id}", 1100, "light"),
            ("alerts", "/alerts", 1100, "light"),
            ("profile", "/profile", 1100, "light"),
            ("health", "/health", 1100, "light"),
        ):
            shoot(browser, server.address, folder, name, path, width, scheme)
        browser.close()
        server.stop()
        store.close()


if __name__ == "__main__":
    main()
