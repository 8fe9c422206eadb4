"""Rules that cannot judge a stream yet, since the profile that judges it has not judged enough of its images.

What a rule knows of a stream begins at nothing under every profile: after another version became active, as for a new
stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from monitor.core.buckets import IMAGES
from monitor.core.shadow import shadow_of
from monitor.core.steps import DAY_MS, HOUR_MS
from monitor.core.types import Alert, Partition, Vector
from monitor.fleet.answers import Answer, Count
from monitor.rules.rule import Rule
from monitor.store import Store


class WarmingJson(Answer):
    """How far a rule is from judging."""

    rule: str
    profile: str
    """Fingerprint of the profile that judges."""
    images: Count
    """That it has judged, of those that the rule looks at."""
    needed: Count


Counted = Mapping[str, Mapping[int, Vector]]
"""{fingerprint: {bucket start ms: counts of the stream}}."""


def warming_of_alert(alert: Alert, rule: Rule | None) -> WarmingJson | None:
    """What an alert under way waits for, where another profile has taken over; None where it waits for nothing."""
    needed = rule.settled_images if rule else 0
    waiting = [(images, fingerprint) for fingerprint, images in alert.fresh if images < needed]
    if not waiting:
        return None
    images, fingerprint = min(waiting)
    return WarmingJson(rule=alert.rule, profile=fingerprint, images=images, needed=needed)


def warming(
    store: Store, partitions: Sequence[Partition], rules: Iterable[Rule], stream: str, held: tuple[Counted, int]
) -> Iterator[WarmingJson]:
    """The rules that watch the stream and have too few images of it to judge.

    Args:
        held: (counts of the last hour or more, end of it in ms): what lies further back is read where a rule asks.

    Raises:
        StoreError: Redis does not answer.
    """
    counted, until_ms = held
    newest = max((f for f, buckets in counted.items() if buckets), key=lambda f: max(counted[f]), default="")
    if not newest:
        return
    hour = until_ms - HOUR_MS, until_ms
    shadow = shadow_of(newest)
    before = store.counts.of_stream(partitions, shadow, stream, hour) if shadow in store.catalog.shadows() else {}
    for rule in rules:
        if not rule.least_images or not rule.watches(stream):
            continue
        images = _images(counted[newest], until_ms - (rule.window_ms or HOUR_MS))
        images += _images(before, until_ms - rule.window_ms) if rule.window_ms else 0
        reach_ms = rule.window_ms or DAY_MS  # without a window it counts from the first image on
        if images < rule.least_images and reach_ms > HOUR_MS:
            since_ms = until_ms - reach_ms
            names = (newest, shadow) if rule.window_ms and before else (newest,)
            found = (store.counts.of_stream(partitions, name, stream, (since_ms, until_ms)) for name in names)
            images = sum(_images(buckets, since_ms) for buckets in found)
        if images < rule.least_images:
            yield WarmingJson(rule=rule.name, profile=newest, images=images, needed=rule.least_images)


def _images(buckets: Mapping[int, Vector], since_ms: int) -> int:
    return sum(int(vector[IMAGES]) for start, vector in buckets.items() if start >= since_ms)
