"""Connections to real servers that want TLS, a client's certificate and a user of their ACL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from monitor.store import StoreConfigError, StoreError, client
from monitor.store.child_process import ChildProcess, free_port
from monitor.store.client import connect
from monitor.store.private_server import find_redis_server
from monitor.store.settings import RedisSettings

SLOTS = 16384
RIGHTS = "+@all ~* &*"


class TlsServer(ChildProcess):
    """A Redis or a sentinel that speaks TLS alone and wants a client's certificate and a user.

    Args:
        lines: further lines of its configuration.
    """

    def __init__(self, folder: Path, certificates: Path, lines: str, *words: str) -> None:
        folder.mkdir()
        super().__init__("a TLS server", folder / "log", stop_timeout_s=2.0)
        self.port = free_port()
        self._tls: dict[str, Any] = {
            "ssl": True,
            "ssl_ca_certs": str(certificates / "ca.pem"),
            "ssl_certfile": str(certificates / "client.crt"),
            "ssl_keyfile": str(certificates / "client.key"),
        }
        config = folder / "config"
        config.write_text(
            f"port 0\ntls-port {self.port}\nbind 127.0.0.1\ndir {folder}\ntls-cert-file {certificates}/server.crt\n"
            f"tls-key-file {certificates}/server.key\ntls-ca-cert-file {certificates}/ca.pem\ntls-replication yes\n"
            f"user default off\nuser admin on >all {RIGHTS}\n{lines}\n"
        )
        self._command = [str(find_redis_server()), str(config), *words]

    def admin(self) -> redis.Redis:
        """A client with all rights."""
        return redis.Redis(port=self.port, username="admin", password="all", socket_timeout=1.0, **self._tls)

    def start(self) -> None:
        self._launch(self._command)
        self._wait_until(self._answers, 10.0)

    def _answers(self) -> bool:
        with self.admin() as admin, suppress(redis.RedisError):
            return bool(admin.ping())
        return False


@pytest.fixture(scope="module")
def tls_redis(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("tls") / "redis"
    with TlsServer(folder, certificates, f"user monitor on >secret {RIGHTS}\nsave ''") as server:
        yield server


@pytest.fixture
def settings(tls_redis: TlsServer, certificates: Path) -> Callable[..., RedisSettings]:
    """Settings that the server accepts; keywords replace some."""

    def make(*, login: str = "monitor:secret@", query: str | None = None, **fields: Any) -> RedisSettings:
        if query is None:
            query = f"?ssl_certfile={certificates}/client.crt&ssl_keyfile={certificates}/client.key"
        fields = {
            "url": f"rediss://{login}localhost:{tls_redis.port}/0{query}",
            "tls_ca_file": certificates / "ca.pem",
            "timeout_s": 2.0,
            **fields,
        }
        return RedisSettings.model_validate(fields)

    return make


def test_a_server_that_wants_tls_a_certificate_and_a_user_is_reached(settings: Callable[..., RedisSettings]) -> None:
    with closing(connect(settings())) as connection:
        assert connection.read("ACL", "WHOAMI") == b"monitor"


@pytest.fixture
def tls_sentinel(tls_redis: TlsServer, tmp_path: Path, certificates: Path) -> Iterator[TlsServer]:
    lines = (
        "user watcher on >word resetchannels -@all +auth +ping +sentinel|masters\n"
        f"sentinel monitor mymaster 127.0.0.1 {tls_redis.port} 1\n"
        "sentinel auth-user mymaster admin\nsentinel auth-pass mymaster all\n"
    )
    with TlsServer(tmp_path / "sentinel", certificates, lines, "--sentinel") as server:
        yield server


def test_sentinels_are_asked_over_tls_with_a_user_of_their_own(
    settings: Callable[..., RedisSettings], tls_sentinel: TlsServer
) -> None:
    entry = f"localhost:{tls_sentinel.port}"
    login = {"mode": "sentinel", "sentinel_username": "watcher"}
    good = settings(**login, sentinel_password="word", sentinels=[f"127.0.0.1:{free_port()}", entry])
    with closing(connect(good)) as connection:
        assert connection.read("ACL", "WHOAMI") == b"monitor"
    with pytest.raises(StoreConfigError, match=r"^redis\.sentinel_password: .*invalid username-password"):
        connect(settings(**login, sentinel_password="other", sentinels=[entry]))


def test_a_sentinel_without_tls_in_front_of_a_server_with_tls_is_named_by_its_scheme(
    settings: Callable[..., RedisSettings], tls_sentinel: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SETUP_ATTEMPTS", 1)
    plain = settings(mode="sentinel", sentinels=[f"redis://localhost:{tls_sentinel.port}"])
    with pytest.raises(StoreError, match=r"no primary 'mymaster': localhost:.*(reset by peer|closed by server)"):
        connect(plain)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        (
            {"tls_ca_file": "other.pem"},
            StoreConfigError,
            "redis.tls_ca_file: TLS: .* certificate is not accepted: self",
        ),
        ({"tls_ca_file": "nothing.pem"}, StoreConfigError, "redis.tls_ca_file: cannot use .*nothing.pem: No such file"),
        ({"tls_ca_file": "ca.key"}, StoreConfigError, "redis.tls_ca_file: cannot use .*ca.key: no certificate"),
        ({"query": "?ssl_certfile=/none"}, StoreConfigError, "redis.url: cannot use /none: No such file"),
        ({"query": "?ssl_cert=x"}, StoreConfigError, "redis.url: no such option: 'ssl_cert'"),
        ({"query": "?ssl_cert_reqs=maybe"}, StoreConfigError, "redis.url: .*maybe"),
        ({"query": ""}, StoreError, "TLS: .*it may want a client certificate"),
        ({"login": "monitor:wrong@"}, StoreConfigError, "redis.url: the server refuses our credentials"),
        ({"url": "redis://localhost:{port}/0"}, StoreError, "only TLS"),
    ],
    ids=str,
)
def test_what_is_wrong_with_tls_is_said_so(
    settings: Callable[..., RedisSettings], tls_redis: TlsServer, certificates: Path, monkeypatch: pytest.MonkeyPatch,
    changed: Mapping[str, str], error: type[Exception], text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "SETUP_ATTEMPTS", 1)
    fields = {key: value.replace("{port}", str(tls_redis.port)) for key, value in changed.items()}
    if "tls_ca_file" in fields:
        fields["tls_ca_file"] = str(certificates / fields["tls_ca_file"])
    with pytest.raises(error) as raised:
        connect(settings(**fields))
    assert re.search(text, str(raised.value))
    assert "secret" not in str(raised.value)


def test_a_server_without_tls_is_named_as_such(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SETUP_ATTEMPTS", 1)
    url = redis_server.url.replace("redis://", "rediss://")
    with pytest.raises(StoreError, match=r"TLS: .*does it speak TLS on that port\? .* redis://"):
        connect(RedisSettings.model_validate({"url": url, "timeout_s": 0.3}))


@pytest.mark.slow
def test_a_cluster_over_tls_is_reached(
    settings: Callable[..., RedisSettings], certificates: Path, tmp_path: Path
) -> None:
    lines = f"cluster-enabled yes\ntls-cluster yes\ncluster-port {free_port()}\nuser monitor on >secret {RIGHTS}"
    with TlsServer(tmp_path / "node", certificates, lines) as node, node.admin() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        made = settings(mode="cluster")
        url = re.sub(r"localhost:\d+", f"127.0.0.1:{node.port}", made.url.get_secret_value())
        while admin.cluster("INFO")["cluster_state"] != "ok":
            pass
        with closing(connect(settings(mode="cluster", url=url))) as connection:
            assert connection.is_cluster
            assert connection.read("SET", "a", "1") in {True, b"OK"}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"url": "redis://:a/b@localhost:6379/0"}, "%2F"),
        ({"url": "redis://:a#b@localhost:6379/0"}, "%23"),
        ({"url": "redis://:a?b@localhost:6379/0"}, "%3F"),
        ({"url": "redis://localhost:port/0"}, "numbers"),
        ({"url": "redis://localhost:6379/zero"}, "numbers"),
        ({"url": "http://localhost"}, "rediss://"),
        ({"url": "redis://localhost/1", "mode": "cluster"}, "only database 0"),
        ({"url": "unix:///run/redis", "mode": "cluster"}, "needs redis://"),
        ({"mode": "sentinel"}, "sentinels"),
        ({"mode": "sentinel", "sentinels": ["a:b"]}, "host:port"),
        ({"mode": "sentinel", "sentinels": "rediss://user:word@a:1"}, "without a password"),
    ],
    ids=str,
)
def test_an_address_that_the_client_would_misread_is_refused_without_showing_it(
    fields: Mapping[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        RedisSettings.model_validate(fields)
    assert not re.search("a[/#?]b|user:word@", str(raised.value))
