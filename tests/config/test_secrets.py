"""No secret of the configuration shows: neither in an error, nor where the configuration is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitor.__main__ import main
from monitor.config.loading import load_config

SECRET = "hunter2"
HOOK = "{name: hook, type: webhook, url: 'https://example.org', "


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("redis: {url: 'redis://:hunter2/b@localhost:6379/0'}", "redis.url: must be"),
        ("redis: {url: 'redis://:b/hunter2@localhost:6379/0'}", "redis.url: must be"),
        ("redis: {mode: sentinel, sentinels: ['redis://:hunter2@a:1']}", "redis.sentinels: each must be"),
        (f"receivers: [{HOOK}headers: {{X-Id: 31337}}}}]", "X-Id: must be text"),
        (f"receivers: [{HOOK}headers: {{X-Id: [hunter2]}}}}]", "X-Id: must be text"),
        (f"receivers: [{HOOK}headers: {{X-Id: {{value: hunter2}}}}}}]", "X-Id: must be a string, {env: NAME}"),
        (f"receivers: [{HOOK}secret: hunter2}}]", "receivers.hook.secret: must be whsec_"),
        ("receivers: [{name: hook, type: webhook, url: 'hunter2'}]", "receivers.hook.url: must be a URL"),
        ("receivers: [{name: am, type: alertmanager, urls: ['hunter2@']}]", "receivers.am.urls: must be a URL"),
        ("web: {token: [hunter2]}", "web.token: must be text"),
        ("web: {password: 'hunter2\n", "not valid YAML: line "),
        ("web: {password: *hunter2}", "not valid YAML: line 1, column 17: found undefined alias ..."),
        ("web: {password: !hunter2 x}", "not valid YAML: line 1, column 17: could not determine"),
        ("web: {password: @hunter2}", "not valid YAML: line 1, column 17"),
    ],
)  # fmt: skip
def test_an_error_shows_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, key: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["check-config", "-c", str(path)]) == 78
    shown = capsys.readouterr().err
    assert key in shown
    assert SECRET not in shown
    assert "31337" not in shown


@pytest.mark.slow
def test_no_command_prints_a_traceback_with_the_url_of_redis(tmp_path: Path) -> None:
    environ = {"LAYERWATCH__REDIS__URL": f"redis://:{SECRET}/b@localhost:6379/0"}
    command = [sys.executable, "-m", "monitor", "streams"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.startswith("LAYERWATCH__REDIS__URL: redis.url: must be redis://")
    assert SECRET not in done.stderr


def test_the_configuration_prints_without_its_secrets(tmp_path: Path) -> None:
    tree = {
        "kafka": {
            "sasl": {"mechanism": "PLAIN", "username": "u", "password": SECRET, "oauth_token": SECRET},
            "tls": {"key_password": SECRET},
            "client": {"ssl_password": SECRET},
        },
        "redis": {"url": f"redis://:{SECRET}@localhost", "sentinel_password": SECRET},
        "web": {"token": SECRET, "password": SECRET},
        "receivers": [
            {"name": "a", "type": "webhook", "url": f"https://x/{SECRET}", "secret": SECRET, "headers": {"k": SECRET}},
            {"name": "b", "type": "alertmanager", "urls": f"http://u:{SECRET}@am", "bearer_token": SECRET},
            {"name": "c", "type": "slack", "url": f"https://x/{SECRET}"},
            {"name": "d", "type": "pagerduty", "routing_key": SECRET},
        ],
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    settings = load_config(path, {})
    assert SECRET not in f"{settings!r} {settings} {settings.source_settings()!r}"
    assert SECRET not in settings.model_dump_json(exclude={"kafka": {"client"}})
