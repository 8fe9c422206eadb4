"""The demo as a person starts it: from beginning to end, and interrupted. The slowest tests of the suite."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.demo import command
from monitor.demo.command import daemon_settings
from monitor.demo.process import DaemonProcess
from monitor.demo.receiver import AlertReceiver
from monitor.demo.screens import PlainScreen
from monitor.demo.story import FAULTS
from monitor.store.child_process import ChildError
from monitor.store.private_server import PrivateRedis
from tests.faults.rig import Zygote

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo with `folder` as its place for temporary files; its output comes through a pipe. Ends with the block."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "monitor", "demo", "--headless"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@pytest.mark.story
@pytest.mark.timeout(400)  # 75 s on two quiet cores; a crowded machine makes it longer, not wrong
def test_the_demo_alerts_on_its_drifts_resolves_and_exits_0(zygote: Zygote, tmp_path: Path) -> None:
    demo = zygote.layerwatch("demo", "--headless", environ={"TMPDIR": str(tmp_path)}, patience_s=380)
    output = demo.stderr + demo.stdout
    assert demo.returncode == 0, output
    lines = demo.stdout.splitlines()
    for stream, fault in FAULTS.items():
        for rule in fault.rules:
            (fired,) = [i for i, line in enumerate(lines) if f"FIRING {stream} by rule {rule} " in line]
            (resolved,) = [i for i, line in enumerate(lines) if f"RESOLVED {stream} by rule {rule} " in line]
            assert fired < resolved
    assert not [line for line in lines if "FIRING line-1" in line]
    told = {
        stream: lines[next(i for i, x in enumerate(lines) if f"FIRING {stream} by rule {fault.rules[-1]}" in x) :]
        for stream, fault in FAULTS.items()
    }
    looks = {stream: next(line for line in after if "looks like" in line) for stream, after in told.items()}
    assert "the sensor" in looks["line-2"]
    assert "the content" in looks["line-3"]
    assert "the mix changed" in looks["line-4"]
    sent = re.search(r"([\d,]+) images sent, ([\d,]+) counted", output)
    assert sent
    assert sent[1] == sent[2]
    assert lines[-1].endswith("demo passed")
    assert "\x1b" not in output
    assert list(tmp_path.glob("layerwatch-*")) == []


def test_learning_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "REFERENCE_IMAGES", 200)
    out = io.StringIO()
    command._fit(PlainScreen(out), tmp_path)
    assert len(re.findall(r"choosing the detector: \d+ %", out.getvalue())) > 1, out.getvalue()


@pytest.mark.story
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_redis_and_no_files(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as demo:
        assert demo.stdout
        first = demo.stdout.readline()
        port = re.search(r"127\.0\.0\.1:(\d+)", first)
        assert port, first
        assert answers(int(port[1]))
        assert list(tmp_path.glob("layerwatch-*"))
        demo.stdout.readline()
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    assert not answers(int(port[1]))
    assert list(tmp_path.glob("layerwatch-*")) == []


def test_an_interruption_in_a_destructor_comes_when_it_is_over() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)

    def interrupted() -> None:
        with command._interruptible():
            Dying()
            time.sleep(10)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.story
def test_the_daemon_process_is_ready_inside_and_gone_outside(
    redis_server: PrivateRedis, profile_folder: Path, tmp_path: Path
) -> None:
    with AlertReceiver() as receiver:
        # the small profile of the tests cannot carry the demo's rules
        settings = {
            **daemon_settings(redis_server.url, profile_folder, receiver),
            "monitor": "demo-process",
            "rules": [],
        }
        with DaemonProcess(tmp_path, settings) as daemon:
            port = int(daemon.address.rsplit(":", 1)[1])
            assert daemon.streams() == {}
        deadline = time.monotonic() + 5
        while answers(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not answers(port)


def test_a_daemon_that_cannot_start_is_reported_with_its_own_log(redis_server: PrivateRedis, tmp_path: Path) -> None:
    with AlertReceiver() as receiver:
        settings = {**daemon_settings(redis_server.url, tmp_path, receiver), "buckets": {"seconds": -5}}
        with pytest.raises(ChildError, match=r"(?s)ended with status 78.*buckets\.seconds: must be greater than 0"):
            DaemonProcess(tmp_path, settings).__enter__()


@pytest.mark.faults
@pytest.mark.timeout(600)  # 70 s on two quiet cores
def test_the_story_of_a_renewal_goes_as_it_should(zygote: Zygote, tmp_path: Path) -> None:
    demo = zygote.layerwatch(
        "demo", "--headless", "--story", "renewal", environ={"TMPDIR": str(tmp_path)}, patience_s=550
    )
    assert demo.returncode == 0, demo.stderr + demo.stdout
    lines = [line.partition("] ")[2] for line in demo.stdout.splitlines()]
    told = [
        line
        for line in lines
        if line.startswith(("FIRING", "RESOLVED", "refused", "version 2:", "$ layerwatch profile"))
    ]
    kinds = [line.split()[0] + " " + line.split()[1] for line in told if not line.startswith("$")]
    assert kinds[:2] == ["FIRING line-2", "RESOLVED line-2"]  # the poisoned hour
    assert set(kinds[2:4]) == {"FIRING line-1", "FIRING line-2"}  # the new product
    assert kinds[4:6] == ["refused: normal", "version 2:"]
    assert set(kinds[6:8]) == {"RESOLVED line-1", "RESOLVED line-2"}  # after the promotion
    assert kinds[8:] == ["FIRING line-1"]  # a fault, by the renewed version
    assert [line.split()[3] for line in told if line.startswith("$")] == ["renew", "renew", "shadow", "promote"]
    assert lines[-1] == "demo passed"
    assert list(tmp_path.glob("layerwatch-*")) == []
