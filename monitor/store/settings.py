"""The `redis` section of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, SecretStr, model_validator

from monitor.core.settings import Names, Secret, Section


class RedisSettings(Section):
    """Where the state lives: one server by URL, a Sentinel set, or a Cluster."""

    mode: Literal["single", "sentinel", "cluster"] = "single"
    url: Secret = SecretStr("redis://localhost:6379/0")
    sentinels: Names = ()
    sentinel_master: str = "mymaster"
    sentinel_password: Secret | None = None
    tls_ca_file: Path | None = None
    timeout_s: PositiveFloat = 5.0
    wait_aof: bool = True

    @model_validator(mode="after")
    def _sentinel_needs_hosts(self) -> RedisSettings:
        if self.mode == "sentinel" and not self.sentinels:
            raise ValueError("mode sentinel needs redis.sentinels (host:port, ...)")
        return self
