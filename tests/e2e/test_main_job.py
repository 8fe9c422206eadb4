"""The main job on a real broker: produce, run, alert, resolve; and what the process says about itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standardwebhooks import Webhook

from monitor.store.child_process import free_port
from monitor.store.private_server import PrivateRedis
from tests.e2e.running import config_file, layerwatch, wait_for
from tests.faults.rig import Daemon, Zygote
from tests.kafka.broker import Cluster
from tests.pictures import pictures
from tests.plain_http import get

pytestmark = pytest.mark.slow

SECRET = "whsec_bGF5ZXJ3YXRjaC10ZXN0LXNlY3JldC0wMDAx"


class Hook:
    """A real HTTP receiver that verifies every signature; refuses the first delivery with 500."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.refused = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if not hook.refused:
                    hook.refused += 1
                    self.send_response(500)
                else:
                    Webhook(SECRET).verify(body, dict(self.headers.items()))
                    hook.documents.append(json.loads(body))
                    self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    opened = Hook()
    yield opened
    opened.close()


def save(folder: Path, seed: int, count: int, stripes: bool = False) -> Path:
    folder.mkdir()
    for name, image in pictures(seed, count, stripes):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.mark.kafka
def test_a_drift_in_kafka_becomes_a_signed_alert_and_resolves(
    kafka_broker: Cluster, redis_server: PrivateRedis, zygote: Zygote, profile_folder: Path, tmp_path: Path, hook: Hook
) -> None:
    topic = kafka_broker.create_topic("main-job", 2, {"retention.ms": "-1"})  # its images are old
    config = config_file(
        tmp_path,
        {
            "monitor": "main-job",
            "kafka": {
                "bootstrap_servers": [kafka_broker.bootstrap_servers],
                "topics": [topic],
                "group_id": "main-job",
                "dead_letter_topic": kafka_broker.create_topic("main-job-dead-letters"),
            },
            "redis": {"url": redis_server.url},
            "scoring": {"profile": str(profile_folder)},
            "buckets": {"seconds": 10, "lateness_s": 5, "idle_timeout_s": 2},
            "rules": [
                {"name": "drift", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 30}
            ],
            "receivers": [{"name": "hook", "type": "webhook", "url": hook.url, "secret": SECRET}],
        },
    )
    daemon = Daemon(zygote, config, tmp_path / "daemon.log")
    try:
        at_s = 1_760_000_000
        for seed, stripes, seconds in ((21, False, 60), (22, True, 60), (23, False, 120)):
            images = save(tmp_path / f"images-{seed}", seed, seconds * 2, stripes)
            sent = zygote.layerwatch(
                "produce", str(images), "--stream", "cam-1", "--start-time", str(at_s * 1000), "--rate", "2",
                "-c", str(config),
            )  # fmt: skip
            assert sent.returncode == 0, sent.stderr
            at_s += seconds
        wait_for("the alert and its end", lambda: daemon.check() or len(hook.documents) >= 2)

        fired, resolved = hook.documents
        assert (fired["type"], resolved["type"]) == ("alert.firing", "alert.resolved")
        assert fired["data"]["alert_id"] == resolved["data"]["alert_id"]
        assert fired["data"]["stream"] == "cam-1"
        # the strange images begin 60 s after the first one, and a bucket of ten seconds or two shows them
        assert "2025-10-09T08:54:20" <= fired["timestamp"] <= "2025-10-09T08:55:10"
        assert fired["data"]["severity"]["lower"] > 0.1
        assert {signal["signal"] for signal in fired["data"]["signals"]} & {"ood", "layer1", "layer2", "layer3"}
        assert fired["data"]["exemplars"][0]["p_value"] < 0.1
        assert hook.refused == 1

        pages = {
            path: get(f"http://127.0.0.1:{daemon.port}{path}")
            for path in ("/healthz", "/readyz", "/metrics", "/api/v1/streams")
        }
        assert {path: page.status_code for path, page in pages.items()} == dict.fromkeys(pages, 200)
        assert "layerwatch_images_applied_total 480.0" in pages["/metrics"].text
        assert pages["/api/v1/streams"].json()["streams"]["cam-1"]["applied"] == 480
        assert daemon.terminate() == 0
        assert daemon.events("daemon.stopped")
    finally:
        daemon.kill()


def test_a_wrong_configuration_exits_78_with_one_line_per_key(tmp_path: Path, zygote: Zygote) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("buckets: {seconds: -5}\nkafak: {}\n")
    for done in (layerwatch("run", "-c", str(path)), zygote.layerwatch("check-config", "-c", str(path))):
        assert done.returncode == 78
        assert done.stderr.splitlines() == [
            f"{path}: buckets.seconds: must be greater than 0 (got -5)",
            f"{path}: kafak: unknown key",
        ]


def test_a_profile_that_is_not_there_exits_78_and_says_how_to_make_one(
    tmp_path: Path, redis_server: PrivateRedis, zygote: Zygote
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"redis: {{url: '{redis_server.url}'}}\nscoring: {{profile: {tmp_path / 'none'}}}\n")
    done = zygote.layerwatch("run", "-c", str(path))
    assert done.returncode == 78
    assert "scoring.profile" in done.stderr
    assert "layerwatch fit" in done.stderr


def test_a_redis_that_is_away_exits_69_and_names_it(tmp_path: Path, profile_folder: Path, zygote: Zygote) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"redis: {{url: 'redis://127.0.0.1:{free_port()}/0'}}\nscoring: {{profile: {profile_folder}}}\n")
    done = zygote.layerwatch("run", "-c", str(path))
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1].startswith("layerwatch run: redis: ")
