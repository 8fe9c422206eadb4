"""Opens the connection to Redis: a single server, Sentinel or Cluster, each with its login and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import structlog
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - the client's own name for it
    NoPermissionError,
    RedisError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from monitor.store.connection import Connection, StoreConfigError, StoreError, describe, tls_failure, translated
from monitor.store.settings import SENTINEL_PORT, RedisSettings, sentinel_address

log = structlog.get_logger(__name__)

SETUP_ATTEMPTS = 5
"""0.1, 0.2, 0.4, 0.8 s with jitter: a server that restarts is back by then; the caller decides about longer ones."""


def connect(settings: RedisSettings) -> Connection:
    """Build the client, wait until it answers (see SETUP_ATTEMPTS), and refuse a server that cannot hold the state.

    Raises:
        StoreError: it does not answer.
        StoreConfigError: it answers, but must not be used; or the settings cannot work.
    """
    check_client(settings)
    retry = Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), SETUP_ATTEMPTS - 1, (StoreError,))

    def attempt() -> Connection:
        try:
            with translated():
                connection = Connection(_client(settings))
                connection.client.ping()
                return connection
        except _SentinelRefusedError as error:
            raise StoreConfigError(f"redis.sentinel_password: {describe(error)}") from error
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreConfigError(f"redis.url: the server refuses our credentials: {describe(error)}") from error
        except StoreError as error:
            failure = tls_failure(error)
            if isinstance(failure, ssl.SSLCertVerificationError):
                raise StoreConfigError(f"redis.tls_ca_file: {describe(failure)}") from error
            raise StoreError(f"{error}{_tls_advice(settings, error)}") from error

    connection = retry.call_with_retry(attempt, lambda error: log.warning("store.connecting", error=str(error)))
    _check_server(connection)
    return connection


def check_client(settings: RedisSettings) -> None:
    """Refuse settings with which no client can be built; connects to nothing.

    Raises:
        StoreConfigError: the URL has an unknown option or a value of the wrong kind, or a file cannot be used.
    """
    url = settings.url.get_secret_value()
    try:
        Redis.from_url(url).connection_pool.make_connection()
    except TypeError as error:  # `Connection.__init__() got an unexpected keyword argument 'x'`
        raise StoreConfigError(f"redis.url: no such option: {str(error).rpartition(' ')[2]}") from error
    except (RedisError, ValueError) as error:
        raise StoreConfigError(f"redis.url: {describe(error)}") from error
    options, context = _url_options(settings), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    checks: list[tuple[str, object, Callable[[], object]]] = [
        ("tls_ca_file", settings.tls_ca_file, lambda: context.load_verify_locations(settings.tls_ca_file)),
        ("url", options.get("ssl_ca_certs"), lambda: context.load_verify_locations(options["ssl_ca_certs"])),
        ("url", options.get("ssl_certfile"), lambda: _load_certificate(context, options)),
    ]
    for key, given, load in checks:
        try:
            if given:
                load()
        except OSError as error:  # ssl.SSLError is one
            reason = (
                "no certificate or key, or the wrong password" if isinstance(error, ssl.SSLError) else error.strerror
            )
            raise StoreConfigError(f"redis.{key}: cannot use {given}: {reason}") from error


def _load_certificate(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    # "", not None: OpenSSL would ask at the terminal
    context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password", ""))


# ------------------------------------------------------------------------------------------------ the three modes


def _client(settings: RedisSettings) -> Any:
    url = settings.url.get_secret_value()
    options = _options(settings) | (_tls_options(settings) if settings.speaks_tls else {})
    if settings.mode == "cluster":
        # one retry, so that MOVED and ASK are followed once the slot table was read again
        return RedisCluster.from_url(url, **{**options, "retry": Retry(NoBackoff(), 1)})
    if settings.mode == "sentinel":
        login = {
            key: value
            for key, value in _url_options(settings).items()
            if key in {"username", "password", "db", "protocol"}
        }
        tls = {"ssl": True} if settings.speaks_tls else {}
        sentinels = _Sentinels(settings)
        return sentinels.master_for(settings.sentinel_master, **login, **options, **tls)  # type: ignore[no-untyped-call]
    return Redis.from_url(url, **options)


def _options(settings: RedisSettings) -> dict[str, Any]:
    """What every connection is made with, those to the sentinels too."""
    return {
        "socket_timeout": settings.timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        "health_check_interval": 30,
        # the client never repeats a command: after a lost reply the caller makes the same call and gets DUP; a silent
        # second try would hide how long the server was away
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "client_name": "layerwatch",
    }


def _url_options(settings: RedisSettings) -> dict[str, Any]:
    """The client's options as `redis.url` gives them."""
    return dict(parse_url(settings.url.get_secret_value()))  # type: ignore[no-untyped-call]


def _tls_options(settings: RedisSettings) -> dict[str, Any]:
    """Certificates and how to verify: the `ssl_...` options of the URL, and the authority of `tls_ca_file`."""
    options = {key: value for key, value in _url_options(settings).items() if key[:4] == "ssl_"}
    return options | ({"ssl_ca_certs": str(settings.tls_ca_file)} if settings.tls_ca_file else {})


class _SentinelRefusedError(AuthenticationError):
    """No sentinel lets us in."""


class _Sentinels(Sentinel):
    """Asks one sentinel after the other, over TLS where `redis.url` or its own address says so.

    User, password and database of the URL are those of the primary; its host is not used.
    """

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        common = _options(settings)
        del common["client_name"]  # a right that a sentinel's user need not have
        if settings.sentinel_password:
            password = settings.sentinel_password.get_secret_value()
            common |= {"username": settings.sentinel_username, "password": password}
        scheme = urlsplit(settings.url.get_secret_value()).scheme
        for entry in settings.sentinels:
            address = sentinel_address(entry, scheme)
            tls = {"ssl": True, **_tls_options(settings)} if address.scheme == "rediss" else {}
            self.sentinels.append(Redis(address.hostname or "", address.port or SENTINEL_PORT, **common, **tls))

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where the primary is; the sentinel that knew it is asked first the next time.

        Raises:
            ConnectionError: none knows it; the message has what each said.
            _SentinelRefusedError: each refused our credentials.
        """
        failures: list[tuple[str, RedisError | None]] = []
        for i, node in enumerate(self.sentinels):
            where = "{host}:{port}".format_map(node.connection_pool.connection_kwargs)
            try:
                masters: Any = node.sentinel_masters()
            except RedisError as error:
                failures.append((f"{where}: {describe(error)}", error))
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]
                self.sentinels.insert(0, self.sentinels.pop(i))
                return state["ip"], state["port"]
            failures.append((f"{where}: {'it is down' if state else 'not known there'}", None))
        refused = all(isinstance(error, AuthenticationError | NoPermissionError) for _, error in failures)
        kind = _SentinelRefusedError if refused else ConnectionError
        raise kind(f"sentinel: no primary {service_name!r}: {'; '.join(text for text, _ in failures)}")


# ------------------------------------------------------------------------------------------------ checks of the server


def _tls_advice(settings: RedisSettings, error: BaseException) -> str:
    """What to look at where one side may speak TLS and the other not; most servers do not say it."""
    tls = settings.speaks_tls
    if not tls and ("reset by peer" in str(error) or "closed by server" in str(error)):
        return " (a server that speaks only TLS does so: it needs rediss:// in redis.url)"
    failure = tls_failure(error)
    if failure is None:
        return ""
    if "handshake" in str(failure) or "WRONG_VERSION" in str(failure):
        return " (does it speak TLS on that port? without TLS it needs redis:// in redis.url)"
    if "ssl_certfile" not in _url_options(settings):
        return " (it may want a client certificate: ssl_certfile and ssl_keyfile in redis.url)"
    return ""


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
