"""Real parts shared by the tests: a Redis server and a small profile, each made once per run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import detectors
from monitor.private_redis import PrivateRedis
from tests.pictures import pictures


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """One real Redis for the whole run; a test that uses it takes a monitor or topic name of its own."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture(scope="session")
def profile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real profile, fitted on 300 drawn pictures with the embedded backbone and saved."""
    folder = tmp_path_factory.mktemp("profile")
    detectors.fit_profile(pictures(0, 300)).save(folder)
    return folder
