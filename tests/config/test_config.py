"""The configuration: its commented default is complete, and what is wrong is named key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from monitor.__main__ import main
from monitor.config.errors import ConfigError
from monitor.config.loading import checked_rules, load_config
from monitor.config.schema import Config
from monitor.rules.stream_health import FrozenRule

DEFAULT = Path(__file__).parents[2] / "config.yaml"


def test_the_commented_default_is_the_default_but_for_its_examples() -> None:
    shown = load_config(DEFAULT, {})
    assert checked_rules(shown)
    examples = {"rules", "receivers"}
    assert shown.model_dump(exclude=examples) == Config().model_dump(exclude=examples)


def test_the_commented_default_shows_every_key() -> None:
    tree = yaml.safe_load(DEFAULT.read_text())
    # shown as comments: an empty section would turn them on
    hidden = {"kafka": {"tls", "sasl"}, "value": {"schema_registry", "schema_file", "message"}}
    for name, field in Config.model_fields.items():
        section = getattr(Config(), name)
        assert name in tree
        if isinstance(section, BaseModel):
            keys = {f.alias or key for key, f in type(section).model_fields.items()} - hidden.get(name, set())
            assert keys == set(tree[name]), f"{name}: {field}"


def test_each_wrong_key_gets_a_line_and_the_environment_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("buckets: {seconds: -5}\nkafak: {}\nredis: {url: {env: NO_SUCH_VARIABLE}}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path, {"LAYERWATCH__WEB__PORT": "70000"})
    lines = "\n".join(raised.value.lines)
    assert f"{path}: buckets.seconds: must be greater than 0 (got -5)" in lines
    assert f"{path}: kafak: unknown key" in lines
    assert "redis.url: environment variable NO_SUCH_VARIABLE is not set" in lines
    assert "LAYERWATCH__WEB__PORT: web.port: must be less than or equal to 65535 (got 70000)" in lines
    assert len(raised.value.lines) == 4


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("kafka: {bootstrap_servers: [here:9092]}\n")
    loaded = load_config(path, {"LAYERWATCH__KAFKA__BOOTSTRAP_SERVERS": "a:9092,b:9092"})
    assert loaded.kafka.bootstrap_servers == ("a:9092", "b:9092")


OPEN = "0.0.0.0"


@pytest.mark.parametrize(
    ("web", "refused"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": OPEN}, True),
        ({"host": "::"}, True),
        ({"host": ""}, True),
        ({"host": "box.example"}, True),
        ({"host": OPEN, "token": ""}, True),
        ({"host": OPEN, "token": "t"}, False),
        ({"host": OPEN, "username": "ops"}, True),
        ({"host": OPEN, "username": "ops", "password": "p"}, False),
        ({"host": OPEN, "anonymous": True}, False),
    ],
)
def test_other_machines_are_served_only_with_a_token_or_on_purpose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], web: dict[str, object], refused: bool
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"web": web}))
    assert main(["check-config", "-c", str(path)]) == (78 if refused else 0)
    line = f"{path}: web.host: {web.get('host')!r} is reachable from other machines: set web.token, or web.anonymous"
    assert (line in capsys.readouterr().err) is refused


def test_a_rule_whose_numbers_do_not_go_together_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rules:\n  - {name: odd, kind: rate, level: 0.07}\n")
    with pytest.raises(ConfigError, match=r"rules\.0 \(odd\): level must be one of"):
        checked_rules(load_config(path, {}))


@pytest.mark.parametrize(("given", "seconds"), [("90", 90), ("'90'", 90), ("5m", 300), ("1h30m", 5400), ("0", 0)])
def test_how_long_a_breach_lasts_is_given_in_seconds_or_with_units(tmp_path: Path, given: str, seconds: int) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"rules: [{{name: r, kind: rate, for: {given}, keep_firing_for: {given}}}]\n")
    (rule,) = load_config(path, {}).rules
    assert (rule.for_s, rule.keep_firing_for_s) == (seconds, seconds)


def test_a_wrong_duration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rules: [{name: r, kind: rate, for: 5 minutes}]\n")
    with pytest.raises(ConfigError, match=r"rules\.0.*for: '5 minutes' is not a duration such as 30m"):
        load_config(path, {})


def test_a_rule_watches_what_its_glob_matches_but_for_its_exceptions() -> None:
    rule = FrozenRule.model_validate(
        {"name": "r", "kind": "frozen", "streams": "site-?/*", "except": ["site-b/dock-*", "site-a/gate"]}
    )
    streams = ("site-a/gate", "site-a/gate-2", "site-b/dock-1", "Site-a/x", "site-b/door")
    assert [stream for stream in streams if rule.watches(stream)] == ["site-a/gate-2", "site-b/door"]
