"""A profile in shadow beside those that judge: the same images by both, and those on which they disagree most."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from monitor.core.buckets import IMAGES, Layout, cut_index, exceedances
from monitor.core.types import Exemplar, Vector
from monitor.fleet.answers import Answer, Count, Share, Time
from monitor.fleet.history import LEVEL
from monitor.fleet.images import JPEG
from monitor.store import Store

MOST_DISAGREED = 12
"""Images shown of all streams together."""

BucketKey = tuple[str, int, str]
"""(fingerprint, bucket start ms, stream)."""


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


class ComparisonJson(Answer):
    """Over the buckets in which both counted images of a stream: but for the first and the last the same images."""

    shadow: str
    """Fingerprint of the profile in shadow."""
    since: Time
    until: Time
    judging_side: SideJson
    shadow_side: SideJson
    streams: dict[str, StreamSidesJson]
    disagreements: list[DisagreementJson]
    """Those on which they disagree most since the shadow began, as far as they are kept; the farthest apart first."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The counts of both, in the buckets in which both have images of a stream."""

    judging: Mapping[BucketKey, Vector]
    shadow: Mapping[BucketKey, Vector]


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

    def counted(fingerprint: str) -> Iterator[tuple[BucketKey, Vector]]:
        for start, table in store.counts.buckets(partitions, fingerprint, *span_ms).items():
            yield from (((fingerprint, start, stream), v) for stream, v in table.items() if v[IMAGES])

    beside = dict(counted(shadow))
    places = {key[1:] for key in beside}
    judging = {key: v for key, v in chain.from_iterable(map(counted, layouts)) if key[1:] in places}
    places &= {key[1:] for key in judging}
    return Sides(judging, {key: v for key, v in beside.items() if key[1:] in places})


def compare(store: Store, layouts: Mapping[str, Layout], shadow: str, span_ms: tuple[int, int]) -> ComparisonJson:
    """Both sides in numbers; arguments and errors as `sides_of`."""
    of_all = {**layouts, shadow: store.catalog.shadows()[shadow]}
    sides, partitions = sides_of(store, layouts, shadow, span_ms), store.catalog.partitions()
    streams = sorted({key[2] for key in sides.shadow})
    by_stream = {
        stream: StreamSidesJson(
            judging=_side(of_all, {key: v for key, v in sides.judging.items() if key[2] == stream}),
            shadow=_side(of_all, {key: v for key, v in sides.shadow.items() if key[2] == stream}),
        )
        for stream in streams
    }
    kept = [image for stream in streams for image in store.exemplars.disagreed(partitions, shadow, stream)]
    return ComparisonJson(
        shadow=shadow,
        since=span_ms[0],
        until=span_ms[1],
        judging_side=_side(of_all, sides.judging),
        shadow_side=_side(of_all, sides.shadow),
        streams=by_stream,
        disagreements=_farthest(kept),
    )


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


def _side(layouts: Mapping[str, Layout], counts: Mapping[BucketKey, Vector]) -> SideJson:
    images = sum(int(vector[IMAGES]) for vector in counts.values())
    unusual = sum(int(exceedances(layouts[key[0]], v, "ood")[cut_index(LEVEL)]) for key, v in counts.items())
    return SideJson(images=images, ood_share=unusual / images if images else None)
