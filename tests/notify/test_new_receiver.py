"""A receiver that this project does not know, added as docs/how-to/add-a-receiver.md says, served by the dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr, TypeAdapter, ValidationError

from monitor.core.types import AlertPhase
from monitor.notify.delivery.context import DeliveryContext, Timing
from monitor.notify.delivery.dispatcher import Dispatcher
from monitor.notify.receivers.notice import Notice
from monitor.notify.receivers.protocol import (
    Delivered,
    OpenProducer,
    Outcome,
    Receiver,
    ReceiverConfigError,
    ReceiverSettings,
    Retry,
)
from monitor.notify.receivers.registry import RECEIVERS, any_receiver
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.parts import decide, eventually


class FileSettings(ReceiverSettings):
    type: Literal["file"]
    path: Path

    def build(self, _: OpenProducer, /) -> Receiver:
        if not self.path.is_absolute():
            raise ReceiverConfigError(f"receivers.{self.name}.path: must be absolute")
        return FileSender(self)


class FileSender(Receiver):
    """Appends one line per document to a file."""

    def __init__(self, settings: FileSettings) -> None:
        super().__init__(settings)
        self._path = settings.path

    def send(self, notice: Notice) -> Outcome:
        try:
            with self._path.open("a") as file:
                file.write(f"{notice.id} {notice.title}\n")
        except OSError as error:
            return Retry(type(error).__name__)
        return Delivered()

    def close(self) -> None:
        pass


ANY_KIND = any_receiver((*RECEIVERS, FileSettings))
SECTION: TypeAdapter[tuple[ReceiverSettings, ...]] = TypeAdapter(tuple[ANY_KIND, ...])  # type: ignore[valid-type]


def no_producer() -> None:
    raise AssertionError("only a Kafka receiver needs a producer")


def test_a_new_kind_of_receiver_needs_only_its_own_file(redis_server: PrivateRedis, tmp_path: Path) -> None:
    path = tmp_path / "later" / "alerts.txt"
    entries = [
        {"name": "log", "type": "file", "path": str(path)},
        {"name": "calm", "type": "file", "path": str(tmp_path / "calm.txt"), "send_resolved": False},
        {"name": "hook", "type": "webhook", "url": "http://127.0.0.1:9/"},
    ]
    settings = SECTION.validate_python(entries)
    assert [type(entry).__name__ for entry in settings] == ["FileSettings", "FileSettings", "WebhookSettings"]
    receivers = [entry.build(no_producer) for entry in settings[:2]]  # type: ignore[arg-type]
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "new-receiver")
    timing = Timing(delays_s=(0.0, *[0.1] * 100), jitter=0.0, poll_s=0.01)
    outcomes: list[tuple[str, str, float]] = []
    context = DeliveryContext(store, "layerwatch", timing=timing, observe=lambda *seen: outcomes.append(seen))
    dispatcher = Dispatcher(context, receivers)
    dispatcher.start()
    try:
        fired = decide(store)
        eventually(lambda: ("log", "retried") in [seen[:2] for seen in outcomes])  # its folder is missing
        path.parent.mkdir()
        eventually(path.exists)
        ended = decide(store, phase=AlertPhase.RESOLVED)
        eventually(lambda: all(store.outbox.backlog(name).entries == 0 for name in ("log", "calm")))
    finally:
        dispatcher.stop()
        store.close()
    assert path.read_text().splitlines() == [f"{fired} [FIRING] drift on cam-1", f"{ended} [RESOLVED] drift on cam-1"]
    assert (tmp_path / "calm.txt").read_text() == f"{fired} [FIRING] drift on cam-1\n"


def test_its_settings_are_checked_as_those_of_every_other_kind() -> None:
    with pytest.raises(ValidationError, match=r"0\.file\.path\n"):
        SECTION.validate_python([{"name": "log", "type": "file"}])
    with pytest.raises(ValidationError, match="'webhook', 'alertmanager', 'slack', 'pagerduty', 'kafka', 'file'"):
        SECTION.validate_python([{"name": "log", "type": "fax"}])
    (settings,) = SECTION.validate_python([{"name": "log", "type": "file", "path": "alerts.txt"}])
    with pytest.raises(ReceiverConfigError, match=r"^receivers\.log\.path"):
        settings.build(no_producer)  # type: ignore[arg-type]
