"""Who gets in, and who may write."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from monitor.fleet.state import read_silences
from monitor.web.guard import Hosts
from monitor.web.settings import WebSettings
from tests.plain_http import NO_AUTHORITIES, get
from tests.web.fleet import HOSTILE, Fleet, served

TOKEN = "open-sesame"
PATHS = (
    "/",
    "/streams/calm",
    "/alerts",
    "/profile",
    "/health",
    "/events",
    "/metrics",
    "/static/layerwatch.css",
    "/api/v1/streams",
    "/api/v1/openapi.json",
    "/nothing",
)


@pytest.fixture(scope="module")
def locked(fleet: Fleet) -> Iterator[str]:
    """A server with a token and a password."""
    settings = WebSettings(port=0, token=SecretStr(TOKEN), username="ops", password=SecretStr("pass:word"))
    with served(fleet.store, settings) as address:
        yield address


@pytest.fixture
def inside(locked: str) -> Iterator[httpx.Client]:
    """Somebody who knows the password, at a browser."""
    with httpx.Client(base_url=locked, verify=NO_AUTHORITIES, auth=("ops", "pass:word")) as client:
        yield client


@pytest.fixture(autouse=True)
def clean(fleet: Fleet) -> Iterator[None]:
    """No silence outlives its test."""
    yield
    for silence_id in fleet.store.silences.all():
        fleet.store.silences.remove(silence_id)


def test_everything_but_health_asks_for_the_token(locked: str) -> None:
    for path in PATHS:
        refused = get(locked + path)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic")
    for path in PATHS:
        if path != "/events":
            given = get(locked + path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert given.status_code == (404 if path == "/nothing" else 200), path
    assert get(f"{locked}/healthz").status_code == 200
    assert get(f"{locked}/readyz").status_code == 200


@pytest.mark.parametrize(
    "auth",
    [("ops", "pass:wor"), ("ops2", "pass:word"), ("", ""), ("ops", ""), ("ops:pass", "word!"), ("é", "漢")],
)
def test_a_wrong_password_is_refused(locked: str, auth: tuple[str, str]) -> None:
    assert get(locked, auth=httpx.BasicAuth(*auth)).status_code == 401


@pytest.mark.parametrize("header", ["Basic !!!", "Basic", "Bearer", "Bearer open-sesamf", "Token x", "é"])
def test_a_broken_header_is_refused(locked: str, header: str) -> None:
    assert get(locked, headers={b"Authorization": header.encode()}).status_code == 401


def test_a_browser_may_give_the_token_as_a_password(locked: str) -> None:
    assert get(locked, auth=("anybody", TOKEN)).status_code == 200


OWN_NAMES = ("127.0.0.1:9464", "[::1]:9464", "localhost", "LocalHost.", "layerwatch:9464", "x.plant-1.svc:9464")


@pytest.mark.parametrize("host", [*OWN_NAMES, "ops.example", "OPS.example:443"])
def test_without_a_token_names_that_no_stranger_owns_are_answered(host: str) -> None:
    assert Hosts(WebSettings(external_url="https://ops.example:8443/layerwatch")).known(host)


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test:9464", "localhost.evil.test", "[", "a.localhost.b.c"]
)
def test_without_a_token_other_names_are_refused_except_by_the_probes(site: str, host: str) -> None:
    for path in PATHS:
        assert get(site + path, headers={"Host": host}).status_code == 421, path
    for path in ("/healthz", "/readyz"):
        assert get(site + path, headers={"Host": host}).status_code == 200


def test_with_a_token_any_name_will_do(locked: str) -> None:
    headers = {"Host": "evil.test", "Authorization": f"Bearer {TOKEN}"}
    assert get(f"{locked}/metrics", headers=headers).status_code == 200


def test_a_silence_is_made_shown_and_ended_over_the_form(inside: httpx.Client, fleet: Fleet) -> None:
    form = _form_token(inside)
    fields = {"form": form, "stream": "[<]script*", "duration_s": "3600", "comment": "<i>known</i>"}
    done = inside.post("/alerts/silences", data=fields, follow_redirects=True)
    assert done.status_code == 200
    assert "Silenced." in done.text
    assert "&lt;i&gt;known" in done.text
    (silence,) = read_silences(fleet.store)
    assert (dict(silence.matchers), silence.author) == ({"stream": "[<]script*"}, "ops")
    assert "silenced until" in inside.get("/").text
    assert HOSTILE not in done.text
    ended = inside.post("/alerts/silences/expire", data={"form": form, "id": silence.id}, follow_redirects=True)
    assert "The silence is over." in ended.text
    assert fleet.store.silences.all() == {}
    assert "silenced until" not in inside.get("/").text


def test_what_is_wrong_with_a_form_is_said_and_what_was_typed_stays(inside: httpx.Client, fleet: Fleet) -> None:
    form = _form_token(inside)
    empty = inside.post("/alerts/silences", data={"form": form, "duration_s": "3600", "comment": "why <b>"})
    assert empty.status_code == 422
    assert "give a stream or a rule" in empty.text
    assert "why &lt;b&gt;" in empty.text
    short = inside.post("/alerts/silences", data={"form": form, "stream": "*", "duration_s": "1"})
    assert short.status_code == 422
    assert "duration_s" in short.text
    assert fleet.store.silences.all() == {}


def test_another_site_s_form_is_refused(inside: httpx.Client, fleet: Fleet) -> None:
    fields = {"stream": "*", "duration_s": "3600"}
    ours = {**fields, "form": _form_token(inside)}
    assert inside.post("/alerts/silences", data=fields).status_code == 403
    assert inside.post("/alerts/silences", data={**fields, "form": "0" * 64}).status_code == 403
    for header in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.test"}):
        assert inside.post("/alerts/silences", data=ours, headers=header).status_code == 403
        json = {"matchers": {"stream": "*"}, "duration_s": 3600}
        assert inside.post("/api/v1/silences", json=json, headers=header).status_code == 403
    plain = inside.post("/api/v1/silences", content=b'{"matchers": {"stream": "*"}, "duration_s": 3600}')
    assert plain.status_code == 415
    assert fleet.store.silences.all() == {}


def test_nothing_is_written_without_a_configured_token(site: str, fleet: Fleet) -> None:
    assert "Nothing can be written here" in get(f"{site}/alerts").text
    form = {"form": "", "stream": "*", "duration_s": "3600"}
    assert httpx.post(f"{site}/alerts/silences", data=form).status_code == 403
    json = {"matchers": {"stream": "*"}, "duration_s": 3600}
    assert httpx.post(f"{site}/api/v1/silences", json=json).status_code == 403
    assert httpx.delete(f"{site}/api/v1/silences/abc").status_code == 403
    assert fleet.store.silences.all() == {}


def test_a_body_without_end_is_cut_off(inside: httpx.Client) -> None:
    assert inside.post("/alerts/silences", content=b"x" * 100_000).status_code == 400
    json = {"content-type": "application/json"}
    assert inside.post("/api/v1/silences", content=b" " * 100_000, headers=json).status_code == 422


def _form_token(client: httpx.Client) -> str:
    return client.get("/alerts").text.split('name="form" value="')[1].split('"')[0]
