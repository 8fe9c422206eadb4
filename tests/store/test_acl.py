"""The rights that the deployment page asks for are enough for the whole product, and not more than it uses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from redis import Redis

from monitor.config.schema import Config
from monitor.sources import open_producer
from monitor.store.child_process import free_port
from monitor.store.private_server import PrivateRedis
from tests.e2e.running import wait_for
from tests.faults.rig import Daemon, Hook, Zygote, normal, strange
from tests.plain_http import get

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/deploy.md").read_text()
TOPIC, PASSWORD = "acl-images", "a/b"
NO_COMMANDS = {"loading"}
USED_BY_THE_CLIENT = {"client|setname", "eval", "evalsha", "info", "ping"}


def documented() -> tuple[list[str], list[str]]:
    """(rights of everybody, those of Redis Streams too), as on the page."""
    (line,) = re.findall(r"(?m)^    user layerwatch on >CHANGE-ME (.*)$", PAGE)
    (streams,) = re.findall(r"(?m)^- with `source: redis-stream`.*?: `(\+.*?)`", PAGE)
    return line.split(), streams.split()


def written(folder: Path) -> set[str]:
    """The commands in Lua and Python of a package."""
    lua = "".join(path.read_text() for path in folder.rglob("*.lua"))
    python = "".join(path.read_text() for path in folder.glob("*.py") if path.stem != "private_server")
    subcommands = {f"{name}|{sub}" for name, sub in re.findall(r'"(XGROUP|XINFO|CLIENT)", "(\w+)"', lua + python)}
    found = {*re.findall(r'redis\.p?call\("(\w+)"', lua), *re.findall(r'[(\[]"([A-Z]{3,})", ', python), *subcommands}
    containers = {"XGROUP", "XINFO", "CLIENT"}
    return {name.lower() for name in (found - containers) | subcommands} - NO_COMMANDS


@pytest.fixture(autouse=True)
def only_declared_keys() -> None:
    """Instead of that of conftest.py: this user may not change users."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    opened = Hook()
    yield opened
    opened.close()


def test_the_page_lists_what_the_code_calls() -> None:
    everybody, streams = ({right[1:] for right in rights if right[0] == "+"} for rights in documented())
    assert everybody == written(ROOT / "monitor/store") - {"waitaof"} | USED_BY_THE_CLIENT
    assert everybody | streams >= written(ROOT / "monitor/sources/redis_streams")


@pytest.mark.slow
def test_the_product_works_as_that_user_and_asks_for_nothing_else(
    zygote: Zygote, profile_folder: Path, tmp_path: Path, hook: Hook
) -> None:
    everybody, streams = documented()
    keys = [f"~{{lwq:{topic}:*" for topic in (TOPIC, f"{TOPIC}.dead", f"{TOPIC}.verdicts")]
    with PrivateRedis() as server, Redis.from_url(server.url) as admin, ExitStack() as stack:
        rights = [*everybody, *streams, *keys]
        if tuple(map(int, admin.info()["redis_version"].split(".")[:2])) >= (7, 2):
            rights += re.findall(r"(?m)^- from Redis 7.2 on: `(.*?)`", PAGE)[0].split()
        admin.execute_command("ACL", "SETUSER", "layerwatch", "on", f">{PASSWORD}", *rights)
        url = server.url.replace("redis://", f"redis://layerwatch:{quote(PASSWORD, safe='')}@")
        settings = {
            "source": "redis-stream",
            "redis": {"url": url},
            "redis_stream": {"topics": [TOPIC], "partitions": 2, "dead_letter_topic": f"{TOPIC}.dead", "lease_s": 2},
            "scoring": {"profile": str(profile_folder), "device": "cpu"},
            "decoding": {"workers": 1},
            "buckets": {"seconds": 10, "lateness_s": 5, "idle_timeout_s": 1},
            "rules": [
                {"name": "drift", "kind": "rate", "level": 0.1, "window_s": 30, "threshold": 0.3, "min_images": 10},
                {"name": "silent", "kind": "silence", "after_s": 3600},
            ],
            "receivers": [{"name": "hook", "type": "webhook", "url": hook.url}],
            "verdicts": {"type": "redis-stream", "target": f"{TOPIC}.verdicts"},
            "web": {"port": free_port()},
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        start_ms = time.time_ns() // 1_000_000 // 60_000 * 60_000 - 900_000
        producer = open_producer(Config.model_validate(settings).source_settings())
        for i, picture in enumerate([*normal(), b"no picture", *strange(), *normal()]):
            producer.send(TOPIC, picture, b"cam-%d" % (i % 2), (), start_ms + i * 1000)
        producer.flush()
        producer.close()
        daemon = Daemon(zygote, config, tmp_path / "log")
        stack.callback(daemon.kill)
        wait_for("the alert and its end", lambda: daemon.check() or len(hook.ids()) >= 4, 40)
        for path in ("/readyz", "/metrics", "/", "/alerts", "/profile", "/health", "/streams/cam-0"):
            assert get(f"http://127.0.0.1:{daemon.port}{path}").status_code == 200, path
        silence = ("silence", "--stream", "*", "--for", "1h")
        for words in (("alerts",), ("streams",), ("alerts", *silence), ("alerts", "send-test")):
            done = zygote.layerwatch(*words, "-c", str(config))
            assert done.returncode == 0, done.stderr
        (found,) = yaml.safe_load(zygote.layerwatch("alerts", "--json", "-c", str(config)).stdout)["silences"]
        assert zygote.layerwatch("alerts", "expire", found["id"], "-c", str(config)).returncode == 0
        assert daemon.terminate() == 0
        assert "store." not in daemon.log.read_text()
        assert admin.execute_command("ACL", "LOG") == []
