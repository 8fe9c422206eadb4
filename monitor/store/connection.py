"""The connection to Redis (single server, Sentinel or Cluster), the Lua scripts, and the two kinds of error."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
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
from redis.retry import Retry
from redis.sentinel import Sentinel

from monitor.store.settings import RedisSettings
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

Value = bytes | str | int | float

REFUSALS = ("LOADING", "READONLY", "OOM", "MISCONF", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MASTERDOWN", "NOREPLICAS")
"""Error codes that say what state the server is in, not that the command was wrong."""
STRIPPED = {ReadOnlyError: "READONLY", OutOfMemoryError: "OOM", MasterDownError: "MASTERDOWN"}
"""Errors from whose text redis-py strips the code."""
SETUP_ATTEMPTS = 5
"""0.1, 0.2, 0.4, 0.8 s with jitter: a server that restarts is back by then; the caller decides about longer ones."""


class StoreError(Exception):
    """Redis cannot answer now. The call may or may not have happened; making it again is safe."""


class StoreConfigError(Exception):
    """This Redis can never hold the state (too old, evicts keys, refuses our credentials)."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the client raises into StoreError where another try can help; programming errors pass."""
    try:
        yield
    except RedisError as error:
        code = _refusal(error)
        if code is None:
            raise
        if code:
            metrics.REDIS_REFUSALS.labels(code).inc()
        raise StoreError(f"redis: {_text(error)}") from error


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


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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

        Raises:
            StoreError: at least one could not be run; others may have been.
        """
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
            log.debug("store.close_failed", error=_text(error))


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            with translated():
                raise reply
    return replies


# ------------------------------------------------------------------------------------------------ set-up


def connect(settings: RedisSettings) -> Connection:
    """Build the client, wait until it answers (see SETUP_ATTEMPTS), and refuse a server that cannot hold the state.

    Raises:
        StoreError: it does not answer.
        StoreConfigError: it answers, but must not be used.
    """
    retry = Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), SETUP_ATTEMPTS - 1, (StoreError,))

    def attempt() -> Connection:
        try:
            with translated():
                connection = Connection(_client(settings))
                connection.client.ping()
                return connection
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreConfigError(f"redis.url: the server refuses our credentials: {_text(error)}") from error

    connection = retry.call_with_retry(attempt, lambda error: log.warning("store.connecting", error=str(error)))
    _check_server(connection)
    return connection


def _client(settings: RedisSettings) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        "health_check_interval": 30,
        # the client never repeats a command: after a lost reply the caller makes the same call and gets DUP; a silent
        # second try would hide how long the server was away
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "client_name": "layerwatch",
    }
    url = settings.url.get_secret_value()
    if url.startswith("rediss://") and settings.tls_ca_file:
        options["ssl_ca_certs"] = str(settings.tls_ca_file)
    if settings.mode == "cluster":
        # one retry, so that MOVED and ASK are followed once the slot table was read again
        return RedisCluster.from_url(url, **{**options, "retry": Retry(NoBackoff(), 1)})
    if settings.mode == "sentinel":
        return _sentinel_client(settings, url, options)
    return Redis.from_url(url, **options)


def _sentinel_client(settings: RedisSettings, url: str, options: Mapping[str, Any]) -> Any:
    """User, password, database and certificates come from the URL; its host is not used."""
    split = [name.rpartition(":") if ":" in name else (name, "", "26379") for name in settings.sentinels]
    secret = settings.sentinel_password
    password = secret.get_secret_value() if secret else None
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, _, port in split],
        sentinel_kwargs={"socket_timeout": settings.timeout_s, "password": password},
    )
    parsed = Redis.from_url(url).connection_pool.connection_kwargs
    login = {key: value for key, value in parsed.items() if key not in {"host", "port"}}
    tls = {"ssl": True} if url.startswith("rediss://") else {}
    merged: dict[str, Any] = {**login, **options, **tls}
    return sentinel.master_for(settings.sentinel_master, **merged)  # type: ignore[no-untyped-call]


def _check_server(connection: Connection) -> None:
    """Refuse a Redis that is too old or may evict the state.

    INFO is enough for both; CONFIG is often forbidden. Where the ACL forbids even INFO, a warning is all we can do.

    Raises:
        StoreConfigError: with one line that says what to change.
    """
    client = connection.client
    try:
        with translated():
            servers = map(client.get_redis_connection, client.get_primaries()) if connection.is_cluster else [client]
            infos = [server.info() for server in servers]
    except NoPermissionError:
        log.warning("store.server_unchecked", reason="the ACL forbids INFO; Redis >= 6.2 with noeviction is needed")
        return
    for info in infos:
        version = str(info.get("redis_version", "0"))
        if tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise StoreConfigError(f"redis: version {version} is too old; 6.2 or newer is needed")
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy == "noeviction":
            continue
        if int(info.get("maxmemory", 0)):
            # volatile-* too: every key of ours expires, so it would go first
            raise StoreConfigError(
                f"redis: maxmemory-policy is {policy}, which may evict the state; set `maxmemory-policy noeviction`"
            )
        log.warning("store.eviction_policy", policy=policy, advice="set maxmemory-policy noeviction")
