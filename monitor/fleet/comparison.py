"""A profile in shadow beside those that judge: the same images by both, what rules would have said of them, and the
images on which they disagree most."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitor.core.buckets import IMAGES, Layout, cut_index, exceedances
from monitor.core.shadow import PREFIX
from monitor.core.table import Table
from monitor.core.types import Exemplar
from monitor.fleet.answers import Answer, Count, Share, Time
from monitor.fleet.history import LEVEL
from monitor.fleet.images import JPEG
from monitor.fleet.rehearsal import would_fire
from monitor.rules.judging import Closed
from monitor.rules.rule import Rule
from monitor.store import Store

MOST_DISAGREED = 12
"""Images shown of all streams together."""

MOST_JUDGED = 36_000
"""Counts of one stream in one bucket that the alerts of a side are made from: an hour of 100 streams in buckets of ten
seconds. Of more streams the newest buckets are judged."""

Buckets = Mapping[int, Closed]
"""{bucket start ms: {fingerprint: counts}}."""


class SideJson(Answer):
    """What one of two profiles says of the images."""

    images: Count
    ood_share: Share | None
    """Share of them with p <= .05; null where there are none."""


class DisagreementJson(Answer):
    """An image that two profiles judge differently."""

    id: str
    stream: str
    event_time: Time
    p_value: float
    """Of the OOD score, by the profile that judges."""
    shadow_p_value: float
    thumbnail: str
    """A JPEG as a data URI; empty where none is kept."""


class StreamSidesJson(Answer):
    judging: SideJson
    shadow: SideJson


class RaisedJson(Answer):
    """An alert that a rule would have raised."""

    rule: str
    stream: str
    fired_at: Time


class RaisedAlertsJson(Answer):
    """What the configured rules about images would have raised by both profiles, had they begun to judge at `since`."""

    since: Time
    """Later than that of the shares where there are many streams."""
    judging: list[RaisedJson]
    """The earliest first."""
    shadow: list[RaisedJson]

    @property
    def newest_first(self) -> list[tuple[RaisedJson, bool]]:
        """(alert, whether the profile in shadow would have raised it) of both."""
        both = [*((alert, False) for alert in self.judging), *((alert, True) for alert in self.shadow)]
        return sorted(both, key=lambda one: (-one[0].fired_at, one[0].stream, one[0].rule, one[1]))


class ComparisonJson(Answer):
    """Over the buckets in which both counted images of a stream: but for the first and the last the same images."""

    shadow: str
    """Fingerprint of the profile in shadow."""
    since: Time
    until: Time
    judging_side: SideJson
    shadow_side: SideJson
    streams: dict[str, StreamSidesJson]
    alerts: RaisedAlertsJson | None
    """Null where none were asked for."""
    disagreements: list[DisagreementJson]
    """Those on which they disagree most since the shadow began, as far as they are kept; the farthest apart first."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The counts of both, in the buckets in which both have images of a stream."""

    fingerprint: str
    """Of the counts in shadow."""
    span_ms: tuple[int, int]
    """(since, until)."""
    judging: Buckets
    shadow: Buckets


def sides_of(store: Store, layouts: Mapping[str, Layout], shadow: str, span_ms: tuple[int, int]) -> Sides:
    """Read them.

    Args:
        layouts: of the profiles that judge.
        shadow: fingerprint of the counts in shadow.
        span_ms: (since, until).

    Raises:
        StoreError: Redis does not answer.
    """
    partitions = store.catalog.partitions()

    def counted(fingerprint: str) -> dict[int, Table]:
        found = store.counts.buckets(partitions, fingerprint, *span_ms)
        return {start: table.chosen(table.counts[:, IMAGES] > 0) for start, table in found.items()}

    beside = counted(shadow)
    judging: dict[int, dict[str, Table]] = {start: {} for start in beside}
    for fingerprint in layouts:
        for start, table in counted(fingerprint).items():
            if start in beside and (both := _those_in(table, beside[start])):
                judging[start][fingerprint] = both
    shadows = {start: _those_in(table, *judging[start].values()) for start, table in beside.items()}
    return Sides(
        shadow,
        span_ms,
        {start: tables for start, tables in judging.items() if tables},
        {start: {shadow: table} for start, table in shadows.items() if table},
    )


def compare(
    store: Store, layouts: Mapping[str, Layout], sides: Sides, alerts: RaisedAlertsJson | None = None
) -> ComparisonJson:
    """Both sides in numbers.

    Args:
        layouts: of the profiles that judge.

    Raises:
        StoreError: Redis does not answer.
    """
    shadow, partitions = sides.fingerprint, store.catalog.partitions()
    judged = _by_stream(layouts, sides.judging)
    beside = _by_stream({shadow: store.catalog.shadows()[shadow]}, sides.shadow)
    kept = [image for stream in sorted(beside) for image in store.exemplars.disagreed(partitions, shadow, stream)]
    return ComparisonJson(
        shadow=shadow,
        since=sides.span_ms[0],
        until=sides.span_ms[1],
        judging_side=_side(judged.values()),
        shadow_side=_side(beside.values()),
        streams={s: StreamSidesJson(judging=_side([judged[s]]), shadow=_side([beside[s]])) for s in sorted(beside)},
        alerts=alerts,
        disagreements=_farthest(kept),
    )


def raised_alerts(
    sides: Sides, layouts: Mapping[str, Layout], rules: Sequence[Rule], bucket_ms: int
) -> RaisedAlertsJson:
    """What the rules would have raised by the newest buckets of both sides, `MOST_JUDGED` at most.

    Args:
        layouts: of the profiles that judge, and of that in shadow as if it judged.
        bucket_ms: length of a bucket.
    """
    starts: list[int] = []
    left = MOST_JUDGED
    for start in sorted(sides.shadow, reverse=True):
        left -= sum(map(len, sides.judging[start].values()))
        if left < 0 and starts:
            break
        starts.append(start)

    def raised(buckets: Buckets) -> list[RaisedJson]:
        newest = {start: buckets[start] for start in starts}
        own = {name: layouts[name] for tables in newest.values() for name in tables}
        fired = would_fire(rules, own, newest, bucket_ms, "")
        return [RaisedJson(rule=a.rule, stream=a.stream, fired_at=a.fired_ms) for a in fired]

    return RaisedAlertsJson(
        since=min(starts, default=sides.span_ms[0]),
        judging=raised(sides.judging),
        shadow=raised(as_judging(sides.shadow)),
    )


def as_judging(buckets: Buckets) -> dict[int, dict[str, Table]]:
    """Counts in shadow as the profile would have counted them had it judged: no rule looks at those in shadow."""
    return {start: {n.removeprefix(PREFIX): t for n, t in tables.items()} for start, tables in buckets.items()}


def _those_in(table: Table, *others: Table) -> Table:
    """The streams that one of the others has, too."""
    return table.chosen(np.array([any(stream in other for other in others) for stream in table.streams], dtype=bool))


def _by_stream(layouts: Mapping[str, Layout], buckets: Buckets) -> dict[str, tuple[int, int]]:
    """{stream: (images, those with p <= .05)}."""
    of_profile: dict[str, list[Table]] = {}
    for tables in buckets.values():
        for fingerprint, table in tables.items():
            of_profile.setdefault(fingerprint, []).append(table)
    found: dict[str, tuple[int, int]] = {}
    for fingerprint, parts in of_profile.items():
        table = Table.added(parts)
        unusual = exceedances(layouts[fingerprint], table.counts, "ood")[:, cut_index(LEVEL)]
        for stream, images, passed in zip(
            table.streams, table.counts[:, IMAGES].tolist(), unusual.tolist(), strict=True
        ):
            before = found.get(stream, (0, 0))
            found[stream] = before[0] + images, before[1] + passed
    return found


def _side(streams: Iterable[tuple[int, int]]) -> SideJson:
    """Of (images, unusual ones) each."""
    counts = list(streams)
    images, unusual = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return SideJson(images=images, ood_share=unusual / images if images else None)


def _farthest(kept: Sequence[tuple[float, Exemplar]]) -> list[DisagreementJson]:
    found = sorted(kept, key=lambda scored: (-scored[0], scored[1].id))[:MOST_DISAGREED]
    return [
        DisagreementJson(
            id=image.id,
            stream=image.stream,
            event_time=image.event_time_ms,
            p_value=image.p_values[0],
            shadow_p_value=image.p_values[1],
            thumbnail=JPEG + b64encode(image.thumbnail).decode() if image.thumbnail else "",
        )
        for _, image in found
    ]
