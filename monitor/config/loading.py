"""Reads the configuration once, at the start.

The file comes first, then environment variables over it (`LAYERWATCH__KAFKA__BOOTSTRAP_SERVERS=a:9092,b:9092`, parts
joined by two underscores, values read as YAML). Unknown keys are errors: a typing mistake must not silently become a
default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from monitor.config.errors import ConfigError
from monitor.config.schema import Config
from monitor.core.settings import READ_SECRET, SECRET_ERROR
from monitor.rules.registry import wrong_numbers
from monitor.rules.rule import Rule

ENV_PREFIX = "LAYERWATCH__"


def read_secret(value: Mapping[str, object]) -> str:
    """The secret that `{env: NAME}` or `{file: PATH}` names.

    Raises:
        ValueError: it is neither, the variable is not set, or the file cannot be read.
    """
    if set(value) == {"env"}:
        name = str(value["env"])
        if name not in os.environ:
            raise ValueError(f"environment variable {name} is not set")
        return os.environ[name]
    if set(value) == {"file"}:
        try:
            return Path(str(value["file"])).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"cannot read {value['file']}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ValueError(f"{value['file']} is not UTF-8 text") from None
    raise ValueError("must be a string, {env: NAME} or {file: PATH}")


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file (None: defaults only) and the environment over it.

    Raises:
        ConfigError: one line per wrong key.
    """
    where = str(path) if path else "defaults"
    tree: Any = {}
    if path:
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError([f"{where}: {error.strerror}"]) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError([f"{where}: not valid YAML{_place(error)}"]) from None
        if not isinstance(tree, dict):
            raise ConfigError([f"{where}: must be a mapping of sections (got {type(tree).__name__})"])
    from_environment = _overlay(tree, environ)
    try:
        return Config.model_validate(tree, context={READ_SECRET: read_secret})
    except ValidationError as error:
        # a key may hold anything, line breaks too, and one error is one line
        lines = [_line(where, from_environment, item) for item in error.errors()]
        raise ConfigError([" ".join(line.split()) for line in lines]) from error


def checked_rules(settings: Config) -> tuple[Rule, ...]:
    """The configured rules.

    Raises:
        ConfigError: the numbers of a rule are not consistent.
    """
    if wrong := wrong_numbers(settings.rules, settings.buckets.seconds):
        raise ConfigError(wrong)
    return settings.rules


def _overlay(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Write the environment's values into `tree`; returns dotted key -> variable, to name it in errors."""
    named: dict[str, str] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        *sections, key = variable.removeprefix(ENV_PREFIX).lower().split("__")
        node = tree
        for section in sections:
            child = node.get(section)
            # a copy, so that an anchor shared in the file is not changed in two places
            node[section] = dict(child) if isinstance(child, dict) else {}
            node = node[section]
        try:
            node[key] = yaml.safe_load(environ[variable])
        except yaml.YAMLError:
            node[key] = environ[variable]
        named[".".join([*sections, key])] = variable
    return named


def _place(error: Exception) -> str:
    """Where and why a file is not YAML; without what stands there, which may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return ": must be UTF-8 text" if isinstance(error, UnicodeDecodeError) else ""
    mark, problem = error.problem_mark, re.sub(r"""(['"]).{2,}\1""", "...", error.problem or "")
    return f": line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _line(where: str, from_environment: Mapping[str, str], item: ErrorDetails) -> str:
    """`config.yaml: buckets.seconds: must be greater than 0 (got -5)`; never shows a secret's value."""
    message = item["msg"].removeprefix("Value error, ")
    # a section's own check begins its text with the key at fault
    inner = re.match(r"([a-z_]+): (.+)", message, re.DOTALL) if item["type"] == "value_error" else None
    names, message = ([inner[1]], inner[2]) if inner else ([], message)
    key = ".".join(str(part) for part in (*item["loc"], *names))
    origin = from_environment.get(key, where)
    if item["type"] == "extra_forbidden":
        return f"{origin}: {key}: unknown key"
    message = message.replace("Input should be", "must be").replace("Field required", "is required")
    message = message.replace("a valid tuple", "a list")
    shown = item["input"]
    secret = item["type"] == SECRET_ERROR or any(word in key for word in ("secret", "password", "token", "key", "url"))
    got = f" (got {shown!r})" if isinstance(shown, int | float | str) and not secret else ""
    return f"{origin}: {key + ': ' if key else ''}{message}{got}"
