"""State that an earlier version wrote is read without loss, and the monitor continues from it; on a real Redis.

`state_before.json` was written by 0.1.0 as of 78af8d0: `keys` holds each key of one monitor as Redis 6.2 dumps it,
`values` what that version read from them. Never regenerate it with newer code: it stands for what users have.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import astuple, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core import alert_state, silences
from monitor.core.buckets import Layout
from monitor.core.types import Alert, Applied, ApplyStatus, Delta, Partition, Totals
from monitor.rules.sequential.plan import Sequential
from monitor.rules.sequential.rows import unpack
from monitor.store import OTHER_STREAM, ClaimStatus, Store, open_store
from monitor.store.checkpoints import SLICES
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import store_rows, stored_rows

STATE: dict[str, Any] = json.loads((Path(__file__).parent / "state_before.json").read_text())
READ = STATE["values"]
DOCUMENTS: list[str] = READ["documents"]
FINGERPRINT = "3f0c1e5a9b7d2468"
P0, P1 = PARTITIONS = Partition("images", 0), Partition("images", 1)
START_MS, BUCKET_MS, END_MS = 1_790_000_000_000, 10_000, 1_790_003_600_000
OPEN_MS = START_MS + 3 * BUCKET_MS
RECEIVERS = ("hook", "late", "pager")


@pytest.fixture
def store() -> Iterator[Store]:
    with PrivateRedis() as server:
        opened = open_store(RedisSettings(url=SecretStr(server.url)), "before")
        for key, (dump,) in STATE["keys"].items():
            opened._connection.client.restore(key, 0, b64decode(dump))
        yield opened
        opened.close()


def plain(value: Any) -> Any:
    """The value as the file holds it: records, tuples and vectors as lists, bytes as hexadecimal, keys as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(astuple(value)) if is_dataclass(value) and not isinstance(value, type) else value


def test_cursors_facts_and_totals_are_those_of_before(store: Store) -> None:
    assert plain(store.catalog.partitions()) == READ["partitions"]
    assert plain(store.partitions.cursors(PARTITIONS)) == READ["cursors"]
    assert plain({p: store.partitions.facts(p) for p in PARTITIONS}) == READ["facts"]
    assert plain(store.counts.totals(PARTITIONS)) == READ["totals"]
    assert plain(store.counts.rejected_reasons(PARTITIONS)) == READ["rejected_reasons"]
    assert store.counts.streams_over_limit(PARTITIONS) == READ["streams_over_limit"] == 3


def test_counts_and_images_are_those_of_before(store: Store) -> None:
    for which, buckets in READ["buckets"].items():
        found = store.counts.buckets(PARTITIONS, FINGERPRINT, START_MS, END_MS, (which,))
        assert plain(found) == buckets
    assert plain(store.partitions.open_buckets(PARTITIONS)) == READ["open_buckets"]
    assert store.partitions.sealed_buckets(PARTITIONS, READ["evaluator"][1]) == READ["sealed_undecided"]
    unusual = store.exemplars.unusual(PARTITIONS, FINGERPRINT, "cam-1", START_MS, END_MS, 10)
    assert [row[:-1] for row in plain(unusual)] == READ["unusual"]  # without `beyond`, which is not stored
    assert [row[:-1] for row in plain(store.exemplars.typical(PARTITIONS, FINGERPRINT, "cam-1"))] == READ["typical"]


def test_the_evaluator_finds_its_alerts_rule_states_and_profiles(store: Store) -> None:
    assert plain(store.evaluation.state()) == READ["evaluator"]
    alerts = store.evaluation.alerts()
    assert [[*key, json.loads(alert_state.to_json(alert))] for key, alert in sorted(alerts.items())] == READ["alerts"]
    assert {str(alert.phase) for alert in alerts.values()} == {"firing", "pending", "resolved"}
    (layout,) = store.catalog.layouts().values()
    assert {FINGERPRINT: json.loads(layout.to_json())} == READ["layouts"]
    assert {name: json.loads(text) for name, text in store.catalog.profiles().items()} == READ["profiles"]
    rows = stored_rows(store, "drift", FINGERPRINT)
    assert {stream: rule_state(layout, row) for stream, row in rows.items()} == READ["rule_states"]
    decided_ms = READ["evaluator"][1]
    assert store.checkpoints.marks() == (dict.fromkeys(range(SLICES), decided_ms), False)


def rule_state(layout: Layout, row: bytes) -> list[object]:
    """A row as the file describes it; a row that the rule does not know would come back as an empty one."""
    state = unpack(Sequential(), layout, [row])
    digest = blake2b(row, digest_size=8).hexdigest()
    return [digest, int(state["images"][0]), bool(state["firing"][0]), int(state["bucket_ms"][0])]


def test_silences_and_what_receivers_know_are_those_of_before(store: Store) -> None:
    kept = {name: silences.from_json(text) for name, text in store.silences.all().items()}
    assert {name: json.loads(silences.to_json(silence)) for name, silence in kept.items()} == READ["silences"]
    outbox = store.outbox
    assert outbox.self_alerts() == {"layerwatch-gap images:0": DOCUMENTS[6]}
    assert outbox.failing() == {"pager": DOCUMENTS[6]}
    assert outbox.receivers() == set(RECEIVERS)
    fired = json.loads(DOCUMENTS[0])["data"]["alert_id"]
    assert [outbox.held(name) for name in RECEIVERS] == [{fired: f"told\n{DOCUMENTS[0]}"}, {}, {fired: "told\n"}]
    (dead,) = outbox.dead_alerts()
    assert (dead.receiver, dead.reason, dead.document) == ("pager", "answered 410", DOCUMENTS[1])
    assert plain({name: outbox.backlog(name) for name in RECEIVERS}) == READ["backlog"]


def test_a_heartbeat_without_a_break_still_counts_from_the_time_of_before(store: Store) -> None:
    assert store.evaluation.heartbeat(START_MS + 4 * BUCKET_MS, 60.0) == READ["heartbeat"]


def test_a_new_owner_goes_on_at_the_same_record_and_adds_to_the_totals(store: Store) -> None:
    next_offset = READ["cursors"]["images:0"][0]
    claim = store.partitions.claim(P0, 5, "new", "log-1")
    assert claim.status is ClaimStatus.OK
    assert claim.cursor is not None
    assert (claim.cursor.next_offset, claim.cursor.log_id, claim.cursor.recent.hex()) == (next_offset, "log-1", "a6")
    vector = np.array([*range(9), 36, 2, 0, 1, 1, 3], dtype=np.uint32)
    vectors = {(FINGERPRINT, start, "cam-1"): vector for start in (START_MS, OPEN_MS)}
    delta = Delta(P0, "new", next_offset, next_offset + 80, END_MS, vectors, reasons={("cam-1", "format"): 2})
    assert store.partitions.apply([delta]) == [Applied(ApplyStatus.OK, next_offset + 80)]
    before = {name: Totals(*row) for name, row in READ["totals"].items()}
    after = store.counts.totals(PARTITIONS)
    assert after == {**before, "cam-1": before["cam-1"] + Totals(72, 4, 36, 2, 2)}
    assert store.counts.rejected_reasons(PARTITIONS) == {
        "cam-1": {"format": 4, "truncated": 1},
        OTHER_STREAM: {"truncated": 1},
    }
    sealed = store.counts.buckets(PARTITIONS, FINGERPRINT, START_MS, END_MS, ("closed",))
    assert plain(sealed) == READ["buckets"]["closed"]
    (opened,) = store.counts.buckets(PARTITIONS, FINGERPRINT, START_MS, END_MS, ("open",)).values()
    images = READ["buckets"]["open"][str(OPEN_MS)]["cam-1"][-6]
    assert int(opened["cam-1"][-6]) == images + 72


def test_the_owner_of_before_is_fenced_by_the_new_one(store: Store) -> None:
    next_offset = READ["cursors"]["images:1"][0]
    assert next_offset > 2**53  # offsets are exact beyond what a Lua number holds
    delta = Delta(P1, "owner-b", next_offset, next_offset + 1, END_MS, {})
    assert store.partitions.apply([delta])[0].status is ApplyStatus.OK
    assert store.partitions.claim(P1, 6, "new").status is ClaimStatus.OK
    again = Delta(P1, "owner-b", next_offset + 1, next_offset + 2, END_MS, {})
    assert store.partitions.apply([again]) == [Applied(ApplyStatus.FENCED, next_offset + 1)]


def test_the_next_decision_builds_on_the_version_of_before(store: Store) -> None:
    (undecided,) = READ["sealed_undecided"]
    sealed = store.sealing.read()
    assert sealed.bucket_ms == READ["evaluator"][1], "a version without shards noted it with each decision"
    members = store.partitions.seal(PARTITIONS, undecided, sealed.bucket_ms, sealed.judged)
    assert plain(store.counts.tables(members)) == {FINGERPRINT: READ["buckets"]["closed"][str(undecided)]}
    version = READ["evaluator"][0]
    assert not store.evaluation.decide(version - 1, undecided, {}, [])
    assert store.evaluation.decide(version, undecided, [Alert("slow", "cam-1")], ["next"])
    state = store.evaluation.state()
    assert (state.version, state.bucket_ms) == (version + 1, undecided)
    assert len(store.evaluation.alerts()) == len(READ["alerts"]) - 1
    before = stored_rows(store, "drift", FINGERPRINT)
    store_rows(store, "drift", FINGERPRINT, {"cam-1": b"\x01"})
    assert stored_rows(store, "drift", FINGERPRINT) == {**before, "cam-1": b"\x01"}
    assert not store._connection.client.hexists(store._monitor_keys.key("rule", FINGERPRINT, "drift"), "cam-1")
    assert [entry.document for entry in store.outbox.fetch("late", START_MS)] == [*DOCUMENTS, "next"]


def test_every_receiver_gets_what_it_had_not_settled_and_the_outbox_empties(store: Store) -> None:
    outbox = store.outbox
    assert outbox.keep_receivers(RECEIVERS) == []
    for name in RECEIVERS:
        expected = [
            (entry_id, "" if document is None else DOCUMENTS[document], *retry)
            for entry_id, document, *retry in READ["entries"][name]
        ]
        assert [astuple(entry) for entry in outbox.fetch(name, START_MS + 1_000)] == expected
    due = outbox.fetch("hook", START_MS + 60_000)[0]
    assert (due.document, due.attempts) == (DOCUMENTS[1], 2)
    for name in RECEIVERS:
        for entry in outbox.fetch(name, END_MS):
            assert outbox.settle(name, entry.id)
        assert outbox.backlog(name).entries == 0
    assert outbox.end_self_alert("layerwatch-gap images:0", DOCUMENTS[6], "over")
    assert [entry.document for entry in outbox.fetch("hook", END_MS)] == ["over"]
