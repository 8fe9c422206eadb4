"""Alerts about the monitor itself begin and end once per episode; on a real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import jsonschema
import pytest
from pydantic import SecretStr

from monitor.core.types import Partition
from monitor.notify.self_alerts import DEAD_LETTERS, GAP, SelfAlerts
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.parts import Clock

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "alert.schema.json").read_text())
NOW_MS = 1_800_000_000_000
_names = count()


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"own-alerts-{next(_names)}")
    yield opened
    opened.close()


def sent(store: Store) -> list[dict[str, object]]:
    return [json.loads(entry.document) for entry in store.outbox.fetch("hook", NOW_MS)]


def test_an_episode_begins_once_and_ends_once_and_the_next_one_is_another(store: Store) -> None:
    clock = Clock(NOW_MS)
    alerts = SelfAlerts(store, "own-alerts", has_receivers=True, now_ms=clock)
    for _ in range(3):
        alerts.raise_alert(GAP, "images:0", "images:0: retention removed 7 records unread")
    alerts.raise_alert(DEAD_LETTERS, "images:0", "images:0: too many")
    clock.pass_s(0.001)
    for _ in range(2):
        alerts.end(["images:0", "images:1"], GAP)
    clock.pass_s(0.001)
    alerts.raise_alert(GAP, "images:0", "images:0: retention removed 9 records unread")
    documents = sent(store)
    for document in documents:
        jsonschema.validate(document, SCHEMA)
    rows = [(d["type"], d["data"]["rule"], d["data"]["stream"]) for d in documents]  # type: ignore[index]
    assert rows == [
        ("alert.firing", GAP, "images:0"),
        ("alert.firing", DEAD_LETTERS, "images:0"),
        ("alert.resolved", GAP, "images:0"),
        ("alert.firing", GAP, "images:0"),
    ]
    ids = [d["data"]["alert_id"] for d in documents]  # type: ignore[index]
    assert ids[0] == ids[2] != ids[3]


def test_without_receivers_nothing_waits_for_them(store: Store) -> None:
    alerts = SelfAlerts(store, "own-alerts", has_receivers=False)
    alerts.raise_alert(GAP, "images:0", "x")
    alerts.end(["images:0"], GAP)
    assert sent(store) == []


def test_a_cursor_remembers_up_to_where_it_is_a_rebuild(store: Store) -> None:
    partition = Partition("images", 0)
    store.partitions.start(partition, 1, "a", 100, "", 250)
    store.partitions.start(partition, 1, "a", 120)
    cursor = store.partitions.cursors([partition])[partition]
    assert cursor is not None
    assert (cursor.next_offset, cursor.rebuild_until) == (120, 250)


def test_a_server_without_an_append_only_file_is_not_waited_for(store: Store) -> None:
    assert store.settle_on_disk()
