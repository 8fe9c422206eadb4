"""Real parts shared by the tests: a Redis server, a Kafka broker and a small profile, each made once per run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import detectors
from monitor.private_redis import PrivateRedis
from tests.faults.rig import Zygote
from tests.kafka.broker import Broker, BrokerUnavailableError, Cluster
from tests.pictures import pictures


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """One real Redis for the whole run; a test that uses it takes a monitor or topic name of its own."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One real Kafka for the whole run: the cluster at KAFKA_BOOTSTRAP_SERVERS, else a broker of our own.

    A test that uses it takes topic and group names of its own. Skips where there is none; where CI=true only a
    machine that cannot reach Maven may skip.
    """
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield Cluster(servers)
        return
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except BrokerUnavailableError as error:
        if os.environ.get("CI") == "true" and not error.excused:
            pytest.fail(f"no Kafka broker: {error}")
        pytest.skip(f"no Kafka broker (set KAFKA_BOOTSTRAP_SERVERS to use another): {error}")
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks the daemons of the whole run."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def profile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real profile, fitted on 300 drawn pictures with the embedded backbone and saved."""
    folder = tmp_path_factory.mktemp("profile")
    detectors.fit_profile(pictures(0, 300)).save(folder)
    return folder
