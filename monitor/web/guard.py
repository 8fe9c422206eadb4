"""Who is answered: credentials and host names; protection of the forms; the security headers of every answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.web.settings import WebSettings

OPEN_PATHS = ("/healthz", "/readyz")
"""Probes of an orchestrator carry no token."""
PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".svc")
"""Ends of names that public DNS does not hold; `.svc` is short for a service of Kubernetes."""
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
        self.configured = settings.protected
        """Whether requests need credentials; without any configured the web is read-only."""
        self._token = settings.token.get_secret_value() if settings.token else ""
        self._username = settings.username or ""
        self._password = settings.password.get_secret_value() if settings.password else ""

    def allow(self, header: str) -> bool:
        """Whether an Authorization header holds a configured token or password; compared in constant time."""
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


class Hosts:
    """The host names that are answered without credentials.

    A page from elsewhere can let its own name lead to this address (DNS rebinding): to the browser, what it then reads
    here is its own. So the name must be one that no stranger can own: an address, a name without a dot or below one
    of PRIVATE, that of this machine, or that of `web.host` or `web.external_url`.
    """

    def __init__(self, settings: WebSettings) -> None:
        named = socket.gethostname(), settings.host, urlsplit(settings.external_url).hostname or ""
        self._names = {name.lower().rstrip(".") for name in named}

    def known(self, header: str) -> bool:
        """Whether a Host header names this machine."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return "." not in name or name in self._names or name.endswith(PRIVATE) or _is_address(name)


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
    """Middleware: asks for credentials or a known host, except on OPEN_PATHS; adds the headers of SAFE to every answer.

    Args:
        base: path below which a proxy puts the pages, as /layerwatch; removed here where the proxy has not done so.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials, hosts: Hosts, base: str) -> None:
        self._app, self._credentials, self._hosts, self._base = app, credentials, hosts, base

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

        answer = None if scope["path"] in OPEN_PATHS else self._refusal(Headers(scope=scope))
        await (answer or self._app)(scope, receive, send_safely)

    def _refusal(self, headers: Headers) -> PlainTextResponse | None:
        if self._credentials.configured:
            if self._credentials.allow(headers.get("authorization", "")):
                return None
            challenge = {"WWW-Authenticate": 'Basic realm="layerwatch", charset="UTF-8"'}
            return PlainTextResponse("authorization needed\n", 401, challenge)
        if self._hosts.known(headers.get("host", "")):
            return None
        return PlainTextResponse("unknown host: use an address, set web.external_url, or set web.token\n", 421)


def _basic(header: str) -> tuple[str, str]:
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        username, _, password = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return username, password


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))
