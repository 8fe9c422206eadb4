"""The schema number of the state: older state is taken over, newer state is refused by name; on a real Redis.

`lua_before/` holds the scripts with which 0.1.0, which knows no schema number, claims a partition and the lease.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.types import Alert, ApplyStatus, Delta, Partition
from monitor.store import (
    ClaimStatus,
    Sealed,
    Store,
    StoreConfigError,
    connection,
    evaluation,
    open_store,
    partitions,
    shards,
)
from monitor.store.connection import SCHEMA, load_scripts
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

P = Partition("images", 0)
VECTOR = np.array([*range(9), 36, 2, 0, 1, 5, 3], dtype=np.uint32)
BEFORE = load_scripts(Path(__file__).parent / "lua_before")
NEWER = f"the state has schema {SCHEMA + 1}, of a newer version; this one keeps schemas up to {SCHEMA}: upgrade this"
_monitors = itertools.count()


@pytest.fixture
def store(redis_server: PrivateRedis) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"schema-{next(_monitors)}")
    assert opened.partitions.start(P, 4, "ours", 10).status is ClaimStatus.OK
    yield opened
    opened.close()


def key(store: Store, name: str) -> str:
    return store._monitor_keys.key(name)


def cursor_key(store: Store) -> str:
    return store.counts._keys.of(P, "cursor")


def written_by_the_version_before(store: Store) -> None:
    """Turn the cursor into what a version without a schema number leaves."""
    client = store._connection.client
    client.delete(cursor_key(store))
    fields = {"next": "10", "high": "0", "token": "theirs", "generation": "4", "claimed_ms": "1", "idle": "0"}
    client.hset(cursor_key(store), mapping={**fields, "log_id": "log-1"})


@pytest.fixture
def newer(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A state that a process with the next schema number has claimed, and whose lease it holds."""
    for module in (connection, evaluation, partitions, shards):
        monkeypatch.setattr(module, "SCHEMA", SCHEMA + 1)
    assert store.partitions.claim(P, 5, "newer").status is ClaimStatus.OK
    assert store.shards.lease("newer", 0.001).held
    monkeypatch.undo()
    return store


REFUSED: dict[str, Callable[[Store], object]] = {
    "claim": lambda store: store.partitions.claim(P, 9, "older"),
    "start": lambda store: store.partitions.start(P, 9, "older", 0),
    "seal": lambda store: store.partitions.seal([P], 0),
    "lease": lambda store: store.shards.lease("older", 15.0),
    "seal the bucket": lambda store: store.sealing.add(Sealed(), 0, {P: 1}),
    "decide": lambda store: store.evaluation.decide(0, 0, [Alert("rate", "cam-1")], ["document"]),
    "look": lambda store: store.evaluation.check_schema(),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_state_of_a_newer_version_is_refused_by_its_number(newer: Store, call: Callable[[Store], object]) -> None:
    client = newer._connection.client
    before = {name: client.dump(name) for name in (cursor_key(newer), key(newer, "evaluator"))}
    with pytest.raises(StoreConfigError, match=NEWER):
        call(newer)
    assert {name: client.dump(name) for name in before} == before


def test_a_newer_state_is_not_opened(newer: Store, redis_server: PrivateRedis) -> None:
    monitor = f"schema-{next(_monitors) - 1}"
    assert key(newer, "x").startswith(f"{{lw:{monitor}:")
    with pytest.raises(StoreConfigError, match=NEWER):
        open_store(RedisSettings(url=SecretStr(redis_server.url)), monitor)


def test_an_older_owner_counts_nothing_more_once_a_newer_one_has_claimed_its_partition(newer: Store) -> None:
    delta = Delta(P, "ours", 10, 20, 5_000, {("fp", 0, "cam-1"): VECTOR})
    assert newer.partitions.apply([delta])[0].status is ApplyStatus.FENCED


def test_a_state_without_a_number_is_taken_over_with_its_generation(store: Store) -> None:
    written_by_the_version_before(store)
    cursor = store.partitions.cursors([P])[P]
    assert cursor is not None
    assert (cursor.next_offset, cursor.generation, cursor.log_id) == (10, 4, "log-1")
    store._connection.client.hset(cursor_key(store), "applied_ms", 2**52)  # its owner is alive
    assert store.partitions.claim(P, 3, "late").status is ClaimStatus.STALE
    claim = store.partitions.claim(P, 5, "ours")
    assert (claim.status, claim.cursor and claim.cursor.generation) == (ClaimStatus.OK, 5)
    assert store.partitions.claim(P, 4, "late").status is ClaimStatus.STALE
    assert int(store._connection.client.hget(cursor_key(store), "schema")) == SCHEMA


def test_a_process_that_knows_no_number_can_claim_nothing_that_we_have_written(store: Store) -> None:
    def claim_of_before() -> list[object]:
        args = (2**40, "theirs", "log-1", 120, 60)  # far newer than our generation
        reply: list[object] = store._connection.run(BEFORE["claim"], [cursor_key(store)], *args)
        return reply

    assert claim_of_before()[0] == b"stale"
    written_by_the_version_before(store)
    assert claim_of_before()[0] == b"ok"
    assert store.partitions.claim(P, 2**41, "ours").status is ClaimStatus.OK
    store._connection.client.hset(cursor_key(store), "applied_ms", 1)  # silent for long
    assert claim_of_before()[0] == b"stale"
    delta = Delta(P, "theirs", 10, 20, 5_000, {("fp", 0, "cam-1"): VECTOR})
    assert store.partitions.apply([delta])[0].status is ApplyStatus.FENCED


def test_an_evaluator_that_knows_no_number_loses_the_lease_and_never_gets_it_back(store: Store) -> None:
    def lease_of_before() -> int:
        return int(store._connection.run(BEFORE["lease"], [key(store, "lease")], "theirs", 15_000))

    assert lease_of_before() == 1
    assert store.shards.lease("ours", 15.0).held
    assert lease_of_before() == 0
    store.shards.leave("ours")
    assert lease_of_before() == 0
    assert store.shards.lease("another", 15.0).held
