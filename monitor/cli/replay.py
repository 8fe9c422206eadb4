"""`layerwatch replay`: what the rules say about a span of the log, with the state in a Redis of its own.

The daemon's own consumer and evaluator read the span, so the same log gives the same alert documents. A window rule
needs a window's length before the span that is asked about, the sequential rule the beginning of the log. What followed
the clock of the machine: `silence` is left out, and `max_future_s` counts from when a record came, as the records after
it tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from pydantic import SecretStr
from rich.console import Console

from monitor.cli.options import TIME_HELP, add_config_option, parse_time
from monitor.cli.progress import Show, show_progress
from monitor.config.errors import EXIT_UNAVAILABLE, ConfigError, as_command_error
from monitor.config.loading import checked_rules, load_config
from monitor.config.schema import Config
from monitor.daemon import build_consumer, limits_of, presentation_of, serving_of
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator
from monitor.ingest.scoring.profiles import load_profiles
from monitor.ingest.settings import VerdictSettings
from monitor.notify.self_alerts import SelfAlerts
from monitor.sources import SOURCES
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import Span, open_span
from monitor.store import Store, StoreError, open_store
from monitor.store.child_process import ChildError
from monitor.store.private_server import PrivateRedis
from monitor.telemetry import metrics

RECEIVER = "replay"
FOR_EVER_MS = 2**52


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="since", type=parse_time, metavar="T", help=f"{TIME_HELP} (the whole log)")
    parser.add_argument("--to", dest="until", type=parse_time, metavar="T", help="likewise (the end of the log)")
    parser.add_argument("--dry-run", action="store_true", required=True, help="print the alerts, send nothing")
    parser.add_argument("--json", action="store_true", help="the alert documents, one a line")
    add_config_option(parser)


def run(args: argparse.Namespace) -> int:
    settings, console = load_config(args.config), Console(stderr=True)
    unavailable = (SourceError, FatalSourceError, StoreError, ChildError)
    try:
        with as_command_error("replay", *unavailable, status=EXIT_UNAVAILABLE), PrivateRedis() as server:
            redis = settings.redis.model_copy(update={"mode": "single", "url": SecretStr(server.url)})
            span = open_span(settings.source_settings(), args.since, args.until)
            with (
                closing(open_store(redis, settings.monitor, limits_of(settings))) as store,
                show_progress(console, "replay") as show,
            ):
                documents, future = replay_documents(settings, span, store, show)
    except ValueError as error:
        raise ConfigError([f"{args.config or 'defaults'}: {error}"]) from error
    sys.stderr.write(f"replay: {span.progress[1]} records read\n")
    if future:
        sys.stderr.write(f"replay: {future} timestamps were further ahead than buckets.max_future_s allows\n")
    for document in documents:
        facts = json.loads(document)
        data = facts["data"]
        line = f"{facts['timestamp']} {facts['id']} {data['rule']} {data['stream']}: {data['summary']}"
        sys.stdout.write((document if args.json else line) + "\n")
    return 0


def replay_documents(settings: Config, span: Span, store: Store, show: Show) -> tuple[list[str], int]:
    """The alert documents of a span, oldest first, and how many timestamps were further ahead than is allowed.

    The state goes to `store`, which must be empty. Closes the span.

    Raises:
        SourceError, FatalSourceError: the span cannot be read to its end.
    """
    without_traces = _without_traces(settings)
    profiles = load_profiles(without_traces.scoring, settings.decoding)
    rules = tuple(rule for rule in checked_rules(settings) if not rule.reads_clock)
    serving = serving_of(without_traces, profiles, store)
    consumer = build_consumer(without_traces, serving, rules, store, lambda: span)
    closing = Closing(store, settings.buckets, SelfAlerts(store, settings.monitor, has_receivers=False))
    presentation = replace(presentation_of(settings), has_receivers=True)
    evaluator = Evaluator(store, rules, profiles.layouts, closing, presentation)
    evaluator.memory.conditions_of = profiles.conditions_of
    future = _future_records()
    try:
        evaluator.load()
        while not consumer.is_through(span.partitions()):
            consumer.step()
            evaluator.look()
            read, total = span.progress
            show(f"{read} of {total} records read", read / total if total else -1.0)
    finally:
        consumer.close()
    return list(sent_documents(store)), round(_future_records() - future)


def _without_traces(settings: Config) -> Config:
    """The whole span; no image log, self alerts or thumbnails; a partition is idle as soon as it is read to its end."""
    source = SOURCES[settings.source].section
    return settings.model_copy(
        update={
            source: getattr(settings, source).model_copy(update={"start": "earliest"}),
            "verdicts": VerdictSettings(),
            "receivers": (),
            "scoring": settings.scoring.model_copy(update={"shadow": ()}),
            "evidence": settings.evidence.model_copy(update={"thumbnails": False}),
            "buckets": settings.buckets.model_copy(update={"idle_timeout_s": 0.0}),
        }
    )


def _future_records() -> float:
    (metric,) = metrics.FUTURE_RECORDS.collect()
    return float(metric.samples[0].value)


def sent_documents(store: Store) -> Iterator[str]:
    """Everything that a receiver would have been sent, in order."""
    while entries := store.outbox.fetch(RECEIVER, FOR_EVER_MS):
        for entry in entries:
            yield entry.document
            store.outbox.settle(RECEIVER, entry.id)
