"""`layerwatch run` refuses a state that it must not change, in one line that says what to do; on a real Redis."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.cli import run
from monitor.config.errors import EXIT_CONFIG, ConfigError
from monitor.core.buckets import Layout
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings

LAYOUT = Layout(("ood",), (500,), (False,), (True,), (1.0,))


@pytest.fixture
def config(redis_server: PrivateRedis, profile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "configure_logs", lambda *_: None)
    path = tmp_path / "config.yaml"
    settings = {
        "monitor": tmp_path.name,
        "source": "redis-stream",
        "redis": {"url": redis_server.url},
        "scoring": {"profile": str(profile_folder), "device": "cpu"},
    }
    path.write_text(json.dumps(settings))
    return path


def test_counts_of_another_layout_under_the_profile_s_fingerprint_are_refused_at_the_start(
    config: Path, redis_server: PrivateRedis, profile_folder: Path
) -> None:
    fingerprint = json.loads((profile_folder / "profile.json").read_text())["fingerprint"]
    with closing(open_store(RedisSettings(url=SecretStr(redis_server.url)), config.parent.name)) as store:
        store.catalog.put_layouts({fingerprint: LAYOUT})
    with pytest.raises(ConfigError) as refused:
        run.run(argparse.Namespace(config=config))
    (line,) = refused.value.lines
    assert refused.value.status == EXIT_CONFIG
    assert f"profile {fingerprint} has counts of another layout (signals ood; here: ood, " in line
    assert "fit the profile" in line
