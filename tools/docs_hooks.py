"""What mkdocs builds beside docs/: the runbook and the changelog, which stand where operators look for them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every decision, in order of its number."""
    pages = sorted(f"decisions/{path.name}" for path in (ROOT / "docs/decisions").glob("*.md"))
    config.nav = [{"Decisions": pages} if "Decisions" in entry else entry for entry in config.nav or ()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them as pages; links from the runbook into docs/ become links between pages."""
    runbook = (ROOT / "deploy/RUNBOOK.md").read_text().replace("](../docs/", "](").replace("](prometheus/", "](rules/")
    files.append(File.generated(config, "runbook.md", content=runbook))
    files.append(File.generated(config, "rules/rules.yaml", abs_src_path=str(ROOT / "deploy/prometheus/rules.yaml")))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to the runbook work in the checkout; on the site it is a page beside the others."""
    return markdown.replace("../deploy/RUNBOOK.md", "runbook.md")
