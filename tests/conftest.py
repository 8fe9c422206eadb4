"""Real parts shared by the tests: a Redis server per worker; a Kafka broker and a small profile per run."""

from __future__ import annotations

import gc
import os
import sys
import time

# Before torch is loaded, and for every process that tests start. Several processes share two cores: threads within each
# would wait for each other most of the time, which cost the tests of features a tenth more CPU time.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see the Makefile

from tests import measuring  # begins to measure: before anything of the product is imported

# isort: split

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import detectors
from monitor.store.private_server import PrivateRedis
from tests.certificates import make_certificates
from tests.faults.rig import Zygote
from tests.kafka.broker import LOGIN, LOGIN_MODULE, OAUTH_MODULE, Broker, BrokerUnavailableError, Cluster
from tests.pictures import pictures
from tests.shared import SharedParts, ask, made_once

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

MARKS_OF_FIXTURES = {
    "kafka_broker": "kafka",
    "breakable_broker": "kafka",
    "browser": "browser",
    "make_rig": "story",
    "story": "story",
    "zygote": "slow",
    "profile_folder": "slow",
}


LONGEST_FIRST = (
    "tests/e2e/test_exact_counts.py",
    "tests/demo/test_demo_process.py",
    "tests/e2e/test_renewal.py",
    "tests/faults/test_crashes.py",
    "tests/faults/test_redis.py",
    "tests/faults/test_records.py",
    "tests/faults/test_verdicts.py",
    "tests/faults/test_kafka.py",
    "tests/web/test_browser.py",
    "tests/detectors/test_features.py",
    "tests/evaluate/test_shards.py",
    "tests/rules/test_sequential.py",
    "tests/detectors/test_profile.py",
    "tests/cli/test_profile.py",
    "tests/sources/test_kafka_trouble.py",
    "tests/detectors/test_engine.py",
    "tests/ingest/test_decoder_pool.py",
    "tests/ingest/test_consumer.py",
    "tests/detectors/test_guard.py",
    "tests/e2e/test_main_job.py",
    "tests/sources/test_contract.py",
    "tests/deploy/test_dashboards.py",
    "tests/sources/test_kafka.py",
    "tests/cli/test_quantize.py",
    "tests/detectors/test_choice.py",
    "tests/detectors/test_heat_maps.py",
    "tests/detectors/test_device.py",
    "tests/deploy/test_docs.py",
    "tests/notify/test_receivers.py",
    "tests/ingest/test_watch.py",
    "tests/ingest/test_shadow.py",
    "tests/detectors/test_backbones.py",
    "tests/evaluate/test_evidence.py",
    "tests/detectors/test_contract.py",
    "tests/web/test_feedback.py",
    "tests/evaluate/test_versions.py",
    "tests/sources/test_read_back.py",
    "tests/archive/test_features.py",
    "tests/web/test_shadow.py",
    "tests/web/test_pages.py",
    "tests/detectors/test_conditions.py",
    "tests/evaluate/test_conditions.py",
)
"""Files in the order in which they start; a long one that came last would leave one process busy alone."""

SHARED = pytest.StashKey[SharedParts]()
FOLDER = "shared_parts"


def pytest_configure(config: pytest.Config) -> None:
    """Offer the shared parts in the process that begins the run, where nothing starts yet."""
    # jsonschema compiles grammars for the format `iri`, which no schema of ours has: 2 s of CPU time in each worker
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: its import fails
    if not hasattr(config, "workerinput"):
        config.stash[SHARED] = SharedParts()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Let a worker of pytest-xdist find the shared parts."""
    node.workerinput[FOLDER] = str(node.config.stash[SHARED].folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the shared parts; keep what was reached."""
    measuring.save()
    if shared := config.stash.get(SHARED, None):
        shared.close()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; mark each test by the expensive parts that it uses, so that none is forgotten."""
    place = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.location[0], len(place)))
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if mark := MARKS_OF_FIXTURES.get(fixture):
                item.add_marker(mark)


def pytest_collection_finish() -> None:
    """What is loaded now stays: the garbage collector would look through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """One real Redis for the whole run; a test that uses it takes a monitor or topic name of its own."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture(scope="session")
def shared_folder(pytestconfig: pytest.Config) -> Path:
    """Of the parts that all workers share."""
    if shared := pytestconfig.stash.get(SHARED, None):
        return shared.folder
    return Path(pytestconfig.workerinput[FOLDER])  # type: ignore[attr-defined]  # set by pytest-xdist


@pytest.fixture(scope="session")
def kafka_broker(shared_folder: Path) -> Cluster:
    """One real Kafka for the whole run: the cluster at KAFKA_BOOTSTRAP_SERVERS, else a broker of our own.

    A test that uses it takes topic and group names of its own. Skips where there is none; where CI=true only a
    machine that cannot reach Maven may skip.
    """
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return Cluster(servers)
    try:
        return Cluster(ask(shared_folder, "kafka"))
    except BrokerUnavailableError as error:
        if os.environ.get("CI") == "true" and not error.excused:
            pytest.fail(f"no Kafka broker: {error}")
        pytest.skip(f"no Kafka broker (set KAFKA_BOOTSTRAP_SERVERS to use another): {error}")


@pytest.fixture(scope="session")
def zygote(shared_folder: Path) -> Zygote:
    """Forks the daemons of the whole run."""
    return Zygote(ask(shared_folder, "zygote"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make_certificates` makes."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="session")
def breakable_broker(
    tmp_path_factory: pytest.TempPathFactory, kafka_broker: object, certificates: Path
) -> Iterator[Broker]:
    """A second broker, which tests may stop, kill and spoil the topics of; up again when they end.

    Its doors: PLAINTEXT; SASL, with the password in `LOGIN`; OAUTH, which takes unsigned tokens; TLS; MUTUAL, which
    wants a client's certificate.
    """
    login = f'{LOGIN_MODULE} required user_{LOGIN["username"]}="{LOGIN["password"]}";'
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": LOGIN["mechanism"],
        "listener.name.sasl.plain.sasl.jaas.config": login,
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        # the broker's own validator, for tokens that nobody signed
        "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{OAUTH_MODULE} required unsecuredLoginStringClaim_sub=b;",
        "listener.name.oauth.oauthbearer.connections.max.reauth.ms": "60000",
    }
    doors = {"SASL": "SASL_PLAINTEXT", "OAUTH": "SASL_PLAINTEXT", "TLS": "SSL", "MUTUAL": "SSL"}
    made = Broker(tmp_path_factory.mktemp("breakable"), doors, properties)
    try:
        made.start()
    except BrokerUnavailableError as error:  # kafka_broker was somebody's cluster
        pytest.skip(str(error))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def profile_folder(shared_folder: Path) -> Path:
    """A real profile, fitted once per run on 300 drawn pictures with the embedded backbone and saved."""
    folder = shared_folder / "profile"
    with made_once(folder) as first:
        if first:
            detectors.fit_profile(pictures(0, 300)).save(folder)
    return folder


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is nine hours ahead of UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()
