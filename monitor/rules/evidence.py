"""The evidence of an alert: which signals moved, by how much, and what has changed (sensor, content, mix). Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from monitor.core.alert_document import MovedSignal, Triage
from monitor.core.buckets import Layout, distance_from_uniform, exceedances, histogram, images, reference_counts
from monitor.core.types import Vector
from monitor.rules.shift import distance_bound

# Measured on CIFAR-10: the strongest property moved 0 times as much as the strongest learned signal in
# 164 of 167 alarms on coloured pictures of other things, and .55 times and more in all 720 on 24 sensor faults.
SENSOR_RATIO = 0.5

SEEN = "seen"
"""How much an image resembles one that the profile has learned from: it says nothing of sensor or content."""
REPLAYED = 0.5
"""Share of the images that must be seen ones to call them a recording."""

# Measured on CIFAR-10: with a class missing or too many of one class, the strongest signal of the mix moved 1.06 times
# as much as the strongest other one and more, twice as much in the median (and often nothing else moved); with noise,
# turned or cropped images and six sets of other things at most 1.04 times from 1,000 images on, but for one window.
MIX_RATIO = 1.2


def moved_signals(
    layout: Layout, window: Vector, causes: Collection[str] = (), risk: float = 0.01, limit: int = 8
) -> tuple[MovedSignal, ...]:
    """The signals of one stream that moved in a window with bound > 0, strongest first; if none, those with effect > 0.

    Without a bound > 0, signals that are constant in the reference are left out: only chance orders equal scores.
    In distribution any signal has bound > 0 with probability at most `risk`, all signals together.

    Args:
        window: (V,) sum of the stream's buckets.
        causes: signals that raised an alert, which proves that they moved; always in the result.
        limit: maximum length of the result.
    """
    measured = layout.signals if images(window) else [signal for signal in layout.signals if signal in causes]
    found = [_measure(layout, window, signal, risk / len(layout.signals)) for signal in measured]
    sure = [moved for moved in found if moved.bound > 0 or moved.signal in causes]
    chosen = sure or [moved for moved in found if moved.effect > 0 and moved.signal not in layout.constant]
    # by name last: equal signals have the same order under every profile
    strongest = sorted(chosen, key=lambda m: (-m.bound, -m.effect, m.signal))
    kept = sorted(strongest, key=lambda m: m.signal not in causes)[:limit]
    return tuple(moved for moved in strongest if moved in kept)


def triage(moved: Sequence[MovedSignal], causes: Collection[str] = ()) -> Triage | None:
    """Whether the sensor, the content of the images or their mix has changed, or a recording is played; None: unknown.

    "sensor": image properties (exposure, sharpness, colour, ...) moved as well; "content": the learned signals moved,
    and the properties no more than they do with other objects; "mix": what moved most is how the images are spread over
    what is normal, and single images look as normal as before; "replay": most images are ones that the profile has
    learned from, which explains the rest.

    Args:
        causes: as for `moved_signals`: they count as sure where the window holds too few images for a bound > 0.
    """
    sure = [signal for signal in moved if signal.bound > 0 or signal.signal in causes]
    seen = [signal for signal in sure if signal.signal == SEEN]
    if any(SEEN in causes or (signal.direction == "low" and signal.effect > REPLAYED) for signal in seen):
        return "replay"
    learned = [signal.effect for signal in sure if signal.learned]
    mix = [signal.effect for signal in sure if signal.mix]
    measured = [signal.effect for signal in sure if not signal.learned and not signal.mix and signal.signal != SEEN]
    if mix and (not learned + measured or max(mix) > MIX_RATIO * max(learned + measured)):
        return "mix"
    if not learned or not measured:
        return "content" if learned else "sensor" if measured else None
    return "sensor" if max(measured) > SENSOR_RATIO * max(learned) else "content"


def _measure(layout: Layout, window: Vector, signal: str, risk: float) -> MovedSignal:
    i = layout.index(signal)
    counts = histogram(layout, window, signal)
    nominal = reference_counts(layout, signal) / (layout.calibration_sizes[i] + 1)
    excess = exceedances(layout, window, signal) / max(images(window), 1) - nominal
    bound, _ = distance_bound(layout, window, signal, risk)
    return MovedSignal(
        signal=signal,
        learned=layout.learned[i],
        effect=float(distance_from_uniform(layout, window, signal)),
        bound=bound,
        direction="low" if excess[np.argmax(np.abs(excess))] > 0 else "high",
        histogram=tuple(counts.tolist()),
        mix=signal in layout.mix,
    )
