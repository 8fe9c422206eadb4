"""The shards that one process judges: takes leases, looks for closed buckets in turn, and changes the number of shards.

One thread for all of a process' shards: judging is Python and NumPy on small arrays, so threads would wait for each
other; processes are what makes it faster. Each shard gets a few buckets in turn: none waits for another's backlog.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog

from monitor.core.windows import EVERY
from monitor.evaluate.evaluator import Evaluator, HeldShard
from monitor.evaluate.lease import Leases, Tenure
from monitor.rules.rule import Rule
from monitor.store import Shard, Store, StoreError
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

RENEW_S = 2.0
"""Between renewals of the leases while the state is read: ten thousand streams take some seconds."""
LOOK_S = 0.5
"""Between looks for buckets to close: short compared with a bucket, so that alerts are hardly delayed."""
BUCKETS_IN_TURN = 8
"""Of one shard, before the next one looks."""

EvaluatorOf = Callable[[HeldShard], Evaluator]
OnLease = Callable[[Shard, Tenure | None], None]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A shard that this process judges."""

    shard: Shard
    tenure: Tenure
    evaluator: Evaluator


class Replica:
    """Judges the closed buckets of the shards whose leases it holds; `run` returns after `stop`.

    Args:
        evaluator_of: makes the evaluator of a shard.
        wished: shards that this process is configured for.
        on_lease: called with the tenure when a shard's lease is won, and with None when it is lost or given up.
    """

    def __init__(
        self,
        store: Store,
        evaluator_of: EvaluatorOf,
        rules: tuple[Rule, ...] = (),
        wished: int = 1,
        on_lease: OnLease = lambda _, __: None,
    ) -> None:
        self._store, self._evaluator_of, self._rules = store, evaluator_of, rules
        self._wished, self._on_lease = wished, on_lease
        self.leases = Leases(store.shards, wished)
        self.judged: dict[int, _Judged] = {}
        self._epoch: int | None = None
        self._stop = threading.Event()
        self._renewed_s = -math.inf
        self.seen_s = time.monotonic()
        """When it last looked, by the monotonic clock: for the watchdog."""

    def stop(self) -> None:
        """Make `run` release the leases and return."""
        self._stop.set()

    def run(self) -> None:
        """Look for buckets to close until `stop`; while Redis does not answer, keep trying."""
        while not self._stop.is_set():
            more = False
            try:
                more = self.turn()
            except StoreError as error:
                metrics.REDIS_ERRORS.inc()
                log.warning("evaluator.redis_away", error=str(error))
                self._lose(*self.judged)
            if not more:
                self._stop.wait(LOOK_S)
        held = bool(self.judged)
        self._lose(*self.judged)
        try:
            if held or self._epoch is not None:
                self.leases.release()
        except StoreError as error:
            log.warning("evaluator.lease_kept", error=str(error))

    def turn(self) -> bool:
        """Keep the leases, and look once at each shard that is held; returns whether more buckets are due.

        Raises:
            StoreError: Redis does not answer.
        """
        self.seen_s = time.monotonic()
        tenures = self._keep_leases()
        layout = self.leases.seats.layout
        if layout.moving_from:
            if 0 in tenures:
                self._move()
            return False
        for number, tenure in tenures.items():
            if number not in self.judged and not self._stop.is_set():
                self._guarded(number, partial(self._take, number, tenure))
        metrics.LEASE.set(0 in self.judged)
        metrics.SHARDS_HELD.set(len(self.judged))
        looks = [(number, partial(judged.evaluator.look, BUCKETS_IN_TURN)) for number, judged in self.judged.items()]
        more = [self._guarded(number, look) for number, look in looks if number in self.judged]
        self._change()
        return any(more)

    # ---------------------------------------------------------------- leases

    def _keep_leases(self) -> Mapping[int, Tenure]:
        """Renew, and end what was interrupted, lost, or is another process' part; returns what is held."""
        tenures = self._renew()
        seats = self.leases.seats
        metrics.SHARDS.set(seats.layout.shards)
        if seats.layout.epoch != self._epoch:
            self._lose(*self.judged)
            if self._epoch is not None:
                log.info("evaluator.shards_changed", shards=seats.layout.shards, epoch=seats.layout.epoch)
            if seats.layout.shards != self._wished and not seats.change_to:
                log.warning("evaluator.shards_differ", configured=self._wished, in_force=seats.layout.shards)
            self._epoch = seats.layout.epoch
        self._lose(*(n for n, judged in self.judged.items() if tenures.get(n) is not judged.tenure))
        if surplus := sorted(tenures)[seats.target :]:
            self._lose(*surplus)
            self.leases.renew(give_up=surplus)
            return {number: tenure for number, tenure in tenures.items() if number not in surplus}
        return tenures

    def _renew(self) -> Mapping[int, Tenure]:
        self._renewed_s = time.monotonic()
        return self.leases.renew()

    def _alive(self) -> None:
        self.seen_s = time.monotonic()
        if self.seen_s - self._renewed_s > RENEW_S:
            self._renew()

    def _take(self, number: int, tenure: Tenure) -> bool:
        shard = self._store.shards.shard(number, self.leases.seats.layout.shards)

        def renew() -> bool:
            self.seen_s = time.monotonic()
            return not self._stop.is_set() and self._renew().get(number) is tenure

        evaluator = self._evaluator_of(HeldShard(shard, renew, self._alive, lives_on=True))
        evaluator.load()
        if not renew():  # to read took longer than the lease, and it went to another
            return False
        self.judged[number] = _Judged(shard, tenure, evaluator)
        state = evaluator.memory.state
        log.info("evaluator.lease_taken", shard=number, of=shard.of, decided=state.bucket_ms, version=state.version)
        self._on_lease(shard, tenure)
        return True

    def _lose(self, *numbers: int) -> None:
        for number in numbers:
            if judged := self.judged.pop(number, None):
                judged.tenure.end()
                log.info("evaluator.lease_lost", shard=number, of=judged.shard.of)
                self._on_lease(judged.shard, None)
        metrics.LEASE.set(0 in self.judged)
        metrics.SHARDS_HELD.set(len(self.judged))

    # ---------------------------------------------------------------- shards

    def _guarded(self, number: int, act: Callable[[], bool]) -> bool:
        """Where one node of a cluster is away, the shards on the others go on."""
        try:
            return act()
        except StoreError as error:
            if self.leases.seats.layout.shards == 1:
                raise
            metrics.REDIS_ERRORS.inc()
            log.warning("evaluator.redis_away", shard=number, error=str(error))
            self._lose(number)
            self.leases.drop([number])
            return False

    def _change(self) -> None:
        """Begin to change the number of shards, where all processes wish it and all shards stand at one bucket."""
        seats = self.leases.seats
        if not seats.change_to or len(self.judged) < seats.layout.shards:
            return
        sealed_ms = self._store.sealing.read().bucket_ms
        memories = [judged.evaluator.memory for judged in self.judged.values()]
        if any(memory.decided_ms != sealed_ms or memory.is_ahead for memory in memories):
            return
        for memory in memories:
            if sealed_ms >= 0 and not memory.rule_states.store_all(memory.state.version, sealed_ms):
                return
            self._alive()
        self._lose(*self.judged)  # their dispatchers end, before what they deliver is moved
        self._renew()
        if self._store.shard_move.begin(self.leases.token, seats.layout, seats.change_to):
            log.info("evaluator.shards_change", before=seats.layout.shards, after=seats.change_to, decided=sealed_ms)

    def _move(self) -> None:
        layouts = self._store.catalog.layouts()
        states = [
            (rule.name, fingerprint)
            for rule in self._rules
            if rule.keeps_state
            for fingerprint in (layouts if rule.reads_images else [EVERY])
        ]
        self._store.shard_move.run(states, self._alive)
