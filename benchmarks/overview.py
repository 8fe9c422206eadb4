"""How long the overview page takes with many streams, on a real Redis and a real server; prints one table."""

from __future__ import annotations

import argparse
import statistics
import time

import httpx
import numpy as np
from pydantic import SecretStr

from detectors.images import properties
from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.core.types import Alert, AlertPhase, Delta, Partition, StreamFacts
from monitor.fleet.overview import Overview
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from monitor.web.server import WebServer
from monitor.web.settings import WebSettings
from monitor.web.site import Site

LEARNED = ("ood", "layer1", "layer2", "layer3", "layer4")
SIGNALS = (*LEARNED, *properties.NAMES)
LAYOUT = Layout(SIGNALS, (1000,) * len(SIGNALS), (False,) * len(SIGNALS), (True,) * len(SIGNALS), (1.0,) * len(SIGNALS))
BUCKET_MS = 10_000
OPEN = 2
"""Buckets that are not sealed yet: lateness is one bucket."""
IMAGES_EACH = 20


def fill(store: Store, streams: int, buckets: int, partitions: int) -> None:
    """An hour of a fleet, ending now, through the product's own calls; twenty alerts are firing."""
    rng = np.random.default_rng(0)
    masses = -np.diff([1.0, *LEVELS, 0.0])
    now_ms = time.time_ns() // 1_000_000 // BUCKET_MS * BUCKET_MS
    logs = [Partition("images", i) for i in range(partitions)]
    store.catalog.register_partitions(logs)
    store.catalog.put_layouts({"fp": LAYOUT})
    for log in logs:
        store.partitions.start(log, 1, "t", 0)
    for b in range(buckets):
        start = now_ms - (buckets - 1 - b) * BUCKET_MS
        counts = rng.multinomial(IMAGES_EACH, masses, (streams, len(SIGNALS))).reshape(streams, -1)
        table = np.zeros((streams, LAYOUT.size), dtype=np.uint32)
        table[:, : len(SIGNALS) * BINS] = counts
        table[:, IMAGES] = IMAGES_EACH
        for i, log in enumerate(logs):
            mine = range(i, streams, partitions)
            vectors = {("fp", start, f"site-{s % 50}/cam-{s}"): table[s] for s in mine}
            facts = {stream: StreamFacts(b"d" * 16, 1, "640x480/RGB", start, start) for _, _, stream in vectors}
            store.partitions.apply([Delta(log, "t", b, b + 1, start, vectors, facts)])
        if b < buckets - OPEN:
            store.partitions.seal(logs, start)
    firing = [Alert("drift", f"site-{s}/cam-{s}", AlertPhase.FIRING, f"{s:016x}", now_ms - 600_000) for s in range(20)]
    store.evaluation.decide(0, now_ms, firing, [])


def timed(call: object, times: int, pause_s: float = 0.0) -> list[float]:
    """Milliseconds of each call."""
    found = []
    for _ in range(times):
        time.sleep(pause_s)
        started = time.perf_counter()
        call()  # type: ignore[operator]
        found.append(1000 * (time.perf_counter() - started))
    return found


def main() -> None:
    """Fill, warm up, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--buckets", type=int, default=360)
    parser.add_argument("--partitions", type=int, default=12)
    args = parser.parse_args()
    with PrivateRedis() as redis:
        store = open_store(RedisSettings(url=SecretStr(redis.url)), "bench")
        started = time.perf_counter()
        fill(store, args.streams, args.buckets, args.partitions)
        print(f"{args.streams} streams, {args.buckets} buckets, filled in {time.perf_counter() - started:.0f} s")
        alone = Overview(store, BUCKET_MS, reach_ms=60_000)
        print(f"layerwatch streams (reads the last minute): {timed(alone.snapshot, 1)[0]:.0f} ms")
        server = WebServer(Site(store, "bench", WebSettings(port=0), BUCKET_MS, lambda: ""), "127.0.0.1", 0)
        started = time.perf_counter()
        server.start()
        client = httpx.Client(base_url=server.address, timeout=60)
        # the first visit, while the past is still being read
        print(f"ready after {time.perf_counter() - started:.2f} s")
        print(f"first page: {timed(lambda: client.get('/'), 1)[0]:.0f} ms")
        print(f"while the past is read: {max(timed(lambda: client.get('/'), 3, 1.6)):.0f} ms at most")
        while "catching up" in client.get("/health").text:
            time.sleep(0.2)
        print(f"an hour read after {time.perf_counter() - started:.1f} s")
        for name, pause_s in (("read again", 1.1), ("within a second", 0.0)):
            for path in ("/", "/?q=cam-49", "/streams/site-0%2Fcam-0", "/api/v1/streams"):
                took = timed(lambda path=path: client.get(path).raise_for_status(), 10, pause_s)
                size = len(client.get(path).content)
                print(
                    f"{name:16} {path:28} median {statistics.median(took):4.0f} ms, max {max(took):4.0f}, {size} bytes"
                )
        server.stop()
        store.close()


if __name__ == "__main__":
    main()
