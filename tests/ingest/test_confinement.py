"""What a decoder process may still do when an image has taken it over."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from detectors.images.decode import Limits
from detectors.images.prepare import Preparer
from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.confinement import environment
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoded, Decoder
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.settings import DecodingSettings, StreamNaming

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have no seccomp"),
]

PRCTL = {"x86_64": 157, "aarch64": 167}.get(platform.machine(), 0)


class TakenOver(Decoder):
    """Tries what an attacker would, and tells in its refusal what came of it."""

    def __call__(self, record: Record) -> list[Decoded]:
        secret = (record.value or b"").decode()
        found = {"env": sorted(os.environ), "pid": os.getpid(), "did": attacks(secret)}
        raise DecodeError("corrupt", json.dumps(found))


def attacks(secret: str) -> dict[str, str]:
    folder = Path("/tmp")

    def start_thread() -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

    tries: dict[str, Callable[[], object]] = {
        "read a file": lambda: Path(__file__).read_bytes(),
        "read a secret": lambda: Path(secret).read_bytes(),
        "read an environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "thread": start_thread,
        "own signal": lambda: os.kill(os.getpid(), 0),
        "socket": socket.socket,
        "program": lambda: os.execv("/bin/true", ["true"]),
        "process": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": os.fork,
        "write": lambda: (folder / "taken-over").write_bytes(b""),
        "append": lambda: os.open(__file__, os.O_WRONLY | os.O_APPEND),
        "remove": lambda: os.unlink(folder / "none"),
        "rename": lambda: os.rename(folder / "none", folder / "other"),
        "folder": lambda: os.mkdir(folder / "taken-over"),
        "mode": lambda: os.chmod(__file__, 0o777),
        "signal": lambda: os.kill(os.getppid(), 0),
    }
    did = {}
    for name, attempt in tries.items():
        try:
            attempt()
            did[name] = "done"
        except OSError as error:
            did[name] = type(error).__name__
    return did


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: found[name].strip() for name in ("NoNewPrivs", "Seccomp")}


def test_a_decoder_that_is_taken_over_reaches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    monkeypatch.setenv("LAYERWATCH__REDIS__URL", "redis://:hunter2@localhost")
    pool = DecoderPool(TakenOver(Preparers(Preparer(64, Limits())), StreamNaming(), DecodingSettings(workers=1)))
    try:
        letter = pool.submit([Record(Partition("images", 0), 0, 0, b"k", str(secret).encode())])[0].result(60)
        assert isinstance(letter, DeadLetter)
        found = json.loads(letter.error)
        assert status(found["pid"]) == {"NoNewPrivs": "1", "Seccomp": "2"}
    finally:
        pool.close()
    assert found["did"] == dict.fromkeys(found["did"], "PermissionError") | dict.fromkeys(
        ["read a file", "thread", "own signal"], "done"
    )
    assert not {"KAFKA_PASSWORD", "LAYERWATCH__REDIS__URL", "HOME"} & set(found["env"])


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("import platform; platform.machine = lambda: 'm68k'", "no list of system calls for m68k"),
        # as under a container's runtime that forbids it
        (
            "from monitor.ingest.decode import confinement as c\n"
            "c._prctl(c.PR_SET_NO_NEW_PRIVS, 1)\n"
            f"program = [(c.LOAD, 0, 0, 0), (c.EQUAL, 0, 1, {PRCTL}), c.EPERM, c.PASS]\n"
            "c._program, kept = lambda *_: program, c._program\n"
            f"c._filter_system_calls('{platform.machine()}', False)\n"
            "c._program = kept",
            "Operation not permitted",
        ),
    ],
)
def test_where_the_kernel_takes_no_filter_decoding_goes_on(before: str, told: str) -> None:
    program = f"{before}\nfrom monitor.ingest.decode.confinement import confine\nprint(confine(2**30, False))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told in done.stdout


def test_logins_of_object_stores_are_inherited_where_images_come_from_there() -> None:
    environ = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "k", "https_proxy": "p", "KAFKA_PASSWORD": "x"}
    assert set(environ) & set(environment(environ, asks_servers=False)) == {"PATH"}
    kept = {"PATH", "AWS_SECRET_ACCESS_KEY", "https_proxy"}
    assert set(environ) & set(environment(environ, asks_servers=True)) == kept
