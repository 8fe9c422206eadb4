"""Fixtures of the delivery tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pydantic import SecretStr

from monitor.notify.receivers.alertmanager import AlertmanagerSender, AlertmanagerSettings
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.bench import Bench
from tests.notify.parts import Server

_monitors = itertools.count()


@pytest.fixture
def bench(redis_server: PrivateRedis) -> Iterator[Bench]:
    with ExitStack() as stack:
        store = open_store(RedisSettings(url=SecretStr(redis_server.url)), f"notify-{next(_monitors)}")
        stack.callback(store.close)
        yield Bench(store, redis_server.url, stack)


@pytest.fixture
def alertmanager(bench: Bench) -> tuple[Server, AlertmanagerSender]:
    server = bench.server()
    settings = AlertmanagerSettings(name="am", type="alertmanager", urls=(SecretStr(server.url),), resend_s=60)
    receiver = AlertmanagerSender(settings, bench.clock)
    bench.stack.callback(receiver.close)
    return server, receiver
