"""A real Prometheus of the test's own, and what a test asks it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitor.store.child_process import ChildProcess, free_port
from tests.plain_http import get


class Prometheus(ChildProcess):
    """Scrapes one target every second, with the product's own rules."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("no prometheus on the PATH (apt-get install prometheus)")
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "layerwatch", "static_configs": [{"targets": [target]}]}],
        }
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(settings))
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._command = [
            program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        super().__init__("Prometheus", folder / "prometheus.log", stop_timeout_s=20.0)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._launch(self._command)
        self._wait_until(self._answers, 30.0)

    def _answers(self) -> bool:
        try:
            return get(f"{self._url}/status/buildinfo").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of one API call."""
        reply = get(f"{self._url}/{path}", params=parameters, timeout=30)
        assert reply.status_code == 200, f"{path} {parameters}: {reply.text}"
        return reply.json()["data"]

    def now(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series at this moment."""
        return [(row["metric"], float(row["value"][1])) for row in self.get("query", query=expression)["result"]]

    def over(self, expression: str, since_s: float, until_s: float) -> list[float]:
        """All values of all series in a span, one a second; not numbers are left out."""
        rows = self.get("query_range", query=expression, start=since_s, end=until_s, step="1")["result"]
        values = [float(value) for row in rows for _, value in row["values"]]
        return [value for value in values if value == value]  # noqa: PLR0124 - NaN alone differs from itself
