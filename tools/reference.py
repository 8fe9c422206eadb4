"""Write the reference pages of docs/ from what they describe: configuration, metrics, alert document, command line.

    python tools/reference.py

A test fails while a page differs from what is written here.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.__main__ import build_parser
from monitor.config.schema import Config
from monitor.core.settings import Section
from monitor.telemetry import metrics

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MADE = "<!-- Made by tools/reference.py; change what it describes instead. -->\n"

Schema = Mapping[str, Any]

METRICS_HEAD = """\
# Metrics

On `/metrics` of every process, for Prometheus. Units are in the names (`_seconds`, `_bytes`); `_total` counts up.
"""

FLEET_HEAD = """\
Read from Redis, and exported by the one process that holds the evaluator's lease; each has the label `monitor`.
At most 500 streams have series of their own, those with most trouble; the others are summed under the stream
`(other)`. A histogram counts from the moment its process took the lease, as counters do from a process' start.
"""

CONFIG_HEAD = """\
# Configuration

One YAML file (`layerwatch run -c config.yaml`), every key optional; an environment variable overrides a key, its
parts joined by two underscores: `LAYERWATCH__BUCKETS__SECONDS=30`. A key that is not known is an error. Where the
type is *secret*, `{env: NAME}` and `{file: PATH}` are accepted besides text. `layerwatch check-config` says what
is wrong, one line per key, and exits 78. The commented default, `config.yaml` at the top of the project, is a
file to start from.
"""

COMMANDS_HEAD = """\
# Command line

`layerwatch COMMAND`, also `python -m monitor COMMAND`. Exit statuses: 0 done, 1 not done, 2 wrong arguments, 69 a
server that is needed does not answer or refuses us, 70 something hangs or broke, 78 the configuration is wrong.
"""


def files() -> dict[Path, str]:
    """{file: what it must hold}."""
    return {
        DOCS / "metrics.md": metrics_page(),
        DOCS / "reference/config.md": config_page(),
        DOCS / "reference/alert.md": alert_page(),
        DOCS / "reference/command-line.md": command_line_page(),
    }


def main() -> int:
    """Write the files."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)


# ------------------------------------------------------------------------------------------------ metrics


def metrics_page() -> str:
    """Every metric with type, labels and meaning."""
    text = MADE + METRICS_HEAD
    text += "\n## Of each process\n\nSums over processes are right.\n\n"
    own = []
    for collector in _collectors():
        family = next(iter(collector.describe()))
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = getattr(collector, "_labelnames", ())
        own.append((f"`{name}`", family.type, _names(labels), _sentence(family.documentation)))
    text += table(("metric", "type", "labels", "meaning"), own)
    text += (
        "\nBesides, where the system tells: `process_cpu_seconds_total`, `process_resident_memory_bytes`, "
        "`process_virtual_memory_bytes`, `process_start_time_seconds`, `process_open_fds`, `process_max_fds`.\n"
    )
    text += "\n## Of the monitor\n\n" + FLEET_HEAD
    rows = [(f"`{m.name}`", m.kind, _names(m.labels), _sentence(m.meaning)) for m in metrics.FLEET]
    return text + "\n" + table(("metric", "type", "labels", "meaning"), rows)


def _collectors() -> list[Any]:
    found = [value for value in vars(metrics).values() if hasattr(value, "_labelnames") and hasattr(value, "describe")]
    return list(dict.fromkeys(found))


def _names(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in labels)


def _sentence(text: str) -> str:
    # what stands in angle brackets or after a bare < would be read as HTML
    return text.replace("<", "&lt;") + "."


# ------------------------------------------------------------------------------------------------ configuration


def config_page() -> str:
    """Every key with type, default and meaning."""
    schema = Config.model_json_schema()
    said = _field_docstrings()
    comments = _comments((ROOT / "config.yaml").read_text())
    text = MADE + CONFIG_HEAD
    plain, sections = [], ""
    for name, field in schema["properties"].items():
        reference = _reference(field)
        if reference is None and name not in {"rules", "receivers"}:
            plain.append(_row(name, field, "Config", name, said, comments, schema))
        elif reference is not None:
            sections += f"\n## {name}\n\n" + _about(reference) + _section(reference, name, said, comments, schema)
        else:
            sections += f"\n## {name}\n\nA list; each entry has a `name` of its own, and is of one kind.\n"
            for kind in _members(field):
                sections += f"\n### {_kind_of(kind, schema)}\n\n" + _about(kind)
                sections += _section(kind, name, said, comments, schema)
    head = ("key", "type", "default", "meaning")
    return text + "\n" + table(head, plain) + sections


def _section(model: str, path: str, said: Mapping[str, str], comments: Mapping[str, str], schema: Schema) -> str:
    rows: list[tuple[str, ...]] = []
    nested = ""
    for key, field in schema["$defs"][model]["properties"].items():
        inner = _reference(field)
        if "oneOf" in field.get("items", {}):
            meaning = " ".join(comments.get(f"{path}.{key}", "").split())
            rows.append((f"`{key}`", "list", "`[]`", f"{meaning}; see `{path}.{key}` below"))
            for kind in _members(field):
                nested += f"\n### {path}.{key}, {_kind_of(kind, schema)}\n\n" + _about(kind)
                nested += _section(kind, f"{path}.{key}", said, comments, schema)
        elif inner is None:
            rows.append(_row(key, field, model, f"{path}.{key}", said, comments, schema))
        else:
            rows.append((f"`{key}`", "section", "none", f"see `{path}.{key}` below"))
            nested += f"\n### {path}.{key}\n\n" + _about(inner)
            nested += _section(inner, f"{path}.{key}", said, comments, schema)
    return table(("key", "type", "default", "meaning"), rows) + nested


def _row(
    key: str, field: Schema, model: str, path: str, said: Mapping[str, str], comments: Mapping[str, str], schema: Schema
) -> tuple[str, ...]:
    meaning = said.get(f"{model}.{key}") or comments.get(path, "")
    if "const" in field:
        return f"`{key}`", "", f"`{field['const']}`", "which kind this is"
    required = key in schema.get("$defs", {}).get(model, {}).get("required", ())
    default = (
        "required"
        if required
        else f"`{json.dumps(field.get('default', {} if field.get('type') == 'object' else None))}`"
    )
    return f"`{key}`", _type(field, schema), default, " ".join(meaning.split())


def _about(model: str) -> str:
    said = _sections()[model].__doc__
    text = inspect.cleandoc(said or "")
    inherited = any(getattr(base, "__doc__", None) == said for base in Section.__mro__)
    return "" if inherited or not text else f"{text}\n\n"


def _reference(field: Schema) -> str | None:
    """The section that a key holds; None for plain values."""
    options = [field, *field.get("allOf", ()), *field.get("anyOf", ())]
    found = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
    return found[0] if found else None


def _members(field: Schema) -> list[str]:
    return [option["$ref"].rpartition("/")[2] for option in field["items"]["oneOf"]]


def _kind_of(model: str, schema: Schema) -> str:
    properties = schema["$defs"][model]["properties"]
    return next(f"{key}: {properties[key]['const']}" for key in ("kind", "type", "by") if key in properties)


def _type(field: Schema, schema: Schema) -> str:
    options = [option for option in field.get("anyOf", (field,)) if option.get("type") != "null"]
    text = " or ".join(_one_type(option, schema) for option in options)
    return text + (" or null" if len(options) < len(field.get("anyOf", (field,))) else "")


def _one_type(field: Schema, schema: Schema) -> str:
    if "$ref" in field:
        return f"list of {field['$ref'].rpartition('/')[2]}"
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"]).replace("\\|", "or")
    if field.get("format") == "password":
        return "secret"
    if field.get("type") == "array":
        items = field.get("items", {})
        if "$ref" in items:
            inner = schema["$defs"][items["$ref"].rpartition("/")[2]]["properties"]
            return "list of {" + ", ".join(inner) + "}"
        return f"list of {items.get('type', 'values')}s"
    if field.get("type") == "object":
        values = field.get("additionalProperties", {})
        return "names with " + (
            "secrets" if isinstance(values, dict) and values.get("format") == "password" else "values"
        )
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = " and ".join(f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field)
    names = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}
    kind = "path" if field.get("format") in {"path", "file-path"} else names.get(str(field.get("type")), "any")
    return f"{kind} {limits}".replace("<", "&lt;").strip()


def _field_docstrings() -> dict[str, str]:
    """{Model.key: the text under the field}; fields of base classes are found under each model."""
    found: dict[str, str] = {}
    for name, model in _sections().items():
        for base in reversed(model.__mro__):
            if issubclass(base, Section):
                node = ast.parse(inspect.getsource(base)).body[0]
                assert isinstance(node, ast.ClassDef)
                found |= {f"{name}.{key}": text for key, text in _documented(node)}
    return found


def _sections() -> dict[str, type[Section]]:
    """{class name: class} of every section of the configuration, whichever room defines it."""
    waiting, found = [Section], {}
    while waiting:
        for model in waiting.pop().__subclasses__():
            found[model.__name__] = model
            waiting.append(model)
    return found


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, after in zip(node.body, node.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
            yield statement.target.id, str(after.value.value)  # type: ignore[attr-defined]


def _comments(text: str) -> dict[str, str]:
    """{dotted key: its comment} of the commented default; of a list, the first entry that shows a key."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"^(\s*)(- )?([a-z_]+):(.*)$", line)
        if match is None:
            continue
        depth = len(match[1]) + len(match[2] or "")
        while path and path[-1][0] >= depth:
            path.pop()
        path.append((depth, match[3]))
        comment = re.search(r"\s#\s?(.*)$", match[4])
        if comment:
            found.setdefault(".".join(key for _, key in path), comment[1])
    return found


# ------------------------------------------------------------------------------------------------ alert document


def alert_page() -> str:
    """The alert document, field by field."""
    schema = json.loads((DOCS / "alert.schema.json").read_text())
    text = MADE + f"# The alert document\n\n{schema['description']}\n\n"
    text += "The schema itself: [alert.schema.json](../alert.schema.json) (JSON Schema 2020-12).\n\n"
    text += table(("field", "type", "meaning"), list(_fields(schema, schema, "")))
    return text


def _fields(node: Schema, root: Schema, prefix: str) -> Iterator[tuple[str, ...]]:
    for key, field in node.get("properties", {}).items():
        resolved = _resolved(field, root)
        name = f"{prefix}{key}"
        yield (
            f"`{name}`",
            _json_type(resolved),
            " ".join(str(field.get("description") or resolved.get("description", "")).split()),
        )
        options = [resolved, *(_resolved(option, root) for option in resolved.get("oneOf", resolved.get("anyOf", ())))]
        for option in options:
            if "properties" in option:
                yield from _fields(option, root, f"{name}.")
            items = _resolved(option.get("items", {}), root) if isinstance(option.get("items"), dict) else {}
            if "properties" in items:
                yield from _fields(items, root, f"{name}[].")


def _resolved(field: Schema, root: Schema) -> Schema:
    if "$ref" not in field:
        return field
    found: Any = root
    for part in field["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{key: value for key, value in field.items() if key != "$ref"}}


def _json_type(field: Schema) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    kinds = field.get("type") or [str(o.get("type", "object")) for o in field.get("oneOf", field.get("anyOf", ()))]
    return " or ".join([kinds] if isinstance(kinds, str) else kinds)


# ------------------------------------------------------------------------------------------------ command line


def command_line_page() -> str:
    """Every command with its arguments."""
    parser = build_parser()
    text = MADE + COMMANDS_HEAD
    return text + "".join(_commands(parser, "layerwatch", 2))


def _commands(parser: argparse.ArgumentParser, name: str, depth: int) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for command, inner in action.choices.items():
                yield f"\n{'#' * depth} {name} {command}\n\n{_capital(told.get(command, ''))}\n"
                if rows := list(_arguments(inner)):
                    yield "\n" + table(("argument", "default", "meaning"), rows)
                yield from _commands(inner, f"{name} {command}", depth + 1)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        shown = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
        if action.choices:
            shown = " or ".join(map(str, action.choices))
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        text = f"`{name} {shown}`" if action.option_strings and shown else f"`{name}`"
        # a default that depends on where this runs is no reference
        plain = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
        default = f"`{action.default}`" if plain and action.default != argparse.SUPPRESS else ""
        meaning = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        if action.dest == "config" and not meaning:
            meaning = (
                "the configuration file; `config.yaml` of the working directory where there is one, else the defaults"
            )
        yield text, "required" if action.required and action.option_strings else default, meaning


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text and not text.endswith(".") else "")


if __name__ == "__main__":
    sys.exit(main())
