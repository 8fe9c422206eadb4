"""The connection to Redis, the Lua scripts, and the two kinds of error; `monitor/store/client.py` opens one."""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from redis.cluster import RedisCluster
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterError,
    ConnectionError,  # noqa: A004 - the client's own name for it
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

Value = bytes | str | int | float

REFUSALS = ("LOADING", "READONLY", "OOM", "MISCONF", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MASTERDOWN", "NOREPLICAS")
"""Error codes that say what state the server is in, not that the command was wrong."""
STRIPPED = {ReadOnlyError: "READONLY", OutOfMemoryError: "OOM", MasterDownError: "MASTERDOWN"}
"""Errors from whose text redis-py strips the code."""
LAYOUT = re.compile(r"LAYOUT (.*? under one fingerprint)")
"""How common.lua refuses to add vectors up."""
NEWER = re.compile(r"SCHEMA (\d+)")
"""How common.lua refuses a caller that is older than the state."""
SCHEMA = 3
"""Of the state as this version writes it, stored with each cursor and with the evaluator's state. The first schema had
no number. A change that an older version would not keep gets the next one, and the scripts that claim and lease move
what they find forward."""
ADVICE = "fit the profile with this version, go on with the version that counted, or give another `monitor` name"
"""What to do about counts that cannot be added up."""


class StoreError(Exception):
    """Redis cannot answer now. The call may or may not have happened; making it again is safe."""


class StoreConfigError(Exception):
    """This Redis cannot hold our state: too old, evicts keys, refuses our credentials, has what we must not change."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the client raises into StoreError where another try can help; programming errors pass."""
    try:
        yield
    except RedisError as error:
        code = _refusal(error)
        if code is None:
            if refused := LAYOUT.search(str(error)):
                raise StoreConfigError(f"redis: {refused[1]}; {ADVICE}") from error
            if refused := NEWER.search(str(error)):
                raise StoreConfigError(newer(int(refused[1]))) from error
            raise
        if code:
            metrics.REDIS_REFUSALS.labels(code).inc()
        raise StoreError(f"redis: {describe(error)}") from error


def newer(schema: int) -> str:
    """What to say about a state that this version must not change."""
    text = f"redis: the state has schema {schema}, of a newer version; this one keeps schemas up to {SCHEMA}"
    return f"{text}: upgrade this process, or give another `monitor` name"


def _refusal(error: RedisError) -> str | None:
    """The code with which the server refuses for now; "" where it did not answer, None where the call is at fault."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return None
    if isinstance(error, ConnectionError | TimeoutError):
        return ""
    for kind, code in STRIPPED.items():
        if isinstance(error, kind):
            return code
    moving = isinstance(error, ClusterError | AskError | TryAgainError)
    # anywhere in the text: scripts may wrap the error
    return next((code for code in REFUSALS if code in str(error)), "other" if moving else None)


def describe(error: BaseException) -> str:
    """One line; it says so where TLS failed, which the client's own text often does not."""
    text = " ".join(str(error).split()) or type(error).__name__
    cause = tls_failure(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS: the server's certificate is not accepted: {cause.verify_message}"
    return f"TLS: {text}: {cause}" if cause else text


def tls_failure(error: BaseException | None) -> BaseException | None:
    """What TLS raised, if that is why the call failed; the client raises an error of its own instead."""
    while error and not isinstance(error, ssl.SSLError):
        if isinstance(error, OSError) and "handshake" in str(error):  # a time-out of Python's ssl
            return error
        error = error.__cause__ or error.__context__
    return error


# ------------------------------------------------------------------------------------------------ scripts


class Script(NamedTuple):
    """A Lua script, which runs on the server as one step."""

    name: str
    text: str
    sha1: str
    """The name under which the server keeps it."""


class Call(NamedTuple):
    """One run of a script. All keys carry the same hash tag."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Value]


UNDECLARED = b"UNDECLARED"
"""First in the reply of a script that needs further keys, before their names; see common.lua."""
KEY_ROUNDS = 5
"""Times that a call is made before it fails. Two are enough unless somebody changes the same state between them."""


def load_scripts(folder: Path) -> dict[str, Script]:
    """Every script of a folder by its file's name without the ending; each begins with the text of `common.lua`."""
    common = (Path(__file__).parent / "lua" / "common.lua").read_text()
    scripts = {}
    for path in folder.glob("*.lua"):
        text = f"{common}\n{path.read_text()}"
        sha1 = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - the name that Redis gives to scripts
        scripts[path.stem] = Script(path.stem, text, sha1)
    return scripts


SCRIPTS = load_scripts(Path(__file__).parent / "lua")


# ------------------------------------------------------------------------------------------------ connection


class Connection:
    """The client and how scripts are run through it. Safe to share between threads. Every call may raise StoreError."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.is_cluster = isinstance(client, RedisCluster)

    def run(self, script: Script, keys: Sequence[str], *args: Value) -> Any:
        """The reply of one script."""
        return self.run_many([Call(script, keys, args)])[0]

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """The replies of many scripts in one round trip (per node); no transaction spans them.

        A script that finds in the state that it needs further keys has written nothing, and is called again with them.

        Raises:
            StoreError: at least one could not be run; others may have been.
        """
        made, replies = list(calls), self._run(calls)
        for _ in range(KEY_ROUNDS - 1):
            wanting = [i for i, reply in enumerate(replies) if _lacks_keys(reply)]
            if not wanting:
                return replies
            for i in wanting:
                made[i] = made[i]._replace(keys=[*made[i].keys, *map(bytes.decode, replies[i][1:])])
            for i, reply in zip(wanting, self._run([made[i] for i in wanting]), strict=True):
                replies[i] = reply
        for call, reply in zip(made, replies, strict=True):
            if _lacks_keys(reply):
                needed = f"{call.script.name} on {call.keys[0]} still needs {reply[1].decode()}"
                raise StoreError(f"redis: {needed} after {KEY_ROUNDS} calls: something keeps changing that state")
        return replies

    def _run(self, calls: Sequence[Call]) -> list[Any]:
        if not calls:
            return []
        label, tails = calls[0].script.name, [(len(call.keys), *call.keys, *call.args) for call in calls]
        commands = [("EVALSHA", call.script.sha1, *tail) for call, tail in zip(calls, tails, strict=True)]
        replies = self._send(label, commands)
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:  # a restarted or failed-over server: EVAL runs the script and stores it again
            again = self._send(label, [("EVAL", calls[i].script.text, *tails[i]) for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return _checked(replies)

    def read(self, *command: Value) -> Any:
        """The reply of one plain command."""
        return self.read_many([command])[0]

    def read_many(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """The replies of plain commands in one round trip (per node)."""
        return _checked(self._send("read", commands)) if commands else []

    def _send(self, label: str, commands: Sequence[Sequence[Value]]) -> list[Any]:
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            started = time.perf_counter()
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            metrics.REDIS_SECONDS.labels(label).observe(time.perf_counter() - started)
            return replies

    def close(self) -> None:
        """Close all connections; never raises."""
        try:
            self.client.close()
        except RedisError as error:
            log.debug("store.close_failed", error=describe(error))


def _lacks_keys(reply: Any) -> bool:
    return isinstance(reply, list) and reply[:1] == [UNDECLARED]


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            with translated():
                raise reply
    return replies
