"""OAUTHBEARER: tokens of a real HTTP server, a file, a command and Amazon's signer, taken by a real broker."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from kafka import errors
from pydantic import ValidationError

from monitor.core.types import Partition
from monitor.sources.kafka import tokens
from monitor.sources.kafka.settings import KafkaSaslSettings, KafkaSettings
from monitor.sources.kafka.source import KafkaSource
from monitor.sources.kafka.tokens import Token, Tokens, check_tokens, tokens_of
from monitor.sources.protocol import FatalSourceError, SourceError
from tests.kafka.broker import Broker
from tests.sources.worlds import KafkaWorld, follow_until, read


def jwt(life_s: float) -> str:
    """A token as the broker's own validator takes it: unsigned."""
    now_s = int(time.time())
    parts = [{"alg": "none"}, {"sub": "layerwatch", "iat": now_s, "exp": now_s + life_s}]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, ""])


class Issuer:
    """An OIDC authority that gives tokens for client credentials.

    answers: what comes next instead of a token, as (status, body).
    """

    def __init__(self, life_s: float) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.answers: list[tuple[int, object]] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                issuer.asked.append((self.headers["authorization"], form))
                token = {"access_token": jwt(life_s), "expires_in": life_s}
                status, body = issuer.answers.pop(0) if issuer.answers else (200, token)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def issuer(request: pytest.FixtureRequest) -> Iterator[Issuer]:
    made = Issuer(getattr(request, "param", 3600.0))
    yield made
    made.close()


def sasl(**oauth: Any) -> KafkaSaslSettings:
    return KafkaSaslSettings.model_validate({"mechanism": "OAUTHBEARER", "oauth": oauth})


def login(issuer: Issuer, **fields: Any) -> dict[str, Any]:
    return {"token_url": issuer.url, "client_id": "lw", "client_secret": "hunter1", "scope": "kafka", **fields}


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


# ------------------------------------------------------------------------------------------------ with a broker


@pytest.fixture
def world(breakable_broker: Broker) -> Iterator[KafkaWorld]:
    made = KafkaWorld(breakable_broker)
    yield made
    made.leave()


def settings(world: KafkaWorld, broker: Broker, login: KafkaSaslSettings) -> KafkaSettings:
    tree = {"bootstrap_servers": broker.address("OAUTH"), "request_timeout_s": 3, "sasl": login}
    return KafkaSettings.model_validate(world.config.kafka.model_dump() | tree)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("issuer", [3.0], indirect=True)
def test_reading_outlives_the_first_token(breakable_broker: Broker, world: KafkaWorld, issuer: Issuer) -> None:
    source = KafkaSource(settings(world, breakable_broker, sasl(**login(issuer))))
    world.opened.append(source)
    follow_until(source, lambda owned: len(owned) == 2)
    source.start(Partition(world.topic, 0), 0)
    deadline = time.monotonic() + 7
    sent: list[bytes] = []
    while time.monotonic() < deadline:
        sent.append(str(len(sent)).encode())
        world.write(0, [sent[-1]])
        assert [record.value for record in read(source, 1)] == sent[-1:]
        time.sleep(0.05)
    assert len(issuer.asked) >= 3  # the broker ends a connection whose token is not renewed


@pytest.mark.kafka
def test_a_client_that_the_authority_refuses_is_fatal_and_an_authority_that_is_away_is_not(
    breakable_broker: Broker, world: KafkaWorld, issuer: Issuer
) -> None:
    issuer.answers = [(401, {"error": "invalid_client"})] * 9
    with pytest.raises(FatalSourceError, match=r"refuses kafka\.sasl\.oauth\.client_id: invalid_client"):
        KafkaSource(settings(world, breakable_broker, sasl(**login(issuer))))
    issuer.answers = [(503, "")] * 99
    with pytest.raises(SourceError, match=r"no OAUTHBEARER token: 127.0.0.1 answered 503"):
        KafkaSource(settings(world, breakable_broker, sasl(**login(issuer))))
