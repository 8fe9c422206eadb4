"""Options, connections and errors of kafka-python's clients: what the source and the producers share.

The clients of kafka-python 3.0 do not say why connecting failed, leave sockets open, and hide some of their state. This
package therefore relies on these internals, which tests/sources/test_kafka_internals.py checks:

- client.py: `KafkaNetClient(net=, manager=)` and `NetworkSelector(slow_task_threshold_secs=)` of `kafka.net`; of
  `KafkaConnectionManager` its `_conns`, `get_connection`, `maybe_raise_auth_failure`, `_build_transport` and `cluster`;
  a connection's `init_future`; a transport's `_sock_recv` and `_sock`; `ClusterMetadata.bootstrap_brokers`; the
  clients' option `kafka_client`; the locals `sock`, `transport` and `exceptions` in the frames of a failed connect.
- group.py: `KafkaConsumer._coordinator` (`rejoining`, `request_rejoin`), `KafkaConsumer._cluster` (`topic_id`).
- source.py: `KafkaConsumer._fetcher._next_partition_records` (`topic_partition`, `next_fetch_offset`).
- damage.py: the local `batch` (`base_offset`) in the frame of `_unpack_records`.
- producer.py: `KafkaProducer._sender.force_close`.
"""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from monitor.sources.kafka.settings import KafkaSettings, KafkaTlsSettings
from monitor.sources.kafka.tokens import check_tokens, tokens_of
from monitor.sources.protocol import FatalSourceError, SourceError

MAX_BOOTSTRAP_S = 10.0
"""A daemon tries again without end; one attempt must not delay its shutdown."""
MAX_RECONNECT_MS = 3000

_REFUSED = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    ssl.SSLCertVerificationError,
)
"""Refusals that another try does not change."""

_FATAL = (
    *_REFUSED,
    errors.AuthorizationError,
    errors.SecurityDisabledError,
    errors.InvalidTopicError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.KafkaConfigurationError,
    errors.UnsupportedVersionError,
)


@contextmanager
def translated(what: str, passed: type[Exception] = SourceError) -> Iterator[None]:
    """Turn what the client raises, except `passed`, into SourceError or FatalSourceError: during `what` it happened."""
    try:
        yield
    except (SourceError, FatalSourceError, passed):
        raise
    except _FATAL as error:
        raise FatalSourceError(f"kafka: {what}: {describe(error)}") from error
    # Any other exception leaves the client in an unknown state, whatever its type.
    except Exception as error:
        raise SourceError(f"kafka: {what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """One line: the error's type and text."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if text.startswith(("[Error ", name)):  # kafka-python's own texts name the error already
        return text
    return f"{name}: {text}" if text else name


def client_options(config: KafkaSettings) -> dict[str, Any]:
    """What every client of the cluster is built with: addresses, encryption, authentication.

    Raises:
        FatalSourceError: a certificate, key or CRL cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": list(config.bootstrap_servers),
        "client_id": config.client_id,
        "request_timeout_ms": _ms(config.request_timeout_s),
        "bootstrap_timeout_ms": _ms(min(config.request_timeout_s, MAX_BOOTSTRAP_S)),
        # kafka-python's own 30 s would be added to every restart of a broker
        "reconnect_backoff_max_ms": MAX_RECONNECT_MS,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    if config.tls:
        options["ssl_context"] = tls_context(config.tls)
    if config.tls or config.sasl:
        options["security_protocol"] = ("SASL_" if config.sasl else "") + ("SSL" if config.tls else "PLAINTEXT")
    if config.sasl:
        options |= _sasl_options(config)
    return options


def with_passthrough(
    config: KafkaSettings, options: dict[str, Any], client: type, fixed: frozenset[str]
) -> dict[str, Any]:
    """Lay `kafka.client` over the options, as far as `client` has such options.

    Raises:
        FatalSourceError: a key that no client has, or one on which the exact counts rest.
    """
    known = set(KafkaConsumer.DEFAULT_CONFIG) | set(KafkaProducer.DEFAULT_CONFIG)
    if unknown := set(config.client) - known:
        raise FatalSourceError(f"kafka.client.{min(unknown)}: kafka-python has no such option")
    if taken := set(config.client) & (fixed | {"kafka_client"}):
        raise FatalSourceError(f"kafka.client.{min(taken)}: cannot be changed, the exact counts rest on it")
    return options | {key: value for key, value in config.client.items() if key in client.DEFAULT_CONFIG}  # type: ignore[attr-defined]


def connect(client: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Build a KafkaConsumer or KafkaProducer; whatever it started is ended where it does not come up.

    Raises:
        SourceError: no server answers within `bootstrap_timeout_ms`; the message has the last failure.
        FatalSourceError: every server refused us, or an option has a value of the wrong kind.
    """
    nets: list[_NetClient] = []

    def net_client(**configs: Any) -> _NetClient:
        nets.append(_NetClient(**configs))
        return nets[-1]

    try:
        return client(**options, kafka_client=net_client)
    except Exception as error:
        for net in nets:  # otherwise its thread would try to connect without end
            with suppress(Exception):
                net.close()
        failure = nets[0].manager.last_failure if nets else None
        servers = ", ".join(options["bootstrap_servers"])
        text = f"kafka: connecting to {servers}: {describe(failure or error)}"
        if isinstance(failure or error, _FATAL):
            raise FatalSourceError(text) from error
        if isinstance(error, TypeError | ValueError):
            raise FatalSourceError(f"kafka.client: {describe(error)}") from error
        raise SourceError(text) from error


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps why connections fail, which kafka-python only logs, and gives up early where another try cannot help."""

    def __init__(self, net: Any, **configs: Any) -> None:
        self.last_failure: BaseException | None = None
        self._refusals: dict[Any, BaseException] = {}
        self._final: dict[Any, BaseException] = {}
        super().__init__(net, **configs)

    def get_connection(self, node_id: Any, **options: Any) -> Any:
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, **options)
        if connection is not known:
            connection.init_future.add_errback(lambda error: self._note(node_id, error))
            connection.init_future.add_callback(lambda _: self._accepted(node_id))
        return connection

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        if node_id in self._final:
            raise self._final[node_id]
        super().maybe_raise_auth_failure(node_id)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        try:
            transport = await super()._build_transport(node, timeout_at=timeout_at)
        except Exception as error:
            _close_sockets(error)
            raise
        receive = transport._sock_recv

        def receive_all() -> tuple[bytes, BaseException | None]:
            """kafka-python drops what came right before the end of a connection, such as the reason of a refusal."""
            received, failure = receive()
            return (received, None) if received else (received, failure)

        transport._sock_recv = receive_all
        return transport

    def _note(self, node_id: Any, error: BaseException) -> None:
        # kafka-python wraps what a TLS handshake raised; the cause says whether trying again can help
        cause = error.__context__ if isinstance(error.__context__, ssl.SSLError) else error
        self.last_failure = cause
        if not isinstance(cause, _REFUSED):
            return
        self._refusals[node_id] = cause
        # At first one server that lets us in is enough. Later a refusal means that our credentials were withdrawn: a
        # client that went on would be silent and never read again.
        first = {broker.node_id for broker in self.cluster.bootstrap_brokers()}
        if node_id not in first or first <= set(self._refusals):
            self._final.update(self._refusals)

    def _accepted(self, node_id: Any) -> None:
        self._refusals.pop(node_id, None)
        self._final.pop(node_id, None)


def _close_sockets(error: BaseException) -> None:
    """Close what did not connect: kafka-python leaves it in the frames of its exceptions to the garbage collector.

    With a broker away for a day that would be thousands of descriptors.
    """
    waiting, seen = [error], set()
    while waiting:
        failed = waiting.pop()
        if id(failed) in seen:
            continue
        seen.add(id(failed))
        for frame, _ in traceback.walk_tb(failed.__traceback__):
            waiting += frame.f_locals.get("exceptions", ())  # one for each address of the host
            for left in (frame.f_locals.get("sock"), getattr(frame.f_locals.get("transport"), "_sock", None)):
                if isinstance(left, socket.socket):
                    left.close()


class _NetClient(KafkaNetClient):  # type: ignore[misc]
    """kafka-python's network client with our connection manager."""

    def __init__(self, **configs: Any) -> None:
        # its thread is slow whenever scoring keeps the cores busy: a client that hangs is found by `pipeline.stall_s`
        net = NetworkSelector(**configs, slow_task_threshold_secs=0)
        self.manager = _Manager(net, **configs)
        super().__init__(net=net, manager=self.manager, **configs)


def tls_context(tls: KafkaTlsSettings) -> ssl.SSLContext:
    """A verifying client context; without a `ca_file` the system's authorities are trusted."""
    with _using("ca_file", tls.ca_file):
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    context.check_hostname = tls.check_hostname
    if tls.cert_file:
        # "", not None: OpenSSL would ask at the terminal
        password = tls.key_password.get_secret_value() if tls.key_password else ""
        with _using("cert_file", tls.cert_file, *([tls.key_file] if tls.key_file else [])):
            context.load_cert_chain(tls.cert_file, tls.key_file, password)
    if tls.crl_file:
        with _using("crl_file", tls.crl_file):
            context.load_verify_locations(tls.crl_file)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if tls.ciphers:
        with _using("ciphers", tls.ciphers):
            context.set_ciphers(tls.ciphers)
    return context


@contextmanager
def _using(key: str, *values: object) -> Iterator[None]:
    """Name the key of `kafka.tls` whose values cannot be used."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        shown = " and ".join(map(str, values))
        raise FatalSourceError(f"kafka.tls.{key}: cannot use {shown}: {describe(error)}") from error


def _sasl_options(config: KafkaSettings) -> dict[str, Any]:
    sasl = config.sasl
    assert sasl is not None  # noqa: S101 - the caller has looked
    options: dict[str, Any] = {"sasl_mechanism": sasl.mechanism}
    if sasl.mechanism == "OAUTHBEARER":
        if sasl.oauth:
            check_tokens(sasl.oauth)
        options["sasl_oauth_token_provider"] = tokens_of(sasl)
    elif sasl.mechanism == "GSSAPI":
        if not find_spec("gssapi"):
            raise FatalSourceError("kafka.sasl.mechanism: GSSAPI needs the Python package gssapi")
        options["sasl_kerberos_service_name"] = sasl.kerberos_service_name
        options["sasl_kerberos_domain_name"] = sasl.kerberos_domain_name
        options["sasl_kerberos_name"] = sasl.kerberos_name
    else:
        assert sasl.password  # noqa: S101 - the settings require it
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = sasl.password.get_secret_value()
    return options


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
