"""The `kafka` section of the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from monitor.core.settings import Names, Secret, Section


class KafkaOauthSettings(Section):
    """Where tokens for OAUTHBEARER come from; one of `file`, `command`, `token_url` and `aws_region`."""

    file: Path | None = None
    """Read at each authentication: something else renews it."""
    command: tuple[str, ...] = ()
    """Program and arguments; prints the token."""
    token_url: str | None = None
    """OIDC: asked for tokens by client credentials."""
    client_id: str | None = None
    client_secret: Secret | None = None
    scope: str | None = None
    aws_region: str | None = None
    """Amazon MSK with IAM; needs `layerwatch[msk]`."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> KafkaOauthSettings:
        if sum(map(bool, (self.file, self.command, self.token_url, self.aws_region))) != 1:
            raise ValueError("needs one of file, command, token_url and aws_region")
        login = {"client_id": self.client_id, "client_secret": _text(self.client_secret), "scope": self.scope}
        for key, value in login.items():
            if self.token_url and not value and key != "scope":
                raise ValueError(f"{key}: token_url needs one that is not empty")
            if value and not self.token_url:
                raise ValueError(f"{key}: goes with token_url")
        if self.token_url and not re.match(r"https?://[^/@\s]+(/|$)", self.token_url):
            raise ValueError("token_url: must be a URL with https:// or http:// and a host, without a login")
        return self


class KafkaSaslSettings(Section):
    """Authentication of the Kafka client; field names are kafka-python's without their prefix."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"]
    username: str | None = None
    password: Secret | None = None
    kerberos_service_name: str = "kafka"
    kerberos_domain_name: str | None = None
    kerberos_name: str | None = None
    oauth_token: Secret | None = None
    """One that never expires; else see `oauth`."""
    oauth: KafkaOauthSettings | None = None

    @model_validator(mode="after")
    def _has_a_login(self) -> KafkaSaslSettings:
        if self.mechanism == "OAUTHBEARER" and bool(self.oauth) == bool(_text(self.oauth_token)):
            raise ValueError("oauth: OAUTHBEARER needs either this or oauth_token")
        needed = () if self.mechanism in {"GSSAPI", "OAUTHBEARER"} else ("username", "password")
        for key in needed:
            if not _text(getattr(self, key)):
                raise ValueError(f"{key}: {self.mechanism} needs one that is not empty")
        return self


def _text(value: str | SecretStr | None) -> str | None:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class KafkaTlsSettings(Section):
    """Transport encryption of the Kafka client."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password: Secret | None = None
    crl_file: Path | None = None
    ciphers: str | None = None
    check_hostname: bool = True


class KafkaSettings(Section):
    bootstrap_servers: Names = ("localhost:9092",)
    topics: Names = ("images",)
    group_id: str = "layerwatch"
    client_id: str = "layerwatch"
    dead_letter_topic: str = "images.dead-letter"
    start: Literal["earliest", "latest"] = "earliest"
    tls: KafkaTlsSettings | None = None
    sasl: KafkaSaslSettings | None = None
    session_timeout_s: PositiveFloat = 45.0
    max_poll_records: PositiveInt = 500
    fetch_max_bytes: PositiveInt = 50 * 2**20
    request_timeout_s: PositiveFloat = 40.0
    client: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Any further option of kafka-python's clients by its own name."""
