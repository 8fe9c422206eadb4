"""Doors with locks: both ends of every connection show a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.store.private_server import PrivateRedis
from tests.faults.rig import STORY, Rig, wait_for
from tests.kafka.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.faults]
HALF = STORY // 2


class Door:
    """A TLS front that wants a client's certificate, before a server that speaks plainly.

    On one thread: the two directions of a TLS connection share its state.
    """

    def __init__(self, folder: Path, target_port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
        self._context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        opening = asyncio.start_server(self._pass, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._open |= {outer, writer}
        await asyncio.gather(self._pump(reader, outer), self._pump(inner, writer))
        self._open -= {outer, writer}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while some := await source.read(65536):
                sink.write(some)
                await sink.drain()
        sink.close()

    def close(self) -> None:
        """End it and every connection."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


@pytest.fixture
def door(certificates: Path, own_redis: PrivateRedis) -> Iterator[Door]:
    made = Door(certificates, own_redis.port)
    yield made
    made.close()


def test_kafka_and_redis_behind_mutual_tls_are_refused_without_a_certificate_and_count_with_it(
    make_rig: Callable[..., Rig], breakable_broker: Broker, door: Door, certificates: Path
) -> None:
    rig = make_rig(cluster=breakable_broker)
    pair = {name: str(certificates / f"client.{end}") for name, end in (("cert_file", "crt"), ("key_file", "key"))}
    kafka: dict[str, Any] = {
        "bootstrap_servers": [breakable_broker.address("MUTUAL")],
        "tls": {"ca_file": str(certificates / "ca.pem")},
    }
    url = f"rediss://localhost:{door.port}/0"
    locked = {"url": url, "tls_ca_file": str(certificates / "ca.pem")}
    shown = f"?ssl_certfile={pair['cert_file']}&ssl_keyfile={pair['key_file']}"

    rig.settings["redis"] |= locked
    assert rig.start().status == 69  # no certificate for Redis

    rig.settings["redis"] |= {"url": url + shown}
    rig.settings["kafka"] |= kafka
    refused = rig.start()  # none for Kafka
    (told, *_) = wait_for("it to be refused", lambda: refused.events("source.failed"))
    assert breakable_broker.address("MUTUAL") in told["error"]
    refused.kill()

    rig.settings["kafka"] |= {"tls": kafka["tls"] | pair}
    rig.tell(0, HALF)
    daemon = rig.start()
    rig.await_counted()
    breakable_broker.kill()
    breakable_broker.start()
    rig.renew_producer()
    rig.tell(HALF, STORY)
    rig.check_story()
    assert not daemon.ended()
