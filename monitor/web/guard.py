"""Authentication of requests, protection of the forms, and the security headers of every answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.web.settings import WebSettings

OPEN_PATHS = ("/healthz", "/readyz")
"""Probes of an orchestrator carry no token."""
SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""No inline code and nothing from other hosts: stream names and image ids come from the senders of records."""


class Credentials:
    """The configured token and password, and what follows from them.

    A browser cannot send a bearer token of its own: the token is taken as a password too, with any user name.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._token = settings.token.get_secret_value() if settings.token else ""
        self._username = settings.username or ""
        self._password = settings.password.get_secret_value() if settings.password else ""

    @property
    def configured(self) -> bool:
        """Whether requests need credentials; without any configured the web is read-only."""
        return bool(self._token or self._password)

    def allow(self, header: str) -> bool:
        """Whether an Authorization header holds the token or the password; compared in constant time."""
        if not self.configured:
            return True
        scheme, _, given = header.partition(" ")
        if scheme.lower() == "bearer":
            return bool(self._token) and _same(given.strip(), self._token)
        username, password = _basic(header)
        by_token = bool(self._token) and _same(password, self._token)
        by_password = bool(self._password) and _same(f"{username}:{password}", f"{self._username}:{self._password}")
        return by_token or by_password

    def form_token(self) -> str:
        """Anti-forgery token of the forms: another site can neither read nor guess it. The same on every replica."""
        key = f"{self._token}\n{self._username}\n{self._password}".encode()
        return hmac.new(key, b"layerwatch form", hashlib.sha256).hexdigest()

    def is_form_token(self, given: str) -> bool:
        """Whether a form carries `form_token`."""
        return self.configured and _same(given, self.form_token())


def user_of(header: str) -> str:
    """The user name of basic auth; empty for anything else."""
    return _basic(header)[0]


def from_our_pages(headers: Headers) -> bool:
    """False where a browser says that another site made it send this request."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host", "")


class Guard:
    """Middleware: asks for credentials, except on OPEN_PATHS, and adds the headers of SAFE to every answer.

    Args:
        base: path below which a proxy puts the pages, as /layerwatch; removed here where the proxy has not done so.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials, base: str) -> None:
        self._app, self._credentials, self._base = app, credentials, base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's middleware protocol."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._base and f"{scope['path']}/".startswith(f"{self._base}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._base) or "/"}

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SAFE)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        header = Headers(scope=scope).get("authorization", "")
        if scope["path"] in OPEN_PATHS or self._credentials.allow(header):
            await self._app(scope, receive, send_safely)
            return
        challenge = {"WWW-Authenticate": 'Basic realm="layerwatch", charset="UTF-8"'}
        await PlainTextResponse("authorization needed\n", 401, challenge)(scope, receive, send_safely)


def _basic(header: str) -> tuple[str, str]:
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        username, _, password = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return username, password


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))
