"""The `web` section of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from monitor.core.settings import Secret, Section


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0 picks a free port (logged)."""
    external_url: str = ""
    """Address of the status page for people, with the path that a proxy adds; used in alerts and on the page."""
    dashboard_url: str = ""
    """Address of a dashboard that alerts link to; `{stream}` in it becomes the stream's name, percent-quoted."""
    token: Secret | None = None
    username: str | None = None
    password: Secret | None = None
