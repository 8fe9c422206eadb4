"""`layerwatch profile compare`: a profile in shadow beside the one that judges, on the same images."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.cli.console import open_console
from monitor.cli.judged import documents_of
from monitor.config.errors import EXIT_UNAVAILABLE, CommandError, as_command_error
from monitor.config.loading import checked_rules, load_config
from monitor.config.schema import Config
from monitor.core.buckets import Layout
from monitor.core.shadow import PREFIX
from monitor.fleet.comparison import Buckets, ComparisonJson, SideJson, Sides, as_judging, compare, sides_of
from monitor.fleet.state import newest_event_ms, read_layouts
from monitor.store import Store, StoreConfigError, StoreError, open_store
from monitor.store.child_process import ChildError

SINCE_S = 86_400.0
STREAMS_SHOWN = 20

Alerts = dict[str, list[dict[str, Any]]]
"""{"judging" or "shadow": alert documents that the rules would have sent}."""


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    errors = (StoreError, StoreConfigError, ChildError)
    with (
        as_command_error("profile compare", *errors, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
    ):
        until_ms = newest_event_ms(store.partitions.cursors(store.catalog.partitions())) + 1
        span_ms = until_ms - round(1000 * (args.since or SINCE_S)), until_ms
        layouts, shadows = read_layouts(store), store.catalog.shadows()
        if not shadows:
            raise CommandError("layerwatch profile compare: no profile was in shadow; see scoring.shadow")
        sides = {name: sides_of(store, layouts, name, span_ms) for name in sorted(shadows)}
        found = {name: compare(store, layouts, one) for name, one in sides.items() if one.shadow}
        alerts = {name: _alerts(store, settings, sides[name], layouts) for name in found}
    if args.json:
        rows = [{**c.model_dump(), "alerts": alerts[name]} for name, c in found.items()]
        sys.stdout.write(json.dumps({"comparisons": rows}) + "\n")
        return 0
    console = open_console()
    for name, comparison in found.items():
        _print(console, comparison, alerts[name])
    if not found:
        console.print("no image was scored in shadow in that time")
    return 0


def _alerts(store: Store, settings: Config, sides: Sides, layouts: dict[str, Layout]) -> Alerts:
    """Of both sides by the same rules and buckets; rules that do not read images would say the same of both."""
    rules = [rule for rule in checked_rules(settings) if rule.reads_images and not rule.reads_clock]
    own = {name.removeprefix(PREFIX): layout for name, layout in store.catalog.shadows().items()}

    def documents(buckets: Buckets, known: dict[str, Layout]) -> list[dict[str, Any]]:
        counts = {
            (fingerprint, start, stream): vector
            for start, tables in buckets.items()
            for fingerprint, table in tables.items()
            for stream, vector in table.items()
        }
        return documents_of(counts, known, rules, settings)

    return {"judging": documents(sides.judging, layouts), "shadow": documents(as_judging(sides.shadow), own)}


def _print(console: Console, found: ComparisonJson, alerts: Alerts) -> None:
    name = found.shadow.removeprefix(PREFIX)
    table = Table(title=Text(f"{name} in shadow, beside the profiles that judge"), title_justify="left")
    for heading in ("stream", "images", "OOD share", "in shadow", "alerts", "in shadow"):
        table.add_column(heading, justify="right" if table.columns else "left")
    fired = {side: Counter(_fired(documents)) for side, documents in alerts.items()}

    def row(stream: str, judging: SideJson, shadow: SideJson, counts: Sequence[int]) -> None:
        shares = ("-" if side.ood_share is None else f"{side.ood_share:.2%}" for side in (judging, shadow))
        table.add_row(Text(stream), str(shadow.images), *shares, *map(str, counts))

    totals = [counter.total() for counter in fired.values()]
    row("(all)", found.judging_side, found.shadow_side, totals)
    apart = sorted(found.streams.items(), key=lambda item: -_apart(item[1].judging, item[1].shadow))
    for stream, sides in apart[:STREAMS_SHOWN]:
        row(stream, sides.judging, sides.shadow, [fired[side][stream] for side in ("judging", "shadow")])
    console.print(table)
    if len(apart) > STREAMS_SHOWN:
        console.print(f"the {STREAMS_SHOWN} of {len(apart)} streams that differ most; --json has all")
    images = Table(title="Images on which they disagree most", title_justify="left")
    for heading in ("image", "stream", "p", "in shadow"):
        images.add_column(heading, justify="right" if len(images.columns) > 1 else "left")
    for image in found.disagreements:
        images.add_row(Text(image.id), Text(image.stream), f"{image.p_value:.3g}", f"{image.shadow_p_value:.3g}")
    console.print(images)
    for side, documents in alerts.items():
        for document in documents:
            data = document["data"]
            console.print(Text(f"{side}: {document['timestamp']} {document['type']} {data['rule']} {data['stream']}"))


def _fired(documents: Sequence[dict[str, Any]]) -> list[str]:
    return [document["data"]["stream"] for document in documents if document["type"] == "alert.firing"]


def _apart(judging: SideJson, shadow: SideJson) -> float:
    return abs((judging.ood_share or 0.0) - (shadow.ood_share or 0.0))
