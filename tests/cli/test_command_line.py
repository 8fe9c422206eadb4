"""The command line says what is wrong, in one line, and exits accordingly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.__main__ import main
from monitor.store.private_server import PrivateRedis


def test_a_wrong_key_exits_78_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("buckets: {seconds: -5, secs: 1}\n")
    assert main(["check-config", "-c", str(config)]) == 78
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{config}: buckets.seconds: must be greater than 0 (got -5)",
        f"{config}: buckets.secs: unknown key",
    ]


def test_a_valid_configuration_exits_0(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("monitor: line-1\n")
    assert main(["check-config", "-c", str(config)]) == 0


def test_fit_names_an_input_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(tmp_path / "nothing"), "-o", str(tmp_path / "p")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_streams_of_an_empty_state_are_an_empty_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with PrivateRedis() as server:
        monkeypatch.setenv("LAYERWATCH__REDIS__URL", server.url)
        assert main(["streams", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"streams": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "unused"),
    [(["--help"], ["numpy", "pydantic", "rich"]), (["alerts", "--help"], ["torch", "monitor.daemon", "uvicorn"])],
)
def test_a_command_starts_without_what_it_does_not_use(words: list[str], unused: list[str]) -> None:
    program = (
        "import contextlib, sys\n"
        "from monitor.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main({words})\n"
        f"sys.stderr.write(str([name for name in {unused} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"
