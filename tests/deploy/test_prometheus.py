"""Rules, routes and runbook agree: every alert fires and clears in a case of its own, and a person finds its entry."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitor.core.alert_state import OWN_RULES
from monitor.notify import self_alerts

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
CASES = DEPLOY / "prometheus/rules.test.yaml"
ALERTMANAGER = DEPLOY / "alertmanager/alertmanager.yaml"


def run(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on the PATH (apt-get install prometheus prometheus-alertmanager)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> dict[str, dict[str, object]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def anchors(markdown: str) -> set[str]:
    return {
        re.sub(r"[^a-z0-9 _-]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)$", markdown)
    }


def test_prometheus_and_alertmanager_accept_what_we_ship() -> None:
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
    run("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yaml")
    run("amtool", "check-config", ALERTMANAGER)


@pytest.mark.slow
def test_every_rule_stays_quiet_fires_and_clears() -> None:
    run("promtool", "test", "rules", CASES)
    expected: dict[str, list[int]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            expected.setdefault(check["alertname"], []).append(len(check["exp_alerts"]))
    assert expected.keys() == alerts().keys()
    assert {name: counts for name, counts in expected.items() if counts != [0, 1, 0]} == {}


def test_every_alert_has_its_entry_in_the_runbook() -> None:
    found = anchors((DEPLOY / "RUNBOOK.md").read_text())
    for name, rule in alerts().items():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        assert annotations["runbook_url"] == f"RUNBOOK.md#{name.lower()}"
        assert name.lower() in found
    constants = {value for value in vars(self_alerts).values() if isinstance(value, str)}
    own = {value for value in constants if value.startswith(OWN_RULES)}
    assert len(own) >= 4
    assert {*own, self_alerts.DELIVERY} <= found


def test_the_runbook_has_no_entry_without_an_alert_and_no_dead_link() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    assert set(re.findall(r"(?m)^## (Layerwatch\w+)$", text)) == alerts().keys()
    assert set(re.findall(r"\(#([a-z0-9-]+)\)", text)) <= anchors(text)
    files = [link for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", text) if link]
    assert files
    assert [link for link in files if not (DEPLOY / link).exists()] == []


def test_alerts_of_both_kinds_reach_their_people() -> None:
    def routed(*labels: str) -> str:
        return run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels).strip()

    assert routed("alertname=LayerwatchAbsent", "severity=page") == "platform"
    # as monitor.notify.alertmanager labels them
    assert routed("alertname=drift", "rule=drift", "stream=cam-1", "monitor=layerwatch", "severity=page") == "line"
    assert routed("alertname=somebody-elses") == "nobody"
