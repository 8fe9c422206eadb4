"""The `redis` section of the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, PositiveFloat, SecretStr, model_validator

from monitor.core.settings import Names, Secret, Section

SENTINEL_PORT = 26379
FORM = "redis://, rediss:// or unix://, then [user:password@]host:port/database"


def _redis_url(secret: SecretStr) -> SecretStr:
    """Refuse what the client would misread, without showing any part of it: most of the URL may be the password."""
    url = secret.get_secret_value()
    split = urlsplit(url)
    if split.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"must be {FORM}")
    if "@" in split.path + split.query + split.fragment or split.fragment:
        raise ValueError(f"must be {FORM}; in a password write / ? # @ as %2F %3F %23 %40")
    if split.scheme != "unix" and not (_has_port(split) and re.fullmatch(r"/?\d*", split.path)):
        raise ValueError(f"must be {FORM}; port and database are numbers")
    return secret


def _has_port(split: SplitResult) -> bool:
    """Whether the port is a number or left out."""
    try:
        return split.port is None or True
    except ValueError:
        return False


def sentinel_address(entry: str, scheme: str) -> SplitResult:
    """An entry of `redis.sentinels`; `scheme` is that of `redis.url` and holds where the entry has none."""
    return urlsplit(entry if "://" in entry else f"{scheme}://{entry}")


def _sentinels(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        split = sentinel_address(entry, "redis")
        known = split.scheme in {"redis", "rediss"} and split.hostname and _has_port(split)
        if not known or split.path.strip("/") or "@" in entry:
            raise ValueError("each must be host:port, redis://host:port or rediss://host:port, without a password")
    return entries


class RedisSettings(Section):
    """Where the state lives: one server by URL, a Sentinel set, or a Cluster."""

    mode: Literal["single", "sentinel", "cluster"] = "single"
    url: Annotated[Secret, AfterValidator(_redis_url)] = SecretStr("redis://localhost:6379/0")
    sentinels: Annotated[Names, AfterValidator(_sentinels)] = ()
    sentinel_master: str = "mymaster"
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    tls_ca_file: Path | None = None
    timeout_s: PositiveFloat = 5.0
    wait_aof: bool = True

    @model_validator(mode="after")
    def _mode_fits(self) -> RedisSettings:
        split = urlsplit(self.url.get_secret_value())
        if self.mode == "sentinel" and not self.sentinels:
            raise ValueError("sentinels: mode sentinel needs them (host:port, ...)")
        if self.mode != "single" and split.scheme == "unix":
            raise ValueError(f"url: mode {self.mode} needs redis:// or rediss://")
        if self.mode == "cluster" and split.path.strip("/0"):
            raise ValueError("url: a Redis Cluster has only database 0")
        return self

    @property
    def speaks_tls(self) -> bool:
        """Whether the servers are reached over TLS."""
        return self.url.get_secret_value().startswith("rediss://")
