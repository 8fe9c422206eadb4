"""The drift of an archive as one self-contained HTML file: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from detectors.images.reading import InputError
from monitor.cli.archive.drift import Counted, count
from monitor.cli.archive.results import Results
from monitor.cli.judged import documents_of
from monitor.cli.progress import show_progress
from monitor.config.errors import EXIT_UNAVAILABLE, as_command_error
from monitor.config.loading import checked_rules, load_config
from monitor.config.schema import Config
from monitor.core.alert_document import MovedSignal, Triage, rfc3339
from monitor.core.buckets import IMAGES, REJECTED, Layout, counted_under, cut_index, exceedances, sum_vectors
from monitor.core.types import Vector
from monitor.fleet.counts import bands
from monitor.fleet.stream_view import PointJson
from monitor.rules.evidence import moved_signals, triage
from monitor.rules.rule import Rule
from monitor.rules.stream_health import FrozenRule
from monitor.store import StoreError
from monitor.store.child_process import ChildError
from monitor.web import labels
from monitor.web.drawing import HEIGHT, WIDTH, Chart

DAY_MS = 86_400_000
LEVEL = 0.05
PLOTTED = 50
"""Streams with a plot, those that differ most; all are in the table."""


@dataclass(frozen=True)
class StreamPart:
    """One stream, or all together, in the report."""

    name: str
    images: int
    rejected: int
    share: float
    """Of images beyond the 5 % cut of the OOD score."""
    moved: Sequence[MovedSignal]
    triage: Triage | None
    chart: Chart
    worst: Sequence[tuple[float, str, str]]
    """(p-value, id, source)."""

    @property
    def effect(self) -> float:
        """Share of images that must have changed, by the signal that moved most."""
        return max((moved.effect for moved in self.moved), default=0.0)


def write_report(out: str, html: str | None, config: Path | None, as_json: bool) -> list[str]:
    """Write the page; returns lines to print: the alerts, as documents or in words.

    Raises:
        InputError: there are no scores.
        CommandError: of the configuration, or where the private Redis does not start.
    """
    console, settings, results = Console(stderr=True), load_config(config), Results(out)
    manifest = results.manifest()
    if manifest["kind"] != "scores":
        raise InputError(f"{out}: holds {manifest['kind']}, not scores")
    layout, total = Layout.from_json(manifest["layout"]), len(manifest["shards"])
    finished = len(results.finished())
    with show_progress(console, "archive") as show:
        counted = count(results, layout, settings.buckets.length_ms, partial(show, "reading scores"))
        if not counted.buckets:
            raise InputError(f"{out}: no shard is finished yet")
        with as_command_error("archive", ChildError, StoreError, status=EXIT_UNAVAILABLE):
            judging = partial(show, f"judging {len(counted.buckets)} buckets")
            fingerprint, rules = counted_under(manifest["profile"]), _judged_rules(settings)
            buckets = {(fingerprint, *key): vector for key, vector in counted.buckets.items()}
            documents = documents_of(buckets, {fingerprint: layout}, rules, settings, judging)
    page = _render(manifest, counted, documents, [rule.name for rule in rules])
    if html is None and "://" in out:
        raise InputError(f"{out}: say with --html FILE where to write the page")
    path = Path(html or Path(out) / "report.html")
    path.write_text(page, encoding="utf-8")
    if as_json:
        return [json.dumps(document) for document in documents]
    left = "" if finished == total else f"; only {finished} of {total} shards are finished"
    images = sum(int(vector[IMAGES]) for vector in counted.buckets.values())
    return [f"{path}: {images} images{left}", *map(_in_words, documents)]


def _judged_rules(settings: Config) -> tuple[Rule, ...]:
    """The configured rules that can judge an archive."""
    return tuple(r for r in checked_rules(settings) if not r.reads_clock and not isinstance(r, FrozenRule))


def _in_words(document: Mapping[str, Any]) -> str:
    data = document["data"]
    return f"{document['timestamp']} {document['type']} {data['rule']} {data['stream']}: {data['summary']}"


def _render(manifest: Mapping[str, Any], counted: Counted, documents: Sequence[Any], rules: Sequence[str]) -> str:
    by_day = counted.by_step(DAY_MS)
    everything: dict[int, list[Vector]] = {}
    for days in by_day.values():
        for day, vector in days.items():
            everything.setdefault(day, []).append(vector)
    together = {day: sum_vectors(some) for day, some in sorted(everything.items())}
    streams = [_part(counted, stream, days) for stream, days in by_day.items()]
    streams.sort(key=lambda part: (-part.effect, part.name))
    environment = Environment(loader=PackageLoader("monitor.cli.archive"), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"label": labels.signal, "rfc3339": rfc3339, "width": WIDTH, "height": HEIGHT}
    return environment.get_template("report.html").render(
        manifest=manifest,
        everything=_part(counted, "", together),
        streams=streams,
        plotted=PLOTTED,
        documents=documents,
        rules=rules,
        reasons=sorted(counted.reasons.items()),
        level=LEVEL,
    )


def _part(counted: Counted, name: str, days: Mapping[int, Vector]) -> StreamPart:
    layout, total = counted.layout, sum_vectors(days.values())
    images, moved = int(total[IMAGES]), moved_signals(counted.layout, total)
    worst = sorted(((-p, image, source) for p, image, source in counted.worst.get(name, ())), key=lambda each: each[0])
    points = [_point(layout, day, days.get(day)) for day in range(min(days), max(days) + 1, DAY_MS)]
    return StreamPart(
        name=name,
        images=images,
        rejected=int(total[REJECTED]),
        share=_beyond(layout, total) / max(images, 1),
        moved=moved,
        triage=triage(moved),
        chart=Chart(points, DAY_MS),
        worst=worst,
    )


def _point(layout: Layout, day_ms: int, vector: Vector | None) -> PointJson:
    images = 0 if vector is None else int(vector[IMAGES])
    share, band = None, None
    if vector is not None and images:
        low, high = bands(layout, LEVEL, np.array([images]))
        share, band = _beyond(layout, vector) / images, [float(low[0]), float(high[0])]
    rejected = 0 if vector is None else int(vector[REJECTED])
    return PointJson(start=day_ms, images=images, rejected=rejected, share=share, band=band)


def _beyond(layout: Layout, vector: Vector) -> int:
    return int(exceedances(layout, vector, "ood")[cut_index(LEVEL)])
