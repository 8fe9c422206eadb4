"""The `web` section of the configuration."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Annotated

from pydantic import Field

from monitor.core.settings import Secret, Section


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0 picks a free port (logged)."""
    external_url: str = ""
    """Address of the status page for people, with the path that a proxy adds; used in alerts and on the page. Alerts of
    a monitor without one link to the page's own address."""
    dashboard_url: str = ""
    """Address of a dashboard that alerts link to; `{stream}` in it becomes the stream's name, percent-quoted."""
    token: Secret | None = None
    """Bearer token for everything but health; browsers give it as a password."""
    username: str | None = None
    password: Secret | None = None
    anonymous: bool = False
    """Without a token or a password, listen beyond this machine all the same: whoever reaches the port may read."""

    @property
    def protected(self) -> bool:
        """Whether a token or a password is asked for."""
        return any(secret is not None and secret.get_secret_value() for secret in (self.token, self.password))

    @property
    def exposed(self) -> bool:
        """Whether other machines may read without anybody having said so."""
        return not (self.protected or self.anonymous or _is_loopback(self.host))

    def url(self, bound_port: int = 0) -> str:
        """Where alerts say that the page is: `external_url`, else the page's own address; empty while its port is not
        known.

        Args:
            bound_port: the port that was taken where `port` is 0.
        """
        if self.external_url:
            return self.external_url
        host = socket.gethostname() if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compares
        port = self.port or bound_port
        return f"http://{f'[{host}]' if ':' in host else host}:{port}" if port else ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
