"""`layerwatch streams`: the counts and alerts of every stream."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing

from rich.table import Table
from rich.text import Text

from monitor.cli.console import open_console
from monitor.cli.options import add_config_option
from monitor.config.errors import EXIT_UNAVAILABLE, as_command_error
from monitor.config.loading import load_config
from monitor.fleet.history import WINDOW_MS
from monitor.fleet.overview import Overview
from monitor.store import StoreConfigError, StoreError, open_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    add_config_option(parser)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.config)
    with (
        as_command_error("streams", StoreError, StoreConfigError, status=EXIT_UNAVAILABLE),
        closing(open_store(settings.redis, settings.monitor)) as store,
    ):
        overview = Overview(store, settings.buckets.lateness_ms, reach_ms=WINDOW_MS)
        streams = {name: stream.model_dump() for name, stream in overview.snapshot().streams.items()}
    if args.json:
        sys.stdout.write(json.dumps({"streams": streams}) + "\n")
        return 0
    table = Table(
        "stream", "applied", "rejected", "late", "duplicates", "OOD share", "watermark", "condition", "alerts"
    )
    for name, stream in streams.items():
        share = "" if stream["ood_share"] is None else f"{stream['ood_share']:.1%}"
        counts = (str(stream[count]) for count in ("applied", "rejected", "late", "duplicates"))
        condition, alerts = (", ".join(stream[key]) or "-" for key in ("conditions", "alerts"))
        table.add_row(Text(name), *counts, share, stream["watermark"] or "", condition, alerts)
    open_console().print(table)
    return 0
