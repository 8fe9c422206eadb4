"""Delivers what the outbox holds, on whichever replica holds the evaluator's lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from monitor.notify.delivery.context import DeliveryContext, Observe, unobserved
from monitor.notify.delivery.delivery_alert import recovered_document
from monitor.notify.delivery.schedule import Timing
from monitor.notify.delivery.worker import Worker
from monitor.notify.receivers.http_client import wall_ms
from monitor.notify.receivers.protocol import Receiver
from monitor.store import Store, StoreError

log = structlog.get_logger(__name__)

PRODUCTION = Timing()
STOP_TIMEOUT_S = 3.0
STORE_BACKOFF_S = (1.0, 30.0)
"""First and longest pause while Redis is away."""


class Dispatcher:
    """One thread per receiver, so that a slow or dead one never delays another. One instance per tenure of the lease.

    Everything that must survive is in the store: whoever holds the lease next continues where this one stopped. A
    crash between a receiver's 2xx and the note of it sends again with the same id.

    Args:
        receivers: built once by the caller, who also closes them; may serve several tenures.
        holds_lease: asked before every step; once it says no, nothing is begun any more.
        now_ms: the wall clock.
        observe: called with (receiver, outcome, seconds); outcomes are delivered, retried, refused, buried, silenced,
            resent and acknowledged.
    """

    def __init__(
        self,
        store: Store,
        receivers: Sequence[Receiver],
        monitor: str,
        *,
        holds_lease: Callable[[], bool] = lambda: True,
        now_ms: Callable[[], int] = wall_ms,
        timing: Timing = PRODUCTION,
        observe: Observe = unobserved,
    ) -> None:
        self._store = store
        self._stop = threading.Event()
        self._holds_lease = holds_lease
        self._timing = timing
        self._now_ms = now_ms
        around = DeliveryContext(store, monitor, timing, now_ms, self._over, observe)
        self._workers = [Worker(receiver, around) for receiver in receivers]
        self._threads: list[threading.Thread] = []
        self._preparing = threading.Lock()
        self._prepared = False

    def start(self) -> None:
        """Begin to deliver; returns at once."""
        for worker in self._workers:
            name = worker.receiver.name
            # daemon: one that hangs in a send must not keep the process alive
            thread = threading.Thread(target=self._serve, args=(worker,), name=f"notify-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End within `timeout_s`. A thread that hangs in a send is left behind: it may still note a success, and
        begins nothing."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("notify.left_behind", threads=hanging)

    def _over(self) -> bool:
        return self._stop.is_set() or not self._holds_lease()

    def _serve(self, worker: Worker) -> None:
        first, longest = STORE_BACKOFF_S
        pause_s = 0.0
        while not self._over():
            try:
                self._prepare()
                worker.round()
                pause_s = 0.0
            except StoreError as error:
                if not pause_s:  # once: what follows until it is back is the same
                    log.warning("notify.store_away", receiver=worker.receiver.name, error=str(error))
                pause_s = min(max(first, 2 * pause_s), longest)
            except Exception:
                # a fault of ours in one round must not end all later ones
                log.exception("notify.round_failed", receiver=worker.receiver.name)
                pause_s = min(max(first, 2 * pause_s), longest)
            self._stop.wait(pause_s or self._timing.poll_s)

    def _prepare(self) -> None:
        """Once, before anything is delivered: what one receiver settles must still be kept for all the others, and
        those that are no longer configured must neither hold the outbox back nor be complained of for ever."""
        with self._preparing:
            if self._prepared:
                return
            names = {worker.receiver.name for worker in self._workers}
            for name in self._store.outbox.retain_receivers(names):
                log.info("notify.receiver_forgotten", receiver=name)
            for name, document in self._store.outbox.failing().items():
                if name not in names:
                    self._store.outbox.append(recovered_document(document, self._now_ms()))
                    self._store.outbox.set_failing(name, "")
            self._prepared = True
