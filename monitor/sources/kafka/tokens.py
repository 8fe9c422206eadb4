"""Tokens for OAUTHBEARER, each from where `kafka.sasl` says, renewed before it expires.

kafka-python asks for a token whenever it authenticates: at each new connection, and again shortly before the broker
would end a connection whose token expires. It asks on its own network thread, so every fetch has a time limit well
below the group's session time-out, and one token serves all clients of the process for half of its life.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import httpx
import structlog
from kafka import errors
from kafka.net.sasl.oauth import AbstractTokenProvider

from monitor.sources.kafka.settings import KafkaOauthSettings, KafkaSaslSettings
from monitor.sources.protocol import FatalSourceError

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 10.0
RENEWED_AT = 0.5
"""Share of a token's life after which the next authentication takes a new one: the other half is for an authority that
is away."""
SIGNER = "aws_msk_iam_sasl_signer"


class Token(NamedTuple):
    """A token, and when it was made and expires; it expires at once where it does not say."""

    text: str
    made_s: float
    expires_s: float


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """Gives the current token. Safe to share between threads.

    Args:
        fetch: takes a new one, from a file or over the network.
        now_s: seconds since the epoch, as in the tokens.
    """

    def __init__(self, fetch: Callable[[], Token], now_s: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._fetch, self._now_s, self._lock = fetch, now_s, threading.Lock()
        self._current = Token("", 0.0, 0.0)

    def token(self) -> str:
        """A token that is valid now; kafka-python's name.

        Raises:
            SaslAuthenticationFailedError: the authority refuses us.
            KafkaConnectionError: there is none to be had now.
        """
        with self._lock:
            now_s, (text, made_s, expires_s) = self._now_s(), self._current
            if now_s < made_s + RENEWED_AT * (expires_s - made_s):
                return text
            try:
                self._current = self._fetch()
            except (errors.KafkaError, httpx.HTTPError, OSError, subprocess.SubprocessError, ValueError) as error:
                if now_s < expires_s:
                    log.warning("kafka.token_not_renewed", error=str(error), seconds_left=round(expires_s - now_s))
                    return text
                if isinstance(error, errors.KafkaError):
                    raise
                raise errors.KafkaConnectionError(f"no OAUTHBEARER token: {_line(error)}") from error
            return self._current.text


@cache
def tokens_of(sasl: KafkaSaslSettings) -> Tokens:
    """Where the tokens of these settings come from; the same object for all clients, which share them."""
    oauth = sasl.oauth
    if oauth is None:
        assert sasl.oauth_token  # noqa: S101 - the settings require one of the two
        text = sasl.oauth_token.get_secret_value()
        return Tokens(lambda: Token(text, time.time(), time.time()))
    if oauth.file:
        return Tokens(lambda: _read(oauth))
    if oauth.command:
        return Tokens(lambda: _run(oauth))
    return Tokens(lambda: _sign(oauth) if oauth.aws_region else _ask(oauth))


def check_tokens(oauth: KafkaOauthSettings) -> None:
    """Raises FatalSourceError where no token can come from there; fetches none."""
    key = "kafka.sasl.oauth"
    if oauth.file and not oauth.file.is_file():
        raise FatalSourceError(f"{key}.file: there is no file {oauth.file}")
    if oauth.command and not shutil.which(oauth.command[0]):
        raise FatalSourceError(f"{key}.command: there is no program {oauth.command[0]}")
    if oauth.aws_region and not find_spec(SIGNER):
        raise FatalSourceError(f"{key}.aws_region: needs the signer of Amazon MSK: pip install layerwatch[msk]")


# ------------------------------------------------------------------------------------------------ where from


def _read(oauth: KafkaOauthSettings) -> Token:
    assert oauth.file  # noqa: S101
    return _parsed(oauth.file.read_text(encoding="utf-8"))


def _run(oauth: KafkaOauthSettings) -> Token:
    # its errors go to our stderr; what it prints is the token, and nobody else sees it
    done = subprocess.run(  # noqa: S603 - the operator's own command
        oauth.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=FETCH_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ValueError(f"{oauth.command[0]} ended with {done.returncode}")
    return _parsed(done.stdout.decode())


def _ask(oauth: KafkaOauthSettings) -> Token:
    """OAuth 2.0 client credentials (RFC 6749, 4.4), with the login in the Authorization header."""
    assert oauth.token_url  # noqa: S101
    assert oauth.client_id  # noqa: S101
    assert oauth.client_secret  # noqa: S101
    form = {"grant_type": "client_credentials"} | ({"scope": oauth.scope} if oauth.scope else {})
    login = httpx.BasicAuth(oauth.client_id, oauth.client_secret.get_secret_value())
    answer = httpx.post(oauth.token_url, data=form, auth=login, timeout=FETCH_TIMEOUT_S, follow_redirects=False)
    if answer.status_code in {400, 401, 403}:
        raise errors.SaslAuthenticationFailedError(
            f"{answer.url.host} refuses kafka.sasl.oauth.client_id: {_reason(answer)}"
        )
    if not answer.is_success:
        raise ValueError(f"{answer.url.host} answered {answer.status_code}")
    body = _object(answer)
    life_s = body.get("expires_in")
    return _parsed(str(body.get("access_token", "")), float(life_s) if isinstance(life_s, int | float) else None)


def _reason(answer: httpx.Response) -> str:
    """The error code of RFC 6749 (`invalid_client`), which holds no secret; else the status."""
    code = str(_object(answer).get("error", ""))
    return code if re.fullmatch(r"\w{1,40}", code) else f"status {answer.status_code}"


def _object(answer: httpx.Response) -> dict[str, object]:
    """The JSON object of an answer; an empty one where it holds something else."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _sign(oauth: KafkaOauthSettings) -> Token:
    """A token of Amazon MSK, signed here with the credentials that AWS's own client finds."""
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415 - an extra, and it loads botocore

    text, expires_ms = MSKAuthTokenProvider.generate_auth_token(oauth.aws_region)
    return Token(text, time.time(), expires_ms / 1000)


# ------------------------------------------------------------------------------------------------ what it says


def _parsed(text: str, life_s: float | None = None) -> Token:
    """The token with its life: as its issuer says, else as a JWT says of itself, else it is fetched again each time."""
    text, now_s = text.strip(), time.time()
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("what came is no token: it must be one word of ASCII")
    if life_s is not None:
        return Token(text, now_s, now_s + life_s)
    expires_s = _expiry(text)
    if expires_s is not None and expires_s <= now_s:
        raise ValueError(f"the token expired {round(now_s - expires_s)} s ago")
    return Token(text, now_s, now_s if expires_s is None else expires_s)


def _expiry(text: str) -> float | None:
    """The time in the claim `exp` of a JWT, which the broker verifies; None where there is none, or no JWT."""
    try:
        payload = text.split(".")[1]
        expires_s = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
    except (LookupError, TypeError, ValueError, binascii.Error):
        return None
    return float(expires_s) if isinstance(expires_s, int | float) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
