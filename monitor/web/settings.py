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
    """How people reach this page, with the path where a proxy puts it below one; in alerts and on the page."""
    dashboard_url: str = ""
    """Where alerts lead besides; `{stream}` in it becomes the alert's stream, percent-quoted."""
    token: Secret | None = None
    username: str | None = None
    password: Secret | None = None
