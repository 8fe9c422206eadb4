"""OAUTHBEARER: tokens of a real HTTP server, a file, a command and Amazon's signer."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kafka import errors
from pydantic import ValidationError

from monitor.sources.kafka import tokens
from monitor.sources.kafka.tokens import Token, Tokens, check_tokens, tokens_of
from monitor.sources.protocol import FatalSourceError
from tests.sources.issuer import Issuer, jwt, login, sasl


def test_an_authority_is_asked_with_the_client_s_credentials_once_for_all_clients(issuer: Issuer) -> None:
    settings = sasl(**login(issuer))
    assert tokens_of(settings).token() == tokens_of(sasl(**login(issuer))).token()
    authorization = "Basic " + base64.b64encode(b"lw:hunter1").decode()
    assert issuer.asked == [(authorization, {"grant_type": ["client_credentials"], "scope": ["kafka"]})]


def test_a_file_is_read_again_when_its_token_grows_old(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("opaque-1\n")
    given = tokens_of(sasl(file=path))
    assert given.token() == "opaque-1"
    path.write_text("opaque-2")
    assert given.token() == "opaque-2"
    lasting = jwt(100)
    path.write_text(lasting)
    assert given.token() == lasting
    path.unlink()
    assert given.token() == lasting


def test_a_command_prints_the_token() -> None:
    assert tokens_of(sasl(command=[sys.executable, "-c", "print('word')"])).token() == "word"


def test_a_token_is_renewed_at_half_of_its_life_and_kept_while_nobody_gives_another() -> None:
    away = OSError("away")
    fetched: Iterator[Token | OSError] = iter([Token("a", 0, 100), away, Token("b", 60, 160), away])
    now_s = [0.0]

    def fetch() -> Token:
        following = next(fetched)
        if isinstance(following, OSError):
            raise following
        return following

    given = Tokens(fetch, lambda: now_s[0])
    found = []
    for now in (0.0, 49.0, 51.0, 60.0, 109.0):
        now_s[0] = now
        found.append(given.token())
    assert found == ["a", "a", "a", "b", "b"]
    now_s[0] = 161
    with pytest.raises(errors.KafkaConnectionError, match="no OAUTHBEARER token: away"):
        given.token()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ((401, {"error": "invalid_client", "x": "hunter2"}), errors.SaslAuthenticationFailedError, "invalid_client$"),
        ((503, "busy"), errors.KafkaConnectionError, "answered 503"),
        ((302, ""), errors.KafkaConnectionError, "answered 302"),
        ((200, []), errors.KafkaConnectionError, "no token"),
        ((200, {"access_token": "a\nb"}), errors.KafkaConnectionError, "no token"),
        ((200, {"access_token": jwt(-5)}), errors.KafkaConnectionError, "the token expired"),
    ],
    ids=["refused", "busy", "redirected", "not an object", "not a token", "expired"],
)  # fmt: skip
def test_what_is_no_token_is_said_so(
    issuer: Issuer, answer: tuple[int, object], error: type[Exception], text: str
) -> None:
    issuer.answers.append(answer)
    with pytest.raises(error, match=text) as raised:
        tokens_of(sasl(**login(issuer))).token()
    assert "hunter" not in str(raised.value)


def test_a_token_of_amazon_is_signed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aws_msk_iam_sasl_signer")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    settings = sasl(aws_region="eu-west-1")
    check_tokens(settings.oauth)  # type: ignore[arg-type]
    coded = tokens_of(settings).token()
    url = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
    assert url.startswith("https://kafka.eu-west-1.amazonaws.com/?Action=kafka-cluster%3AConnect")
    assert tokens_of(settings).token() == coded  # it lives for 15 minutes


@pytest.mark.parametrize(
    ("oauth", "text"),
    [
        ({}, "needs one of"),
        ({"file": "/a", "command": ["b"]}, "needs one of"),
        ({"token_url": "https://x", "client_id": "c"}, "client_secret: "),
        ({"token_url": "https://u:p@x/t", "client_id": "c", "client_secret": "s"}, "token_url: "),
        ({"file": "/a", "scope": "s"}, "scope: goes with token_url"),
    ],
    ids=str,
)
def test_where_tokens_come_from_is_said_once(oauth: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        sasl(**oauth)


@pytest.mark.parametrize(
    ("oauth", "text"),
    [
        ({"file": "/no/token"}, "kafka.sasl.oauth.file: there is no file /no/token"),
        ({"command": ["no-such-program"]}, "kafka.sasl.oauth.command: there is no program no-such-program"),
        ({"aws_region": "eu-west-1"}, r"kafka.sasl.oauth.aws_region: .*layerwatch\[msk\]"),
    ],
    ids=str,
)
def test_where_no_token_can_come_from_is_refused_at_once(
    oauth: Mapping[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SIGNER", "no_such_module")
    with pytest.raises(FatalSourceError, match=text):
        check_tokens(sasl(**oauth).oauth)  # type: ignore[arg-type]
