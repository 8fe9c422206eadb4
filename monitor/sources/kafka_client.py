"""Options and errors of kafka-python's clients: the part that the source, the producers and the receivers share."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, errors
from kafka.net.sasl.oauth import AbstractTokenProvider

from monitor.config import Kafka, KafkaTls
from monitor.types import FatalSourceError, SourceError

PROBE_TIMEOUT_S = 5.0

_FATAL = (
    errors.AuthorizationError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.SecurityDisabledError,
    errors.InvalidTopicError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.KafkaConfigurationError,
    errors.UnsupportedVersionError,
)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever the client raises into SourceError or FatalSourceError, saying during `what` it happened."""
    try:
        yield
    except (SourceError, FatalSourceError):
        raise
    except _FATAL as error:
        raise FatalSourceError(f"kafka: {what}: {describe(error)}") from error
    # Any other exception leaves the client in an unknown state, whatever its type.
    except Exception as error:
        raise SourceError(f"kafka: {what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """One line: the error's type and text."""
    text = " ".join(str(error).split())
    return text if text.startswith(f"[Error {getattr(error, 'errno', '')}]") else f"{type(error).__name__}: {text}"


def client_options(config: Kafka) -> dict[str, Any]:
    """What every client of the cluster is built with: addresses, encryption, authentication.

    Raises:
        FatalSourceError: a certificate, key or CRL cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": list(config.bootstrap_servers),
        "client_id": config.client_id,
        "request_timeout_ms": _ms(config.request_timeout_s),
        "allow_auto_create_topics": False,
    }
    if config.tls:
        options["ssl_context"] = tls_context(config.tls)
    if config.tls or config.sasl:
        options["security_protocol"] = ("SASL_" if config.sasl else "") + ("SSL" if config.tls else "PLAINTEXT")
    if config.sasl:
        options |= _sasl_options(config)
    return options


def with_passthrough(config: Kafka, options: dict[str, Any], client: type, fixed: frozenset[str]) -> dict[str, Any]:
    """Lay `kafka.client` over the options, as far as `client` knows the keys.

    Raises:
        FatalSourceError: a key that no client has, or one on which the exact counts rest.
    """
    known = set(KafkaConsumer.DEFAULT_CONFIG) | set(KafkaProducer.DEFAULT_CONFIG)
    if unknown := set(config.client) - known:
        raise FatalSourceError(f"kafka.client.{min(unknown)}: kafka-python has no such option")
    if taken := set(config.client) & fixed:
        raise FatalSourceError(f"kafka.client.{min(taken)}: cannot be changed, the exact counts rest on it")
    return options | {key: value for key, value in config.client.items() if key in client.DEFAULT_CONFIG}  # type: ignore[attr-defined]


def tls_context(tls: KafkaTls) -> ssl.SSLContext:
    """A verifying client context; without a `ca_file` the system's authorities are trusted."""
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
        context.check_hostname = tls.check_hostname
        if tls.cert_file:
            password = tls.key_password.get_secret_value() if tls.key_password else None
            context.load_cert_chain(tls.cert_file, tls.key_file, password)
        if tls.crl_file:
            context.load_verify_locations(tls.crl_file)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if tls.ciphers:
            context.set_ciphers(tls.ciphers)
    except OSError as error:  # ssl.SSLError is one
        raise FatalSourceError(f"kafka.tls: {describe(error)}") from error
    return context


def check_tls(config: Kafka) -> None:
    """Tell a handshake that can never succeed from a server that is away: the client reports both as a time-out.

    Raises:
        FatalSourceError: a server answered and its certificate or ours was refused.
    """
    if not config.tls:
        return
    context = tls_context(config.tls)
    for server in config.bootstrap_servers:
        host, _, port = server.rpartition(":")
        try:
            with (
                socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=host.strip("[]")),
            ):
                pass
        except ssl.SSLError as error:
            raise FatalSourceError(f"kafka: TLS handshake with {server} failed: {describe(error)}") from error
        except (OSError, ValueError):
            continue


def _sasl_options(config: Kafka) -> dict[str, Any]:
    sasl = config.sasl
    assert sasl is not None  # noqa: S101 - the caller has looked
    options: dict[str, Any] = {"sasl_mechanism": sasl.mechanism}
    if sasl.mechanism == "OAUTHBEARER":
        if sasl.oauth_token is None:
            raise FatalSourceError("kafka.sasl.oauth_token: is required for OAUTHBEARER")
        options["sasl_oauth_token_provider"] = _StaticToken(sasl.oauth_token.get_secret_value())
    elif sasl.mechanism == "GSSAPI":
        options["sasl_kerberos_service_name"] = sasl.kerberos_service_name
        options["sasl_kerberos_domain_name"] = sasl.kerberos_domain_name
        options["sasl_kerberos_name"] = sasl.kerberos_name
    else:
        if sasl.username is None or sasl.password is None:
            raise FatalSourceError(f"kafka.sasl: username and password are required for {sasl.mechanism}")
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = sasl.password.get_secret_value()
    return options


class _StaticToken(AbstractTokenProvider):  # type: ignore[misc]
    """The configured token; a rotated one is read when the process starts again."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        return self._token


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
