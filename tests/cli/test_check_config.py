"""`check-config` refuses what `run` refuses before it connects, by the right key, and warns of what is odd."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml

from monitor.__main__ import main

HOOK = {"name": "hook", "type": "webhook", "url": "https://example.org"}
RULE = {"name": "frozen", "kind": "frozen"}
ISSUER = {"token_url": "http://id.example.org/token", "client_id": "c", "client_secret": "s"}
CA_FILE = certifi.where()
SCRAM = {"mechanism": "SCRAM-SHA-512", "username": "monitor"}


def written(folder: Path, tree: Mapping[str, Any]) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(dict(tree)))
    return path


@pytest.mark.parametrize("command", ["check-config", "run"])
@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"kafka": {"sasl": SCRAM}}, "kafka.sasl.password: SCRAM-SHA-512 needs one that is not empty"),
        ({"kafka": {"sasl": SCRAM | {"password": ""}}}, "kafka.sasl.password: SCRAM-SHA-512 needs one"),
        ({"kafka": {"sasl": {"mechanism": "GSSAPI"}}}, "kafka.sasl.mechanism: GSSAPI needs the Python package gssapi"),
        ({"kafka": {"tls": {"ca_file": "/no/ca.pem"}}}, "kafka.tls.ca_file: cannot use /no/ca.pem: FileNotFoundError"),
        ({"kafka": {"tls": {"cert_file": "/no/c", "key_file": "/no/k"}}}, "kafka.tls.cert_file: cannot use /no/c and"),
        ({"kafka": {"tls": {"ciphers": "ROT13"}}}, "kafka.tls.ciphers: cannot use ROT13"),
        ({"kafka": {"sasl": {"mechanism": "OAUTHBEARER"}}}, "kafka.sasl.oauth: OAUTHBEARER needs either this or"),
        ({"kafka": {"sasl": {"mechanism": "OAUTHBEARER", "oauth": {"file": "/no"}}}}, "kafka.sasl.oauth.file: there"),
        ({"kafka": {"client": {"no_such": 1}}}, "kafka.client.no_such: kafka-python has no such option"),
        ({"kafka": {"client": {"group_id": "x"}}}, "kafka.client.group_id: cannot be changed"),
        ({"kafka": {"client": {"acks": 1}}}, "kafka.client.acks: cannot be changed"),
        ({"kafka": {"topics": "a", "dead_letter_topic": "a"}}, "kafka.dead_letter_topic: is one of kafka.topics"),
        ({"redis": {"mode": "cluster", "url": "redis://localhost/3"}}, "redis.url: a Redis Cluster has only"),
        ({"redis": {"url": "rediss://localhost", "tls_ca_file": "/no/ca"}}, "redis.tls_ca_file: cannot use /no/ca"),
        ({"scoring": {"device": "gpu"}}, "scoring.device: device 'gpu' cannot be used on this machine"),
        ({"decoding": {"formats": ["JPEG", "BMP9"]}}, "decoding.formats: unknown image formats ['BMP9']"),
        ({"receivers": [HOOK | {"url": "example.org"}]}, "receivers.hook.url: must be a URL"),
        ({"rules": [RULE | {"kind": "rate", "level": 0.07}]}, "rules.0 (frozen): level must be one of"),
        (
            {"rules": [RULE | {"kind": "rate", "window_s": 7200}], "buckets": {"history_s": 3600}},
            "buckets.history_s: shorter than the window of rules.0 (frozen)",
        ),
        (
            {"scoring": {"profile": "s3://models/line"}, "renewal": {"every": "7d"}},
            "renewal.every: a candidate is tried in shadow first: add {version: s3://models/line@shadow} to scoring.",
        ),
        ({"renewal": {"every": 0}}, "renewal.every: must be greater than 0"),
        (
            {"scoring": {"profile": "s3://models/line@2"}, "renewal": {"every": "7d"}},
            "renewal.every: s3://models/line@2 is no store of profiles whose active version is followed",
        ),
        ({"verdicts": {"type": "kafka"}, "source": "redis-stream", "kafka": {"tls": {"ca_file": "/"}}}, "kafka.tls.ca"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_start_is_refused_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Mapping[str, Any], line: str, command: str
) -> None:
    path = written(tmp_path, tree)
    assert main([command, "-c", str(path)]) == 78
    assert f"{path}: {line}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({}, "rules: there is none"),
        ({"rules": [RULE]}, "receivers: there is none"),
        ({"redis": {"tls_ca_file": CA_FILE}}, "redis.tls_ca_file: has no effect"),
        ({"kafka": {"sasl": SCRAM | {"mechanism": "PLAIN", "password": "p"}}}, "kafka.tls: there is none, so PLAIN"),
        ({"kafka": {"sasl": {"mechanism": "OAUTHBEARER", "oauth": ISSUER}}}, "kafka.sasl.oauth.token_url: is http://"),
        ({"web": {"username": "u"}}, "web.username: has no effect"),
        ({"web": {"external_url": "ops.example.org"}}, "web.external_url: links need http"),
        ({"verdicts": {"type": "kafka", "target": "images"}}, "verdicts.target: is one of the topics"),
        ({"scoring": {"profile": "/no/profile"}}, "scoring: not here, so not checked with the rules: /no/profile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_odd_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Mapping[str, Any], line: str
) -> None:
    whole = {"rules": [RULE], "receivers": [HOOK]}
    path = written(tmp_path, {**whole, **tree} if tree and "rules" not in tree else tree)
    assert main(["check-config", "-c", str(path)]) == 0
    assert f"warning: {path}: {line}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_profile_that_is_here_is_checked_with_the_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], profile_folder: Path
) -> None:
    rule = {"name": "r", "kind": "rate", "signal": "no-such-signal"}
    path = written(tmp_path, {"scoring": {"profile": str(profile_folder)}, "rules": [rule], "receivers": [HOOK]})
    assert main(["check-config", "-c", str(path)]) == 78
    assert f"{path}: rules: r: " in capsys.readouterr().err
    path = written(tmp_path, {"scoring": {"profile": str(tmp_path)}, "rules": [RULE], "receivers": [HOOK]})
    assert main(["check-config", "-c", str(path)]) == 78
    assert f"{path}: scoring.profile: " in capsys.readouterr().err
    path = written(tmp_path, {"scoring": {"profile": str(profile_folder)}, "rules": [RULE], "receivers": [HOOK]})
    assert main(["check-config", "-c", str(path)]) == 0
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_profile_is_checked_without_torch_and_without_the_clients_of_brokers(
    tmp_path: Path, profile_folder: Path
) -> None:
    path = written(tmp_path, {"scoring": {"profile": str(profile_folder)}, "rules": [RULE], "receivers": [HOOK]})
    program = (
        "import sys\n"
        "from monitor.__main__ import main\n"
        f"status = main(['check-config', '-c', {str(path)!r}])\n"
        "unused = {'torch', 'timm', 'openvino', 'scipy', 'redis', 'kafka', 'rich', 'uvicorn'}\n"
        "print(status, sorted(unused & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n", done.stderr
