"""The parts of the fault rig that a run shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.store.private_server import PrivateRedis
from tests.faults.rig import Rig, Zygote
from tests.kafka.broker import Cluster

collect_ignore = ["foreign_records.py"]  # holds no examples, and takes a second and a gigabyte to import


@pytest.fixture
def own_redis() -> Iterator[PrivateRedis]:
    """A Redis of the test's own, which it may break."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def make_rig(
    zygote: Zygote, kafka_broker: Cluster, own_redis: PrivateRedis, profile_folder: Path, tmp_path: Path
) -> Iterator[Callable[..., Rig]]:
    """Makes rigs on the run's broker and the test's own Redis; ends them."""
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        cluster = options.pop("cluster", kafka_broker)
        url = options.pop("redis_url", own_redis.url)
        made.append(Rig(zygote, cluster, url, tmp_path, profile_folder, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """One rig as it comes."""
    return make_rig()
