"""Delivers what the outbox holds, on the replica that holds the evaluator's lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import structlog

from monitor.notify.delivery.context import DeliveryContext
from monitor.notify.delivery.roster import Roster
from monitor.notify.delivery.worker import Worker
from monitor.notify.receivers.protocol import Receiver
from monitor.store import StoreError

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 3.0
STORE_BACKOFF_S = (1.0, 30.0)
"""First and longest pause while Redis is away."""


class Dispatcher:
    """One thread per receiver, so that a slow or dead one never delays another. One instance per tenure of the lease.

    All state that must survive is in the store: the next holder of the lease continues where this one stopped. A crash
    between a receiver's 2xx and the write that records it sends the document again, with the same id.

    Args:
        receivers: built once by the caller, who also closes them; may serve several tenures.
    """

    def __init__(self, context: DeliveryContext, receivers: Sequence[Receiver]) -> None:
        self._context = context
        self._workers = [Worker(receiver, context) for receiver in receivers]
        self._threads: list[threading.Thread] = []
        self._roster = Roster(context, [receiver.name for receiver in receivers])

    def start(self) -> None:
        """Begin to deliver; returns at once."""
        for worker in self._workers:
            # daemon: a thread that hangs in a send must not keep the process alive
            name = f"notify-{worker.receiver.name}"
            thread = threading.Thread(target=self._serve, args=(worker,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End within `timeout_s`. A thread that hangs in a send is left behind: it may still record a success, and
        begins nothing."""
        self._context.stopped.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("notify.left_behind", threads=hanging)

    def _serve(self, worker: Worker) -> None:
        first, longest = STORE_BACKOFF_S
        pause_s = 0.0
        while not self._context.over():
            try:
                self._roster.look()
                worker.round()
                pause_s = 0.0
            except StoreError as error:
                if not pause_s:  # later ones are the same until Redis is back
                    log.warning("notify.store_away", receiver=worker.receiver.name, error=str(error))
                pause_s = min(max(first, 2 * pause_s), longest)
            except Exception:
                # a bug that shows in one round must not end all later ones
                log.exception("notify.round_failed", receiver=worker.receiver.name)
                pause_s = min(max(first, 2 * pause_s), longest)
            self._context.stopped.wait(pause_s or self._context.timing.poll_s)
