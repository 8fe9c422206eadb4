"""`layerwatch replay`: what the rules say about a span of the log, with the state in a Redis of its own.

The same decoding, counting, rules and scripts as the daemon's, so the same log gives the same alerts with the same ids:
a window rule needs a window's length before the span that is asked about, the sequential rule the beginning of the log.
`silence` is about the clock of the machine and is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import groupby, islice
from typing import Any

from pydantic import SecretStr

from monitor.cli.run import add_config_option
from monitor.config.errors import EXIT_UNAVAILABLE, ConfigError
from monitor.config.loading import load_config
from monitor.config.schema import Config
from monitor.core.aggregate import Counting, Judged, Outcome, aggregate
from monitor.core.types import DeadLetter, Delta, Partition, Record, StreamFacts
from monitor.evaluate.evaluator import Evaluator
from monitor.ingest.decode.records import DecodeError, Decoder, stream_of
from monitor.ingest.scoring.profiles import Profiles, load_profiles
from monitor.rules import Silence
from monitor.rules.ruleset import bind_rules
from monitor.sources.protocol import FatalSourceError, SourceError
from monitor.sources.read_back import read_back
from monitor.store import Store, open_store

RECORDS = 512
"""Decoded, scored and applied together."""
OWNER = "replay"
FOR_EVER_MS = 2**52


def add_command(commands: Any) -> None:
    """Add `replay` to an argparse subparser table."""
    replay = commands.add_parser("replay", help="what the rules say about a span of the log; changes nothing")
    replay.add_argument("--from", dest="since", required=True, type=time_ms, metavar="T", help="RFC 3339 or ms")
    replay.add_argument("--to", dest="until", type=time_ms, metavar="T", help="RFC 3339 or ms (the end of the log)")
    replay.add_argument("--dry-run", action="store_true", required=True, help="print the alerts, send nothing")
    replay.add_argument("--json", action="store_true", help="the alert documents, one a line")
    add_config_option(replay)
    replay.set_defaults(handler=_replay)


def time_ms(text: str) -> int:
    """Milliseconds since the epoch, given as such or as RFC 3339."""
    try:
        return int(text) if text.isdigit() else round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither RFC 3339 nor milliseconds") from error


def replay_documents(settings: Config, records: Iterator[Record], store: Store) -> list[str]:
    """The alert documents of these records, oldest first; the state goes to `store`, which must be empty.

    Args:
        records: each partition in the order of its log.
    """
    from monitor.ingest.wiring import counting_of, presentation_of  # noqa: PLC0415 - loads the readers' side

    profiles = load_profiles(settings.scoring, settings.decoding)
    rules = tuple(rule for rule in bind_rules(settings) if not isinstance(rule.judge, Silence))
    counting = counting_of(settings, profiles)
    store.catalog.put_layouts(profiles.layouts)
    partitions = _count_all(settings, records, store, profiles, counting)
    for partition in partitions:
        store.partitions.set_idle(partition, OWNER, True)  # all is read: nothing holds a bucket open
    presentation = replace(presentation_of(settings), heard=True)
    evaluator = Evaluator(
        store, rules, counting.layouts, (counting.rates.bucket_ms, counting.rates.lateness_ms), presentation
    )
    evaluator.load()
    evaluator.look()
    return list(_told(store))


def _count_all(
    settings: Config, records: Iterator[Record], store: Store, profiles: Profiles, counting: Counting
) -> list[Partition]:
    decoder = Decoder(profiles.preparers(), settings.stream, settings.decoding)
    where: dict[Partition, int] = {}
    highs: dict[Partition, int | None] = {}
    facts: dict[Partition, dict[str, StreamFacts]] = {}
    while batch := sorted(islice(records, RECORDS), key=lambda record: (record.partition, record.offset)):
        for partition, members in groupby(batch, key=lambda record: record.partition):
            mine = list(members)
            if partition not in where:
                where[partition], highs[partition], facts[partition] = mine[0].offset, None, {}
                store.partitions.start(partition, 1, OWNER, mine[0].offset)
                store.catalog.register_partitions([partition])
            outcomes = _outcomes(decoder, profiles, mine, settings.scoring.batch_images)
            counted = aggregate(outcomes, highs[partition], facts[partition], FOR_EVER_MS, counting)
            after = mine[-1].offset + 1
            high_ms = counted.high_ms or 0
            store.partitions.apply(
                [Delta(partition, OWNER, where[partition], after, high_ms, counted.vectors, counted.facts)]
            )
            where[partition], highs[partition] = after, counted.high_ms
            facts[partition].update(counted.facts)
    return list(where)


def _outcomes(decoder: Decoder, profiles: Profiles, records: list[Record], batch_images: int) -> list[Outcome]:
    decoded: list[Any] = []
    for record in records:
        try:
            decoded.append(decoder(record))
        except DecodeError as error:
            decoded.append(DeadLetter(record, stream_of(record, decoder.naming), error.reason, str(error)))
    images = [image for found in decoded if isinstance(found, list) for image in found]
    judged = iter(profiles.p_values([(image.stream, image.prepared) for image in images], batch_images))
    return [
        found
        if isinstance(found, DeadLetter)
        else [Judged(i.id, i.stream, i.event_time_ms, *next(judged), i.prepared) for i in found]
        for found in decoded
    ]


def _told(store: Store) -> Iterator[str]:
    """Everything that a receiver would have been sent, in order."""
    while entries := store.outbox.fetch(OWNER, FOR_EVER_MS):
        for entry in entries:
            yield entry.document
            store.outbox.settle(OWNER, entry.id)


def _replay(args: argparse.Namespace) -> int:
    from monitor.ingest.wiring import limits_of  # noqa: PLC0415
    from monitor.store.private_server import PrivateRedis, PrivateRedisError  # noqa: PLC0415

    settings = load_config(args.config)
    try:
        with PrivateRedis() as server:
            apart = settings.redis.model_copy(update={"mode": "single", "url": SecretStr(server.url)})
            store = open_store(apart, settings.monitor, limits_of(settings))
            documents = replay_documents(settings, read_back(settings.source_settings(), args.since, args.until), store)
            store.close()
    except ValueError as error:
        raise ConfigError([f"{args.config or 'defaults'}: {error}"]) from error
    except (SourceError, FatalSourceError, PrivateRedisError) as error:
        sys.stderr.write(f"layerwatch replay: {error}\n")
        return EXIT_UNAVAILABLE
    for document in documents:
        facts = json.loads(document)
        data = facts["data"]
        line = f"{facts['timestamp']} {facts['id']} {data['rule']} {data['stream']}: {data['summary']}"
        sys.stdout.write((document if args.json else line) + "\n")
    return 0
