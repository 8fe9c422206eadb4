"""HTTP POSTs to a receiver and the meaning of its answers. The only file here that knows the HTTP client."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.metadata import version

import httpx

from monitor.notify.receivers.protocol import Delivered, Outcome, ReceiverConfigError, ReceiverSettings, Refused, Retry
from monitor.telemetry.clock import wall_ms

GONE = 410
MAX_RETRY_AFTER_S = 3_600.0
"""The longest pause that a receiver can ask for: an alert loses its value with time."""
EXPLANATION_BYTES = 200
JSON_HEADERS = {"content-type": "application/json"}

# The client's own log lines hold full URLs, and some URLs here are secrets.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Endpoint:
    """A URL that takes POSTs. Safe to share between threads.

    2xx is delivered. The statuses in `final` are refused. Everything else is tried again: 5xx, 429, time-outs and
    errors of the connection because they pass; 3xx (a login page or a maintenance page before the receiver) and other
    4xx (401 after a key was changed, 404 while the receiver is being deployed, 413 from a misconfigured proxy) because
    someone can repair them within the three days of the schedule and then nothing is lost. A redirect is not followed:
    that would carry a signed alert to an unknown host.

    Args:
        key: the setting of the receiver that `url` comes from, for errors.
        final: statuses after which the same request can never succeed.
        explain: put the start of the answer's body into the reason; only where it cannot echo secrets.

    Raises:
        ReceiverConfigError: the URL or a header cannot be used.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        url: str,
        *,
        key: str = "url",
        headers: Mapping[str, str] | None = None,
        final: frozenset[int] = frozenset({GONE}),
        explain: bool = False,
    ) -> None:
        path = f"receivers.{settings.name}.{key}"
        self._url = _checked(path, url)
        self._where = f"{self._url.host}:{self._url.port}" if self._url.port else self._url.host
        self._headers = {**JSON_HEADERS, **(headers or {})}
        for name, value in self._headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\x20-\x7e\t]*", value):
                raise ReceiverConfigError(f"{path}: header {name!r} has a name or value that HTTP does not allow")
        self._final = final
        self._explain = explain
        self._client = httpx.Client(
            timeout=settings.timeout_s,
            verify=_trusted(),
            follow_redirects=False,
            headers={"user-agent": f"layerwatch/{version('layerwatch')}"},
        )

    def post(self, body: str, headers: Mapping[str, str] | None = None) -> Outcome:
        """Send once."""
        headers = {**self._headers, **(headers or {})}
        try:
            # streamed: only the status counts, and an endless body must not block the thread
            with self._client.stream("POST", self._url, content=body.encode(), headers=headers) as response:
                return self._outcome(response)
        except (httpx.ConnectError, httpx.TimeoutException, httpx.ReadError, httpx.WriteError) as error:
            return Retry(f"{self._where}: {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))
        except httpx.HTTPError as error:
            # by name alone: texts of protocol errors can quote headers
            return Retry(f"{self._where}: {type(error).__name__}")

    def close(self) -> None:
        """Free the connections."""
        self._client.close()

    def _outcome(self, response: httpx.Response) -> Outcome:
        status = response.status_code
        if response.is_success:
            return Delivered()
        reason = f"{self._where}: answered {status}"
        if response.is_redirect:
            return Retry(f"{reason}; redirects are not followed, configure the final URL")
        if self._explain:
            start = next(response.iter_bytes(EXPLANATION_BYTES), b"").decode("utf-8", "replace")
            reason = " ".join([reason, *start.split()])
        if status in self._final:
            return Refused(reason)
        return Retry(reason, retry_after_s(response.headers.get("retry-after", ""), wall_ms()))


def retry_after_s(header: str, now_ms: int) -> float | None:
    """What a Retry-After header (seconds or HTTP date) asks for, at most MAX_RETRY_AFTER_S; None without one."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        asked = float(header[:9])
    else:
        try:
            asked = parsedate_to_datetime(header).timestamp() - now_ms / 1000
        except ValueError:
            return None
    return min(max(asked, 0.0), MAX_RETRY_AFTER_S)


@cache
def _trusted() -> ssl.SSLContext:
    """The trusted certificate authorities; reading them takes some 50 ms, so it is done once for all receivers."""
    return httpx.create_ssl_context()


def _checked(key: str, url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    # the client would escape white space in a host
    if parsed.scheme not in {"http", "https"} or not parsed.host or re.search(r"\s", url):
        raise ReceiverConfigError(f"{key}: must be a URL with http:// or https:// and a host")
    return parsed
