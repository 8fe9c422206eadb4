"""A store, a clock that is set by hand, and receivers that are real HTTP clients of local servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from monitor.core.silences import Silence, to_json
from monitor.notify.delivery.context import DeliveryContext, Timing
from monitor.notify.delivery.dispatcher import Dispatcher
from monitor.notify.delivery.roster import Roster
from monitor.notify.delivery.worker import Worker
from monitor.notify.receivers.protocol import Receiver
from monitor.notify.receivers.webhook import WebhookSender, WebhookSettings
from monitor.store import Store
from tests.notify.parts import T0_MS, Clock, Server


@dataclass
class Bench:
    """A store, a clock, and receivers that are real HTTP clients of local servers."""

    store: Store
    url: str
    stack: ExitStack
    clock: Clock = field(default_factory=Clock)
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    timing: Timing = field(default_factory=lambda: Timing(jitter=0.0, poll_s=0.01))

    def server(self) -> Server:
        return self.stack.enter_context(Server())

    def webhook(self, server: Server, name: str = "hook", **settings: Any) -> WebhookSender:
        made = WebhookSender(WebhookSettings(name=name, type="webhook", url=SecretStr(server.url), **settings))
        self.stack.callback(made.close)
        return made

    def worker(self, receiver: Receiver) -> Worker:
        """What one thread of a dispatcher does, step by step; each call is a new process's."""
        return Worker(receiver, self.context(lambda: not self.over.is_set()))

    def context(self, holds_lease: Callable[[], bool]) -> DeliveryContext:
        return DeliveryContext(
            self.store, "layerwatch", holds_lease, self.clock, self.timing, self.observe, steady_ms=self.clock
        )

    def roster(self, *names: str) -> Roster:
        """What a holder of the lease with these receivers does first; each call is a new process's."""
        return Roster(self.context(lambda: True), names)

    def dispatcher(self, *receivers: Receiver, holds_lease: Callable[[], bool] = lambda: True) -> Dispatcher:
        made = Dispatcher(self.context(holds_lease), receivers)
        self.stack.callback(made.stop, 0.2)
        return made

    def observe(self, receiver: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append((receiver, outcome))

    def silence(self, ends_s: float, **matchers: str) -> None:
        silence = Silence("s1", matchers, T0_MS, T0_MS + round(1000 * ends_s))
        self.store.silences.put("s1", to_json(silence))


def dead_ids(bench: Bench) -> list[str]:
    return [json.loads(dead.document)["id"] for dead in bench.store.outbox.dead_alerts()]


def settled(bench: Bench, receiver: str = "hook") -> bool:
    return bench.store.outbox.backlog(receiver).entries == 0


def streams(server: Server) -> list[list[str]]:
    """Streams named in each request."""
    return [sorted(alert["labels"]["stream"] for alert in request.json) for request in server.requests]
