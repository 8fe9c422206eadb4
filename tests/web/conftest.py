"""A fleet, a server over it, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from monitor.store import open_store
from monitor.store.private_server import PrivateRedis
from monitor.store.settings import RedisSettings
from tests.templates import share_templates
from tests.web.fleet import Fleet, build, served


@pytest.fixture(scope="session", autouse=True)
def shared_templates() -> None:
    """Servers come and go here."""
    share_templates()


@pytest.fixture(scope="session")
def fleet(redis_server: PrivateRedis) -> Iterator[Fleet]:
    """Tests that write to it put it back."""
    store = open_store(RedisSettings(url=SecretStr(redis_server.url)), "pages")
    yield build(store)
    store.close()


@pytest.fixture(scope="session")
def site(fleet: Fleet) -> Iterator[str]:
    """Address of a server that asks for nothing."""
    with served(fleet.store) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real one; skips where there is none, fails where CI=true."""
    # the one without windows takes half the CPU time
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed (Debian: chromium-headless-shell)")
    # without a zygote: with one, closing the browser sometimes takes half a minute
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-zygote"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()
