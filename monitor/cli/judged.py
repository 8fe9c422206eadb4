"""What the rules say of counts that are at hand: the alerts that they would have raised, sent to nobody.

The buckets go through the daemon's own store and evaluator, in a Redis of this process: an alert is the document that a
receiver would have got.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import Any

from pydantic import SecretStr

from monitor.cli.replay import sent_documents
from monitor.config.schema import Config
from monitor.core.buckets import Layout
from monitor.core.types import Delta, Partition, Vector
from monitor.daemon import limits_of, presentation_of
from monitor.evaluate.closing import Closing
from monitor.evaluate.evaluator import Evaluator
from monitor.notify.self_alerts import SelfAlerts
from monitor.rules.rule import Rule
from monitor.store import open_store
from monitor.store.private_server import PrivateRedis

PARTITION, TOKEN = Partition("judged", 0), "judged"
BUCKETS_AT_ONCE = 200

Progress = Callable[[float], None]
Buckets = Mapping[tuple[str, int, str], Vector]
"""{(fingerprint, bucket start ms, stream): counts}."""


def documents_of(
    buckets: Buckets,
    layouts: Mapping[str, Layout],
    rules: Sequence[Rule],
    settings: Config,
    progress: Progress = lambda _: None,
) -> list[dict[str, Any]]:
    """The alert documents, oldest first.

    Raises:
        ChildError, StoreError: the private Redis does not start or answer.
    """
    presentation = replace(presentation_of(settings), has_receivers=True)
    starts = [(at, list(keys)) for at, keys in groupby(sorted(buckets, key=_by_start), key=lambda key: key[1])]
    with PrivateRedis() as server:
        redis = settings.redis.model_copy(update={"mode": "single", "url": SecretStr(server.url)})
        with closing(open_store(redis, settings.monitor, limits_of(settings))) as store:
            store.catalog.put_layouts(layouts)
            store.catalog.register_partitions([PARTITION])
            store.partitions.start(PARTITION, 1, TOKEN, 0)
            closed = Closing(store, settings.buckets, SelfAlerts(store, settings.monitor, has_receivers=False))
            evaluator = Evaluator(store, tuple(rules), layouts, closed, presentation)
            evaluator.load()
            for done, (at, keys) in enumerate(starts):
                # the event time that closes this bucket: all of its images are counted
                high_ms = at + settings.buckets.length_ms + settings.buckets.lateness_ms
                counts = {key: buckets[key] for key in keys}
                store.partitions.apply([Delta(PARTITION, TOKEN, done, done + 1, high_ms, counts)])
                if done % BUCKETS_AT_ONCE == BUCKETS_AT_ONCE - 1 or done + 1 == len(starts):
                    evaluator.look()
                    progress((done + 1) / len(starts))
            return [json.loads(document) for document in sent_documents(store)]


def _by_start(key: tuple[str, int, str]) -> tuple[int, str, str]:
    return key[1], key[0], key[2]
