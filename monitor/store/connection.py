"""The connection to Redis: single server, Sentinel or Cluster; what it raises is one of two kinds of error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - the client's own name for it
    NoPermissionError,
    NoScriptError,
    RedisError,
    TimeoutError,  # noqa: A004
)
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from monitor.store.scripts import Call, Value
from monitor.store.settings import RedisSettings
from monitor.telemetry import metrics

log = structlog.get_logger(__name__)

RETRYABLE = ("LOADING", "READONLY", "OOM", "MISCONF", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MASTERDOWN", "NOREPLICAS")
"""Error codes that say what state the server is in, not that the command was wrong."""
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
        if is_retryable(error):
            if code := _refusal(error):
                metrics.REDIS_REFUSALS.labels(code).inc()
            raise StoreError(f"redis: {_text(error)}") from error
        raise


def is_retryable(error: Exception) -> bool:
    """Whether the same call can succeed later without anybody changing anything here."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | BusyLoadingError | ClusterDownError | MasterNotFoundError):
        return True
    # redis-py strips the code from errors that it has a class for, and scripts may wrap it
    return type(error).__name__ in {
        "ReadOnlyError",
        "OutOfMemoryError",
        "TryAgainError",
        "MasterDownError",
        "ClusterError",
        "SlotNotCoveredError",
        "MovedError",
        "AskError",
    } or any(code in str(error) for code in RETRYABLE)


def _refusal(error: Exception) -> str:
    """The code with which the server refused to work; empty where it did not answer."""
    if isinstance(error, ConnectionError | TimeoutError | MasterNotFoundError):
        return ""
    named = {"ReadOnlyError": "READONLY", "OutOfMemoryError": "OOM", "MasterDownError": "MASTERDOWN"}
    told = named.get(type(error).__name__) or next((code for code in RETRYABLE if code in str(error)), "other")
    return str(told)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Connection:
    """The client and how scripts are run through it. Safe to share between threads."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.is_cluster = isinstance(client, RedisCluster)

    def run(self, call: Call) -> Any:
        """The reply of one script."""
        return self.run_many([call])[0]

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """The replies of many scripts in one round trip (per node); no transaction spans them.

        Raises:
            StoreError: at least one could not be run; others may have been.
        """
        replies = self._pipeline([("EVALSHA", call.script.sha1, call) for call in calls])
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:  # a restarted or failed-over server: EVAL runs the script and makes it known again
            again = self._pipeline([("EVAL", calls[i].script.text, calls[i]) for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        _raise_first(replies)
        return replies

    def read_many(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """The replies of plain commands in one round trip (per node)."""
        if not commands:
            return []
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            started = time.perf_counter()
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            metrics.REDIS_SECONDS.labels("read").observe(time.perf_counter() - started)
        _raise_first(replies)
        return replies

    def read_hash(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash; empty where there is none."""
        return pairs(self.read_many([("HGETALL", key)])[0])

    def _pipeline(self, calls: Sequence[tuple[str, str, Call]]) -> list[Any]:
        if not calls:
            return []
        with translated():
            pipeline = self.client.pipeline(transaction=False)
            for command, script, call in calls:
                pipeline.execute_command(command, script, len(call.keys), *call.keys, *call.args)
            started = time.perf_counter()
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            metrics.REDIS_SECONDS.labels(calls[0][2].script.name).observe(time.perf_counter() - started)
            return replies

    def close(self) -> None:
        """Close all connections; never raises."""
        try:
            self.client.close()
        except RedisError as error:
            log.debug("store.close_failed", error=_text(error))


def pairs(reply: Any) -> dict[bytes, bytes]:
    """HGETALL's reply: a mapping or a flat list, by protocol version."""
    return dict(reply) if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            with translated():
                raise reply


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
    check_server(connection)
    return connection


def _client(settings: RedisSettings) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        "health_check_interval": 30,
        # commands are never repeated behind our back: after a lost reply the caller asks with the same arguments
        # and is told DUP; a silent second try would hide how long the server was away
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
    hosts = [(host, int(port)) for host, _, port in split]
    secret = settings.sentinel_password
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        hosts,
        sentinel_kwargs={
            "socket_timeout": settings.timeout_s,
            "password": secret.get_secret_value() if secret else None,
        },
    )
    parsed = Redis.from_url(url).connection_pool.connection_kwargs
    login: dict[str, Any] = {key: value for key, value in parsed.items() if key not in {"host", "port"}}
    tls = {"ssl": True} if url.startswith("rediss://") else {}
    merged: dict[str, Any] = {**login, **options, **tls}
    return sentinel.master_for(settings.sentinel_master, **merged)  # type: ignore[no-untyped-call]


def check_server(connection: Connection) -> None:
    """Refuse a Redis that is too old or may evict the state.

    INFO is enough for both; CONFIG is often forbidden. Where even INFO is forbidden by ACL we can only warn.

    Raises:
        StoreConfigError: with one line that says what to change.
    """
    try:
        with translated():
            infos = server_infos(connection)
    except NoPermissionError:
        log.warning("store.server_unchecked", reason="the ACL forbids INFO; Redis >= 6.2 with noeviction is needed")
        return
    for info in infos:
        if _version(info) < (6, 2):
            raise StoreConfigError(f"redis: version {info.get('redis_version')} is too old; 6.2 or newer is needed")
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy == "noeviction":
            continue
        if int(info.get("maxmemory", 0)):
            # volatile-* too: every key of ours expires, so it would go first
            raise StoreConfigError(
                f"redis: maxmemory-policy is {policy}, which may evict the state; set `maxmemory-policy noeviction`"
            )
        log.warning("store.eviction_policy", policy=policy, advice="set maxmemory-policy noeviction")


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])


def server_infos(connection: Connection) -> list[dict[str, Any]]:
    """INFO of every server that may hold keys of ours."""
    client = connection.client
    if not connection.is_cluster:
        return [client.info()]
    nodes: Callable[..., Any] = client.get_redis_connection
    return [nodes(node).info() for node in client.get_primaries()]
