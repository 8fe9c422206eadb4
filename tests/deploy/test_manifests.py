"""Manifests against the real schemas, and against the product: ports, probes, users, settings and times agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import SecretStr
from redis import Redis as Client

from monitor.config.checks import check
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.store.private_server import PrivateRedis
from monitor.web.guard import Hosts
from tests.e2e.running import wait_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CORE = [p for p in sorted((KUBERNETES / "base").glob("*.yaml")) if p.name not in {"kustomization.yaml", "config.yaml"}]


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def deployment() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "base/deployment.yaml").read_text())
    return found


# ------------------------------------------------------------------------------------------------ kubernetes


def test_no_version_is_rolled_out_beside_an_older_one() -> None:
    assert deployment()["spec"]["strategy"] == {"type": "Recreate"}
    assert "strategy" not in yaml.safe_load((KUBERNETES / "gpu/deployment.yaml").read_text())["spec"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_kinds_pass_the_schema(path: Path) -> None:
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kustomize_renders_valid_objects(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on the PATH")
    done = subprocess.run([kubectl, "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}
    for kind, found in objects.items():
        if kind not in {"ServiceMonitor", "ScaledObject"}:  # of operators: no schema here
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    if overlay == "gpu":
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "replicas" not in objects["Deployment"]["spec"]  # KEDA owns it
        assert objects["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    names = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert names == {objects["ConfigMap"]["metadata"]["name"]}


def test_kustomizations_name_only_files_that_exist() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        tree = yaml.safe_load(path.read_text())
        named = [*tree.get("resources", ()), *tree.get("components", ())]
        named += [patch["path"] for patch in tree.get("patches", ()) if "path" in patch]
        named += [file for made in tree.get("configMapGenerator", ()) for file in made["files"]]
        assert named
        assert [name for name in named if not (path.parent / name).exists()] == []


def test_the_pod_is_hardened_and_agrees_with_the_image_and_the_daemon() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    container = pod["containers"][0]
    user = re.search(r"(?m)^USER (\d+):(\d+)$", dockerfile())
    assert user is not None
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (int(user[1]), int(user[2]), True)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["ports"][0]["containerPort"] == Config().web.port
    assert pod["terminationGracePeriodSeconds"] > Config().pipeline.grace_s
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    # a process that waits for its broker is alive and not ready
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert "memory" in container["resources"]["limits"]


def test_secrets_are_referred_to_and_the_settings_of_the_map_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    example = yaml.safe_load((KUBERNETES / "base/secret.example.yaml").read_text())
    environment = {}
    variables = deployment()["spec"]["template"]["spec"]["containers"][0]["env"]
    for variable in (v for v in variables if v["name"].startswith("LAYERWATCH__") and "valueFrom" in v):
        reference = variable["valueFrom"]["secretKeyRef"]
        assert reference["name"] == example["metadata"]["name"]
        environment[variable["name"]] = example["stringData"][reference["key"]]
    settings = load_config(KUBERNETES / "base/config.yaml", environment)
    assert settings.redis.url == SecretStr(example["stringData"]["redis-url"])
    scaled = yaml.safe_load((KUBERNETES / "components/keda/scaledobject.yaml").read_text())
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert trigger["topic"] in settings.kafka.topics
    assert (trigger["consumerGroup"], trigger["bootstrapServers"]) == (
        settings.kafka.group_id,
        settings.kafka.bootstrap_servers[0],
    )


@pytest.mark.parametrize("where", ["kubernetes", "compose"])
def test_containers_listen_beyond_themselves_on_purpose(where: str) -> None:
    """The image listens for probes and Prometheus; who else gets in is said beside the port."""
    image = dict(re.findall(r"(LAYERWATCH__\w+)=(\S+)", dockerfile()))
    if where == "kubernetes":
        variables = deployment()["spec"]["template"]["spec"]["containers"][0]["env"]
        image |= {v["name"]: v["value"] for v in variables if "value" in v}
        settings = load_config(KUBERNETES / "base/config.yaml", image)
        check(load_config(None, image), "a config.yaml of one's own")
    else:
        settings = load_config(DEPLOY / "compose/config.yaml", image)
    check(settings, where)
    hosts = Hosts(settings.web)
    target = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    for host in (
        *target["static_configs"][0]["targets"],
        "10.1.2.3:9464",
        "localhost:9464",
        "layerwatch.plant.svc:9464",
    ):
        assert hosts.known(host)


# ------------------------------------------------------------------------------------------------ image


def test_the_image_asks_for_base_and_device_and_runs_without_rights() -> None:
    text = dockerfile()
    assert re.search(r"(?m)^ARG BASE=\S+:\S+$", text)
    assert text.count("FROM ${BASE}") == 2
    assert re.search(r"(?m)^ARG ACCELERATOR=", text)
    final = text[text.rindex("FROM ${BASE}") :]
    assert "pip install" not in final
    assert re.search(r"(?m)^USER [1-9]\d*:[1-9]\d*$", final)
    assert "HEALTHCHECK" in final
    assert f":{Config().web.port}/healthz" in final
    assert f"EXPOSE {Config().web.port}" in final
    assert "--require-hashes" in text


def test_the_image_installs_exactly_what_the_product_needs() -> None:
    """The part of the lock that is taken, against what the installed packages say of themselves."""
    printed = subprocess.run(
        [sys.executable, ROOT / "tools/runtime_requirements.py", "--extra", "demo"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    pinned = [Requirement(line.rstrip(" \\")) for line in printed.splitlines() if line and line[0].isalnum()]
    chosen = {_plain(r.name): r for r in pinned if r.marker is None or r.marker.evaluate()}
    needed = _installed_closure("layerwatch", "demo") - {"layerwatch"}
    assert needed <= chosen.keys()
    assert {name for name in chosen if str(chosen[name].specifier) != f"=={version(name)}"} == set()
    assert not {"pytest", "mkdocs-material", "playwright", "mypy", "river"} & chosen.keys()
    hashes = printed.count("--hash=sha256:")
    assert hashes > len(pinned)


def test_no_file_is_installed_in_the_image_without_its_hash() -> None:
    installs = re.findall(r"bin/pip install (.*)", dockerfile())
    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []
    command = [
        sys.executable,
        str(ROOT / "tools/runtime_requirements.py"),
        "--accelerator",
        "only",
        "--hash",
        "sha256:a",
        "sha256:b",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pinned = [
        f"{name}=={version(name).partition('+')[0]} --hash=sha256:a --hash=sha256:b"
        for name in ("torch", "torchvision")
    ]
    assert printed.splitlines() == pinned


@pytest.mark.slow
def test_the_bill_of_materials_in_the_image_is_that_of_what_is_installed_there(tmp_path: Path) -> None:
    """The Dockerfile's own command, on an environment that holds one package and the product."""
    text = dockerfile()
    only = re.findall(r"runtime_requirements\.py ((?:--only \S+ ?)+)", text)[0].split()
    command = [sys.executable, str(ROOT / "tools/runtime_requirements.py"), *only]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert _installed_closure("cyclonedx-bom", "") <= {_plain(n) for n in re.findall(r"(?m)^([\w.-]+)==", printed)}

    environment, bill = tmp_path / "layerwatch", tmp_path / "layerwatch.cdx.json"
    venv.create(environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    (metadata,) = Path(sysconfig.get_path("purelib")).glob("msgpack-*.dist-info")
    shutil.copytree(metadata, packages / metadata.name)
    lists = re.findall(r"/opt/build/bin/python (.* cyclonedx_py (?:.*\\\n)*.*)", text)[0].replace("\\\n", "")
    copied, kept = re.findall(r"COPY --from=builder (\S+\.json) (\S+)", text)[0]
    assert kept.startswith("/usr/share/doc/layerwatch/")
    for path, real in ((copied, bill), ("/opt/layerwatch/", f"{environment}/"), ("/src/", f"{ROOT}/")):
        assert path in lists
        lists = lists.replace(path, str(real))
    subprocess.run([sys.executable, *lists.split()], check=True)
    document = json.loads(bill.read_text())
    assert document["metadata"]["component"]["name"] == "layerwatch"
    assert [(c["name"], c["version"]) for c in document["components"]] == [("msgpack", version("msgpack"))]


def _installed_closure(root: str, extra: str) -> set[str]:
    found: set[str] = set()
    waiting = [(root, extra)]
    while waiting:
        name, its_extra = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": its_extra}):
                waiting.append((_plain(requirement.name), next(iter(requirement.extras), "")))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[._-]+", "-", name).lower()


# ------------------------------------------------------------------------------------------------ compose


def test_compose_services_are_wired_to_each_other() -> None:
    tree = compose()
    services = tree["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys(), name
        image = service["image"]
        assert image == "layerwatch" or re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", image), f"{name}: {image} is not pinned"
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in tree["volumes"]
            assert there, f"{name}: {mount}"
        if name not in {"kafka", "topics"}:  # their image writes its configuration where it starts
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
    waits = services["layerwatch"]["depends_on"]
    assert waits["learn"] == waits["topics"] == {"condition": "service_completed_successfully"}
    assert "noeviction" in services["redis"]["command"]
    assert "--appendonly" in services["redis"]["command"]


def test_compose_settings_are_accepted_and_name_the_services() -> None:
    settings = load_config(DEPLOY / "compose/config.yaml", {})
    services = compose()["services"]
    assert settings.kafka.bootstrap_servers == ("kafka:9092",)
    assert str(settings.redis.url.get_secret_value()).startswith("redis://redis:")
    topics = services["topics"]["command"][0]
    assert {*settings.kafka.topics, settings.kafka.dead_letter_topic} <= set(re.findall(r"[\w.-]+", topics))
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"layerwatch:{settings.web.port}"]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/layerwatch.yaml").read_text())["providers"][0]
    mounted = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert sum(path.startswith(provider["options"]["path"]) for path in mounted) == 2


@pytest.mark.slow
def test_the_sample_producer_sends_all_lines(redis_server: PrivateRedis, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {"source": "redis-stream", "redis": {"url": redis_server.url}, "redis_stream": {"topics": ["sample"]}}
        )
    )
    command = [sys.executable, str(DEPLOY / "compose/sample.py"), "produce", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Client.from_url(redis_server.url) as client, subprocess.Popen(command, env=environment) as process:

        def keys() -> bool:
            assert process.poll() is None
            found = {fields[b"k"].decode() for _, fields in client.xrange("{lwq:sample:0}")}
            return found == {"line-1", "line-2", "line-3", "line-4"}

        try:
            wait_for("a picture of every line", keys, 60)
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------------ systemd


def test_the_unit_is_hardened_and_gives_the_daemon_time_to_end() -> None:
    unit = (DEPLOY / "systemd/layerwatch.service").read_text()
    assert int(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", unit)[0]) > Config().pipeline.grace_s
    assert "RestartPreventExitStatus=78" in unit
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    command = [analyze, "security", "--offline=true", "--threshold=20", str(DEPLOY / "systemd/layerwatch.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
