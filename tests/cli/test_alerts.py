"""`layerwatch alerts` against a real Redis, as a user calls it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.__main__ import main
from monitor.core import silences
from monitor.notify.silences import KEPT_AFTER_END_MS
from monitor.store import Store, open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.notify.parts import T0_MS, decide

Run = Callable[..., int]
_monitors = itertools.count()


@pytest.fixture
def monitor() -> str:
    return f"alerts-command-{next(_monitors)}"


@pytest.fixture
def store(redis_server: PrivateRedis, monitor: str) -> Iterator[Store]:
    opened = open_store(RedisSettings(url=SecretStr(redis_server.url)), monitor)
    yield opened
    opened.close()


def call(*words: str) -> int:
    return main(["alerts", *words])


@pytest.fixture
def run(redis_server: PrivateRedis, monitor: str, tmp_path: Path) -> Run:
    settings = tmp_path / "config.yaml"
    settings.write_text(f"monitor: {monitor}\nredis: {{url: '{redis_server.url}'}}\n")
    return lambda *words: call(*words, "-c", str(settings))


def listed(run: Run, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert run("list", "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_list_shows_alerts_silences_and_what_was_never_delivered(
    store: Store, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(store, "cam-1")
    (entry,) = store.outbox.fetch("hook", 0)
    store.outbox.bury("hook", entry, "answered 410")
    assert run("silence", "--stream", "cam-*", "--for", "2h", "--author", "ana", "--comment", "belt") == 0
    found = listed(run, capsys)
    (alert,) = found["alerts"]
    assert (alert["stream"], alert["rule"], alert["phase"]) == ("cam-1", "drift", "firing")
    assert (alert["since"], alert["resolved_at"]) == ("2026-11-24T08:20:00.000Z", None)
    (silence,) = found["silences"]
    assert (silence["matchers"], silence["author"], silence["comment"]) == ({"stream": "cam-*"}, "ana", "belt")
    assert silence["active"]
    assert [dead["reason"] for dead in found["undelivered"]] == ["answered 410"]
    assert run() == 0
    shown = capsys.readouterr().out
    assert "cam-1" in shown
    assert "stream=cam-*" in shown
    assert "1 undelivered" in shown


def test_an_empty_list_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "no alerts\n"
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == {"alerts": [], "silences": [], "undelivered": []}


def test_options_may_stand_before_the_action(run: Run, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.silences.put("broken", "{}")
    assert run("--json", "list") == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["silences"] == []
    assert "silence broken is left out" in error


def test_a_silence_is_what_the_dispatcher_reads_and_expires(
    store: Store, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("silence", "--rule", "drift", "--label", "team=a*", "--for", "1d", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (stored,) = store.silences.all().values()
    silence = silences.from_json(stored)
    assert silence.matchers == {"rule": "drift", "team": "a*"}
    assert silence.ends_ms - silence.starts_ms == 86_400_000
    assert run("expire", told["id"]) == 0
    assert store.silences.all() == {}
    assert run("expire", told["id"]) == 1
    assert "there is no silence" in capsys.readouterr().err


@pytest.mark.parametrize("matchers", [[], ["--label", "team"], ["--label", "=x"], ["--stream", ""]])
def test_a_silence_without_matcher_is_refused(
    store: Store, run: Run, matchers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("silence", "--for", "2h", *matchers) == 2
    assert "give --stream" in capsys.readouterr().err
    assert store.silences.all() == {}


def test_silences_long_over_are_cleared_away(store: Store, run: Run) -> None:
    old = silences.Silence("old", {"stream": "*"}, T0_MS - 2 * KEPT_AFTER_END_MS, 1)
    store.silences.put("old", silences.to_json(old))
    assert run("silence", "--stream", "a", "--for", "1m") == 0
    assert "old" not in store.silences.all()
    assert len(store.silences.all()) == 1


def test_a_test_alert_reaches_the_outbox(store: Store, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("send-test", "--json") == 0
    (entry,) = store.outbox.fetch("hook", 0)
    document = json.loads(entry.document)
    assert document["type"] == "alert.test"
    assert json.loads(capsys.readouterr().out) == {"sent": document["id"]}


@pytest.mark.parametrize(
    "action", [["list"], ["send-test"], ["expire", "x"], ["silence", "--stream", "a", "--for", "1h"]]
)
def test_without_redis_it_exits_69_with_one_line(
    action: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monitor.store.client.SETUP_ATTEMPTS", 1)
    monkeypatch.setattr("monitor.telemetry.logs.configure_logs", lambda *_: None)  # the log of the attempts is not ours
    settings = tmp_path / "config.yaml"
    settings.write_text("redis: {url: 'redis://127.0.0.1:1/0'}\n")
    assert call(*action, "-c", str(settings)) == 69
    error = capsys.readouterr().err
    assert error.startswith("layerwatch alerts: redis: ")
    assert error.count("\n") == 1
