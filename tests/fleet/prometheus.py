"""A real Prometheus of the test's own, and what a test asks it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.running import free_port, wait_for


class Prometheus:
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
        command = [
            program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("Prometheus", self._answers, 30)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self._url}/status/buildinfo").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of one API call."""
        reply = httpx.get(f"{self._url}/{path}", params=parameters, timeout=30)
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

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=20)
