"""Dashboards and rules against a real Prometheus that scrapes the real daemon through normal, drift and recovery."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.config.loading import load_config
from monitor.sources import open_producer
from monitor.store.child_process import free_port
from monitor.store.private_server import PrivateRedis
from monitor.telemetry import metrics
from tests.e2e.running import config_file, wait_for
from tests.faults.rig import Daemon, Zygote
from tests.fleet.prometheus import Prometheus
from tests.pictures import encoded, pictures

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
VARIABLES = {"$__rate_interval": "15s", "$monitor": ".*", "$stream": ".*", "$signal": "ood", "$level": "0.05"}
NEEDS_AN_ACCELERATOR = "layerwatch_device_memory_bytes"


def queries() -> list[tuple[str, str, str]]:
    """(dashboard, panel, expression) of every query, with annotations."""
    found = []
    for board in BOARDS:
        tree = json.loads(board.read_text())
        for panel in tree["panels"]:
            found += [(board.stem, panel["title"], target["expr"]) for target in panel["targets"]]
        found += [(board.stem, mark["name"], mark["expr"]) for mark in tree["annotations"].get("list", ())]
    return found


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def named(text: str) -> set[str]:
    """Metrics that an expression names, without what histograms add."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\blayerwatch_[a-z_]+", text)}


def documented() -> set[str]:
    mine = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.REGISTRY.collect()}
    return mine | {metric.name for metric in metrics.FLEET}


def test_the_committed_dashboards_are_what_the_code_makes(tmp_path: Path) -> None:
    code = "import json, dashboards; print(json.dumps({p.name: t for p, t in dashboards.files().items()}))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=DEPLOY / "grafana", capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(made) == {board.name: board.read_text() for board in BOARDS}


def test_dashboards_and_rules_name_only_metrics_that_there_are() -> None:
    rules = RULES.read_text()
    expressions = " ".join([*(q for _, _, q in queries()), *re.findall(r"(?s)expr: (.*?)\n +(?:for|labels):", rules)])
    assert len(named(expressions)) > 30
    assert named(expressions) <= documented()


def test_what_is_defined_is_exported() -> None:
    """Every metric that is defined is also set somewhere."""
    code = "".join(p.read_text() for p in (DEPLOY.parent / "monitor").rglob("*.py") if p.name != "metrics.py")
    constants = re.findall(r"(?m)^([A-Z_]+) = _(?:gauge|counter|histogram|fleet)\(", (
        DEPLOY.parent / "monitor/telemetry/metrics.py"
    ).read_text())  # fmt: skip
    assert len(constants) > 50
    assert [name for name in constants if f"metrics.{name}" not in code] == []


@dataclass(frozen=True)
class Story:
    """What a Prometheus has seen of a daemon."""

    prometheus: Prometheus
    since_s: float
    until_s: float


@dataclass(frozen=True)
class Phase:
    """Images of cam-1, one every `step_ms` of event time, and the query that shows that they were seen."""

    name: str
    seed: int
    stripes: bool
    count: int
    step_ms: int
    shown: str


@pytest.fixture(scope="module")
def story(
    redis_server: PrivateRedis, profile_folder: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Half a minute of normal, half of drift and seven of normal images, in event time, with bad and equal ones."""
    folder = tmp_path_factory.mktemp("story")
    config = config_file(
        folder,
        {
            "monitor": "story",
            "source": "redis-stream",
            "redis_stream": {"topics": ["story-images"], "dead_letter_topic": "story-dead-letters"},
            "redis": {"url": redis_server.url},
            "scoring": {"profile": str(profile_folder)},
            "buckets": {"seconds": 1, "lateness_s": 0, "idle_timeout_s": 1},
            "rules": [
                {"name": "strange", "kind": "rate", "level": 0.1, "window_s": 20, "threshold": 0.3, "min_images": 10}
            ],
            "receivers": [{"name": "hook", "type": "webhook", "url": f"http://127.0.0.1:{free_port()}/"}],
        },
    )
    with ExitStack() as ending:
        daemon = Daemon(zygote, config, folder / "daemon.log")
        ending.callback(daemon.terminate)
        prometheus = ending.enter_context(Prometheus(folder, f"127.0.0.1:{daemon.port}", RULES))
        began_s = time.time()
        wait_for("the evaluator", lambda: daemon.check() or prometheus.now("layerwatch_evaluator_lease == 1"))
        producer = open_producer(load_config(config, {}).source_settings())
        share = 'layerwatch_stream_ood_share{stream="cam-1",level="0.05"}'
        firing = 'layerwatch_alert_active{monitor="story",stream="cam-1",phase="firing"}'
        at_ms = 1_760_000_000_000
        for phase in (
            Phase("the normal images", 31, False, 30, 1000, f"{share} < 0.3"),
            Phase("the alert", 32, True, 30, 1000, firing),
            Phase("the recovery", 33, False, 220, 2000, f"{share} < 0.3 unless on () {firing}"),
        ):
            for _, image in pictures(phase.seed, phase.count, phase.stripes):
                producer.send("story-images", encoded(image), b"cam-1", timestamp_ms=at_ms)
                at_ms += phase.step_ms
            for value in (encoded(image), encoded(image), b"not an image"):
                producer.send("story-images", value, b"cam-2", timestamp_ms=at_ms)
            producer.flush()
            wait_for(phase.name, lambda shown=phase.shown: daemon.check() or prometheus.now(shown))  # type: ignore[misc]
        producer.close()
        wait_for("the lag", lambda: prometheus.now("layerwatch_lag_records"))
        yield Story(prometheus, began_s, time.time() + 1)  # the step after the last scrape shows it


def test_every_query_of_every_panel_returns_data(story: Story) -> None:
    empty = [
        (board, panel, expression)
        for board, panel, expression in queries()
        if NEEDS_AN_ACCELERATOR not in expression
        and not story.prometheus.over(filled_in(expression), story.since_s, story.until_s)
    ]
    assert empty == []


def test_every_variable_finds_values(story: Story) -> None:
    for board in BOARDS:
        for variable in json.loads(board.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert found is not None
                series = story.prometheus.get("series", **{"match[]": filled_in(found[1])})
                assert all(found[2] in labels for labels in series)
                assert series


def test_the_panels_tell_the_story(story: Story) -> None:
    def over(expression: str) -> list[float]:
        return story.prometheus.over(expression, story.since_s, story.until_s)

    shares = over('layerwatch_stream_ood_share{stream="cam-1",level="0.05"}')
    # 30 strange ones of the 60 before the recovery, and none in the window at its end
    assert max(shares) > 0.35
    assert shares[-1] < 0.3
    assert shares[-1] < over('layerwatch_stream_ood_band{stream="cam-1",level="0.05",bound="upper"}')[-1] + 0.2
    assert over('layerwatch_alert_since_timestamp_seconds{stream="cam-1"}')[0] == pytest.approx(1_760_000_030, abs=30)
    assert over('max(layerwatch_stream_signal_effect{stream="cam-1",signal="ood"})')
    assert story.prometheus.now('layerwatch_alerts{phase="resolved",rule="strange"}')[0][1] == 1
    images = dict.fromkeys(("cam-1", "cam-2"), 0.0)
    images |= {labels["stream"]: value for labels, value in story.prometheus.now("layerwatch_stream_images_total")}
    assert images == {"cam-1": 280, "cam-2": 6}
    assert story.prometheus.now('layerwatch_stream_rejected_total{stream="cam-2"}')[0][1] == 3
    assert story.prometheus.now('layerwatch_stream_duplicates_total{stream="cam-2"}')[0][1] == 3
    assert story.prometheus.now("layerwatch_records_rejected_total")[0][1] == 3
    assert story.prometheus.now('layerwatch_outbox_entries{receiver="hook"}')[0][1] == 2


def test_every_metric_that_rules_and_dashboards_name_is_on_the_page_and_every_rule_can_be_evaluated(
    story: Story,
) -> None:
    known = story.prometheus.get("metadata")
    wanted = named(" ".join([RULES.read_text(), *(q for _, _, q in queries())]))
    # the text format names a counter's family without its ending; the metadata keeps what was read
    assert {name for name in wanted if name not in known and name.removesuffix("_total") not in known} == set()
    groups: list[dict[str, Any]] = story.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert {rule["health"] for rule in rules} == {"ok"}
