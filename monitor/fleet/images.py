"""The images that are kept of a stream, as pages and the API show them; and what the mix of a stream moved towards."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlencode

from pydantic import Field

from monitor.core.buckets import Layout
from monitor.core.heat import Heat
from monitor.core.types import Exemplar
from monitor.fleet.answers import Answer, Rounded, Time
from monitor.fleet.evidence import StreamEvidence
from monitor.fleet.heat import overlay
from monitor.store import Store

MIX_IMAGES = 12
JPEG = "data:image/jpeg;base64,"


class BoxJson(Answer):
    """In fractions of the image, from its upper left corner."""

    x: Rounded
    y: Rounded
    width: Rounded
    height: Rounded


class ExemplarJson(Answer):
    id: str
    event_time: Time
    p_value: float
    p_values: dict[str, float]
    thumbnail: str | None
    """JPEG as a data: address, re-encoded by Layerwatch."""
    picture: str | None = None
    """Path of the large picture, a JPEG re-encoded by Layerwatch; null where none is kept."""
    boxes: list[BoxJson] | None = None
    """Around the places that are most unusual, the hottest first; null where there is no heat map."""
    heat: str | None = None
    """PNG as a data: address, to be stretched over the picture; clear where it is as usual; null without a map."""
    name: str = Field("", exclude=True)
    """Does not change while the image is kept."""


class MixJson(Answer):
    """What the coordinate that moved most shows at its two ends, and where the stream's images lie between them."""

    signal: str
    towards: Literal["low", "high"]
    """The end at which there are more images than normal."""
    low: list[str]
    """Images of the reference at the low end: JPEGs as data: addresses; empty where the profile holds none."""
    high: list[str]
    images: list[ExemplarJson]
    """A random sample of those that the evidence speaks of, from the low end to the high one."""


def shift_of_the_mix(
    store: Store, evidence: StreamEvidence, sample: Sequence[Exemplar], layout: Layout, fingerprint: str
) -> MixJson | None:
    """What moved, where the mix changed or raised an alert; None elsewhere, and where it cannot be said for sure.

    Args:
        sample: random images of the span of the evidence.
        layout, fingerprint: of the profile that judged them.

    Raises:
        StoreError: Redis does not answer.
    """
    sure = [s for s in evidence.moved if s.mix and (s.bound > 0 or s.signal in evidence.causes)]
    if not sure or not (evidence.triage == "mix" or set(evidence.causes) & set(layout.mix)):
        return None
    moved = next((s for s in sure if s.signal in evidence.causes), sure[0])
    place = layout.index(moved.signal)
    # p-values count from the high end: the smallest are there
    ordered = sorted(sample[:MIX_IMAGES], key=lambda e: (-e.p_values[place], e.event_time_ms))
    ends = store.catalog.examples(fingerprint, moved.signal)
    low, high = ([JPEG + ends[name] for name in sorted(ends) if name.startswith(end)] for end in ("low", "high"))
    towards: Literal["low", "high"] = "high" if moved.direction == "low" else "low"
    return MixJson(signal=moved.signal, towards=towards, low=low, high=high, images=shown(ordered, layout))


def shown(
    exemplars: Sequence[Exemplar],
    layout: Layout,
    large: Set[str] = frozenset(),
    heat: Mapping[str, Heat] = MappingProxyType({}),
) -> list[ExemplarJson]:
    """Kept images as they are shown.

    Args:
        layout: of the profile that judged them.
        large: names (`Exemplar.name`) of those with a large picture.
        heat: heat maps by name.
    """
    return [
        ExemplarJson(
            id=e.id,
            event_time=e.event_time_ms,
            p_value=e.p_value,
            p_values=dict(zip(layout.signals, e.p_values, strict=False)),
            thumbnail=JPEG + b64encode(e.thumbnail).decode() if e.thumbnail else None,
            picture=_path(name, e) if name in large else None,
            boxes=[BoxJson.model_validate(region) for region in heat[name].regions] if name in heat else None,
            heat=overlay(heat[name]) if name in heat else None,
            name=name,
        )
        for e, name in ((e, e.name) for e in exemplars)
    ]


def _path(name: str, e: Exemplar) -> str:
    query = {"stream": e.stream, "profile": e.fingerprint, "time": e.event_time_ms}
    return f"/pictures/{name}?{urlencode(query)}"
