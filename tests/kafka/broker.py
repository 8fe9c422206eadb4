"""One real Kafka broker of the tests' own: KRaft in one process, made of the jars that tests/kafka/pom.xml lists.

The jars are copied once into the user's cache; a broker then takes about five seconds to come up. It dies with this
process, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from kafka.admin import KafkaAdminClient

from monitor.store.child_process import ChildProcess

VERSION = "4.1.0"
POM = Path(__file__).with_name("pom.xml")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
MAVEN_TIMEOUT_S = 300.0
JVM_OPTIONS = (
    # two test cores: one collector thread, and the quick compiler only
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # a fifth of what a start costs; the jars come from Maven, which checks their sums
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-BytecodeVerificationRemote",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
LOGIN = {"mechanism": "PLAIN", "username": "lw", "password": "right"}
LOGIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
OAUTH_MODULE = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
CLUSTER_ID = "bGF5ZXJ3YXRjaC10ZXN0cw"  # any 16 bytes in base64

_NO_NETWORK = re.compile(
    "Could not transfer|Unknown host|UnknownHost|Network is unreachable|Connection refused|timed out"
)


class BrokerUnavailableError(Exception):
    """This machine cannot run a broker.

    `excused` tells a machine that cannot reach Maven, where nothing can be done, from one that lacks a program.
    """

    def __init__(self, message: str, excused: bool = False) -> None:
        super().__init__(message)
        self.excused = excused


class Cluster:
    """Somebody's running cluster, by its address."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def create_topic(self, name: str, partitions: int = 1, configs: Mapping[str, str] | None = None) -> str:
        """Create a topic, wait until it can be used, and return its name."""
        with self._admin() as admin:
            wanted = {name: {"num_partitions": partitions, "configs": dict(configs or {})}}
            admin.create_topics(wanted, wait_for_metadata=True)
        return name

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the broker has forgotten it."""
        with self._admin() as admin:
            admin.delete_topics([name])
            deadline = time.monotonic() + 15
            while name in admin.list_topics():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"topic {name} is still there")
                time.sleep(0.05)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[KafkaAdminClient]:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            yield admin
        finally:
            admin.close()


class Broker(Cluster, ChildProcess):
    """Runs a broker between `start` and `stop`, or as a context manager; `start` again keeps ports and data.

    Args:
        directory: where its data and its log lie.
        listeners: further listeners as name -> security protocol, such as `{"SASL": "SASL_PLAINTEXT"}`; see `address`.
        properties: further lines of its server.properties.
        heap: the JVM's largest heap.
    """

    def __init__(
        self,
        directory: Path,
        listeners: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        heap: str = "512m",
    ) -> None:
        self.directory = directory
        self._listeners = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        *ports, self.controller_port = _free_ports(len(self._listeners) + 1)
        self._ports = dict(zip(self._listeners, ports, strict=True))
        self.properties = dict(properties or {})
        self._heap = heap
        Cluster.__init__(self, self.address("PLAINTEXT"))
        ChildProcess.__init__(self, "the broker", directory / "broker.log", STOP_TIMEOUT_S)

    def address(self, listener: str) -> str:
        """host:port of a listener. Its host is `localhost`, so that certificates can name it."""
        return f"localhost:{self._ports[listener]}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerUnavailableError: Java or the jars cannot be had.
            ChildError: it did not come up.
        """
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        """Start its process only."""
        java, jars = find_program("java"), find_jars()
        settings = self._write_settings()
        classes = [java, f"-Xmx{self._heap}", *JVM_OPTIONS, "-cp", f"{jars}/*"]
        if not (self.directory / "data" / "meta.properties").exists():
            self._format([*classes, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(settings)])
        self._launch([*classes, "kafka.Kafka", str(settings)])

    def await_answer(self) -> None:
        """Wait until it may be used."""
        self._wait_until(self._answers, START_TIMEOUT_S)

    def restart(self) -> None:
        """Stop it in good order and bring it up again."""
        self.stop()
        self.start()

    def _write_settings(self) -> Path:
        addresses = {name: f"{name}://localhost:{port}" for name, port in self._ports.items()}
        protocols = {**self._listeners, "CONTROLLER": "PLAINTEXT"}
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@localhost:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join([*addresses.values(), f"CONTROLLER://localhost:{self.controller_port}"]),
            "advertised.listeners": ",".join(addresses.values()),
            "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in protocols.items()),
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",
            "log.retention.ms": "-1",  # tests write records of the past, which a week's retention would remove
            "num.partitions": "1",
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # a killed broker may come back only when its former session has ended
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            "metadata.max.idle.interval.ms": "0",  # else a record every half second, a third of what an idle one costs
            **self.properties,
        }
        path = self.directory / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
        return path

    def _format(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"formatting the broker's folder failed: {(done.stdout + done.stderr).strip()}")

    def _answers(self) -> bool:
        # its listeners open last, once it may serve
        with contextlib.suppress(OSError), socket.create_connection(("localhost", self._ports["PLAINTEXT"]), 1.0):
            return True
        return False


class Brokers(Cluster):
    """Brokers that are controllers too, in a process each; every topic lies on all of them, one of which may fail."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.nodes = {i: Broker(directory / str(i), heap="256m") for i in range(1, count + 1)}
        voters = ",".join(f"{i}@localhost:{node.controller_port}" for i, node in self.nodes.items())
        for i, node in self.nodes.items():
            node.directory.mkdir()
            copies = dict.fromkeys(("default", "offsets.topic", "transaction.state.log"), str(count))
            node.properties |= {
                "node.id": str(i),
                "controller.quorum.voters": voters,
                "min.insync.replicas": str(count - 1),
                **{f"{name}.replication.factor": number for name, number in copies.items()},
            }
        super().__init__(",".join(node.bootstrap_servers for node in self.nodes.values()))

    def leader(self, topic: str, partition: int) -> Broker:
        """The node that leads a partition."""
        with self._admin() as admin:
            (described,) = admin.describe_topics([topic])
        (found,) = (p for p in described["partitions"] if p["partition_index"] == partition)
        return self.nodes[found["leader_id"]]

    def __enter__(self) -> Brokers:
        try:
            for node in self.nodes.values():
                node.launch()
            for node in self.nodes.values():
                node.await_answer()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.kill()


def find_jars() -> Path:
    """The folder with the broker's jars; copies them there first where they are missing.

    Raises:
        BrokerUnavailableError: Maven is missing or cannot download them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwatch"
    jars = cache / f"kafka-{VERSION}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"
    if jars.is_dir():
        return jars
    maven = find_program("mvn")
    cache.mkdir(parents=True, exist_ok=True)
    copied = Path(tempfile.mkdtemp(prefix=f"{jars.name}-", dir=cache))
    try:
        _copy_jars(maven, copied)
        # A rename is atomic: a run that is cut short leaves no half-filled folder, and of two at once one wins.
        with contextlib.suppress(OSError):
            copied.rename(jars)
    finally:
        shutil.rmtree(copied, ignore_errors=True)
    return jars


def _copy_jars(maven: str, target: Path) -> None:
    command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={target}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokerUnavailableError(f"Maven took over {MAVEN_TIMEOUT_S:.0f} s for Kafka's jars", True) from error
    if done.returncode != 0:
        told = done.stdout + done.stderr
        line = next((line for line in told.splitlines() if "ERROR" in line), told.strip()[:300])
        raise BrokerUnavailableError(f"Maven cannot bring Kafka {VERSION}: {line}", bool(_NO_NETWORK.search(told)))


def find_program(name: str) -> str:
    """Its path.

    Raises:
        BrokerUnavailableError: it is not installed.
    """
    if path := shutil.which(name):
        return path
    raise BrokerUnavailableError(f"{name} is not installed (Debian: default-jre-headless and maven)")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
