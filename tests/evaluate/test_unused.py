"""What rules keep under a profile goes a week after the profile was last used, and no sooner; on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from pydantic import SecretStr

from monitor.core.buckets import BINS, IMAGES, LEVELS, Layout
from monitor.core.replicas import Replica
from monitor.core.shadow import shadow_of
from monitor.core.types import Alert, AlertPhase, Delta, Partition
from monitor.evaluate import evaluator as evaluators
from monitor.evaluate.evaluator import UNUSED_MS, Evaluator, HeldShard
from monitor.evaluate.presentation import Presentation
from monitor.rules.sequential.rule import SequentialRule
from monitor.store import Store, StoreError, connection, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.evaluate.parts import closing_of, stored_rows

LAYOUT = Layout(("ood",), (1999,), (False,), (True,), (1.0,))
P = Partition("images", 0)
T0_MS, BUCKET_MS = 1_750_000_000_000, 10_000
STREAMS = [f"cam-{i}" for i in range(60)]
RULE = SequentialRule(name="drift", kind="sequential")
PROFILES = ("old", "night", "new")
PROCESS = Replica("host/1", {}, ["new"])
_monitors = itertools.count()


class Fleet:
    """Sixty streams of one partition, judged by one profile at a time."""

    def __init__(self, store: Store) -> None:
        self.store, self._rng, self._offset = store, np.random.default_rng(0), 0
        self.now_ms = T0_MS
        store.catalog.register_partitions([P])
        store.catalog.put_layouts(dict.fromkeys(PROFILES, LAYOUT))
        store.partitions.start(P, 1, "t", 0)

    def send(self, profile: str, buckets: int = 3) -> None:
        """Images that close the buckets before."""
        for _ in range(buckets):
            vectors = {}
            for stream in STREAMS:
                vector = vectors[profile, self.now_ms, stream] = np.zeros(LAYOUT.size, dtype=np.uint32)
                vector[:BINS] = self._rng.multinomial(20, -np.diff([1.0, *LEVELS, 0.0]))
                vector[IMAGES] = 20
            delta = Delta(P, "t", self._offset, self._offset + 1, self.now_ms, vectors)
            self.store.partitions.apply([delta])
            self._offset, self.now_ms = self._offset + 1, self.now_ms + BUCKET_MS

    def evaluator(self, *, lives_on: bool = False) -> Evaluator:
        """Another process takes over."""
        closing, held = closing_of(self.store, lateness_s=0), HeldShard(self.store.first, lives_on=lives_on)
        made = Evaluator(self.store, (RULE,), {}, closing, Presentation("fleet"), held)
        made.load()
        return made

    def kept(self) -> set[str]:
        """The profiles of which Redis holds rows."""
        return {profile for profile in PROFILES if stored_rows(self.store, RULE.name, profile)}


def in_memory(evaluator: Evaluator) -> set[str]:
    states = evaluator.memory.rule_states
    return {p for p in PROFILES if any(states.rows(RULE, p, LAYOUT).get(stream) for stream in STREAMS)}


@pytest.fixture
def fleet(redis_server: PrivateRedis) -> Iterator[Fleet]:
    """The old profile judged by day and the other by night; then, for eight days, nothing; now a new one judges."""
    made = Fleet(open_store(RedisSettings(url=SecretStr(redis_server.url)), f"unused-{next(_monitors)}"))
    made.send("old")
    made.send("night")
    made.evaluator().look()
    made.now_ms += UNUSED_MS + 86_400_000
    made.send("new")
    made.evaluator().look()
    assert made.kept() == {*PROFILES}
    yield made
    made.store.close()


def test_rows_of_a_profile_that_nobody_uses_go_from_redis_and_memory_and_others_stay(fleet: Fleet) -> None:
    fleet.store.catalog.put_replica(PROCESS, {"new", "night"})  # loaded for a condition that has not come this week
    evaluator = fleet.evaluator()
    assert in_memory(evaluator) == {*PROFILES}
    evaluator.give_up_unused()
    assert fleet.kept() == in_memory(evaluator) == {"night", "new"}
    fleet.send("old", 4)  # rolled back after all: the rule begins anew, in each process alike
    evaluator.look()
    assert in_memory(fleet.evaluator()) == in_memory(evaluator) == {*PROFILES}
    rows = [e.memory.rule_states.rows(RULE, "old", LAYOUT).get(STREAMS[0]) for e in (evaluator, fleet.evaluator())]
    assert rows[0] == rows[1] is not None
    evaluator.give_up_unused()
    assert fleet.kept() == {*PROFILES}


@pytest.mark.parametrize("use", ["shadow", "process of before", "said this week", "alert", "counts"])
def test_what_may_still_be_needed_stays(fleet: Fleet, use: str) -> None:
    store = fleet.store
    store.catalog.put_replica(PROCESS, {"new", "night"})
    if use == "shadow":  # as Profiles.loaded names it
        store.catalog.put_replica(PROCESS, {shadow_of("old").removeprefix("shadow-")})
    elif use == "process of before":  # of a version that does not say all that it has loaded
        store.catalog.put_replica(replace(PROCESS, name="host/2", fingerprints=["old"]))
    elif use == "said this week":
        store.catalog._in_use.put("old", str(store.catalog._now_ms() - UNUSED_MS + 60_000))
    elif use == "alert":
        alert = Alert("other", "cam-1", AlertPhase.FIRING, "a", T0_MS, T0_MS, breached_by=("old",))
        state = store.evaluation.state()
        assert store.evaluation.decide(state.version, state.bucket_ms or 0, [alert], [])
    else:
        fleet.send("old", 2)
        fleet.now_ms += UNUSED_MS - 60_000
        fleet.send("new", 2)
    evaluator = fleet.evaluator()
    if use == "counts":
        evaluator.look()
    evaluator.give_up_unused()
    assert fleet.kept() == in_memory(evaluator) == {*PROFILES}


def test_what_a_process_said_more_than_a_week_ago_keeps_nothing(fleet: Fleet) -> None:
    fleet.store.catalog.put_replica(PROCESS, {"new", "night"})
    fleet.store.catalog._in_use.put("old", str(fleet.store.catalog._now_ms() - UNUSED_MS - 60_000))
    fleet.evaluator().give_up_unused()
    assert fleet.kept() == {"night", "new"}


def test_an_evaluator_that_another_has_overtaken_removes_nothing(fleet: Fleet) -> None:
    stale = fleet.evaluator()
    fleet.send("new")
    fleet.evaluator().look()
    stale.give_up_unused()
    assert fleet.kept() == {*PROFILES}


def test_after_a_crash_in_the_midst_of_it_the_next_evaluator_removes_the_rest(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.store.catalog.put_replica(PROCESS, {"new", "night"})
    evaluator, run, runs = fleet.evaluator(), connection.Connection.run, itertools.count()

    def fails_at_the_third(self: connection.Connection, script: connection.Script, *given: object) -> object:
        if script.name == "give_up" and next(runs) == 2:
            raise StoreError("gone")
        return run(self, script, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(connection.Connection, "run", fails_at_the_third)
    before = len(stored_rows(fleet.store, RULE.name, "old"))
    with pytest.raises(StoreError):
        evaluator.give_up_unused()
    assert 0 < len(stored_rows(fleet.store, RULE.name, "old")) < before
    fleet.evaluator().give_up_unused()
    assert fleet.kept() == {"night", "new"}


def test_it_is_looked_for_once_the_installation_has_run_for_a_while(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.evaluator(lives_on=True).look()
    assert fleet.kept() == {*PROFILES}  # processes may still be starting
    monkeypatch.setattr(evaluators, "SETTLE_MS", 0)
    monkeypatch.setattr(evaluators, "FORGET_LOOK_S", 1e9)  # the first look comes however short this machine is up
    fleet.evaluator().look()
    assert fleet.kept() == {*PROFILES}  # a replay
    fleet.evaluator(lives_on=True).look()
    assert fleet.kept() == {"new"}
