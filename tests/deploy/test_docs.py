"""The documentation is current, builds without a warning, fetches nothing, and what it shows can be typed."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from PIL import Image

from monitor.__main__ import build_parser
from monitor.config.schema import Config
from tests.pictures import pictures

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_what_the_code_says(reference: ModuleType) -> None:
    stale = [path.name for path, text in reference.files().items() if path.read_text() != text]
    assert stale == [], "run: python tools/reference.py"


def test_the_configuration_page_has_every_key(reference: ModuleType) -> None:
    text = reference.config_page()
    for name, section in Config().model_dump().items():
        assert f"## {name}\n" in text or f"| `{name}` |" in text
        for key in section if isinstance(section, dict) else ():
            shown = "from" if (name, key) == ("stream", "source") else key
            assert f"| `{shown}` |" in text, f"{name}.{key}"
    for kind in ("sequential", "rate", "shift", "rejected", "frozen", "silence"):
        assert f"### kind: {kind}\n" in text
    for kind in ("webhook", "alertmanager", "slack", "pagerduty", "kafka"):
        assert f"### type: {kind}\n" in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"(https?:[^\"]+)|<link[^>]*href=\"(https?:[^\"]+)", page.read_text()
        )
        assert fetched == [], page


def test_every_command_that_the_pages_show_is_one_that_there_is() -> None:
    shown: list[tuple[str, str]] = []
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "deploy/RUNBOOK.md"]:
        if page.parent.name != "reference":
            lines = re.findall(r"(?m)^ {4,}(layerwatch [^#\n|&>]*)", page.read_text())
            shown += [(page.name, line.strip()) for line in lines]
    assert len(shown) > 15
    for name, line in shown:
        words = [word for word in shlex.split(line)[1:] if word != "..."]
        if "\\" in words or any("IMAGES..." in word or word == "|" for word in words):
            continue
        if (
            "ID" in words
            or "--from" in words
            or "silence" in words
            or words[0] in {"demo", "run", "streams", "alerts", "feedback", "profile"}
        ):
            build_parser().parse_args(words)
        else:
            # placeholders may stand for files; the options must exist
            known = subprocess_help(words[0])
            assert [w for w in words if w.startswith("--") and w.split("=")[0] not in known] == [], f"{name}: {line}"


def subprocess_help(command: str) -> str:
    found = [a for a in build_parser()._actions if hasattr(a, "choices") and a.choices]
    choices = found[0].choices
    assert isinstance(choices, dict)
    return str(choices[command].format_help())


def test_the_configuration_that_pages_show_is_accepted() -> None:
    """Every indented block that begins with a section of the configuration."""
    checked = 0
    for page in (DOCS / "how-to").glob("*.md"):
        for block in re.findall(r"(?m)(?:^ {4}.*\n)+", page.read_text()):
            text = re.sub(r"(?m)^ {4}", "", block)
            if text.split(":")[0] in Config.model_fields and text.split("\n")[0].endswith(":"):
                tree = yaml.safe_load(re.sub(r"\{(env|file): [^}]+\}", "a-secret", text))
                for receiver in tree.get("receivers", ()):
                    receiver.pop("secret", None)
                Config.model_validate(tree)
                checked += 1
    assert checked >= 4


def test_every_link_between_files_leads_to_a_file_of_the_checkout() -> None:
    made_for_the_site = {"changelog.md"}
    links = [
        (page, link)
        for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "deploy/RUNBOOK.md"]
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in link and link not in made_for_the_site
    ]
    assert len(links) > 30
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_library_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, made in (("normal", pictures(0, 240)), ("new", pictures(1, 3, stripes=True))):
        target = tmp_path / "images" / folder
        target.mkdir(parents=True)
        for name, image in made:
            Image.fromarray(image).save(target / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "how-to/library.md").read_text(), re.DOTALL):
        exec(compile(block, "library.md", "exec"), names)
    name, p_values = capsys.readouterr().out.splitlines()[0].split(" ", 1)
    assert name == "1-0.png"
    assert ast.literal_eval(p_values)["ood"] < 0.05
