"""What a number of calibration images is worth to the rules, in words for the owner of the images. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from monitor.core.buckets import LEVELS, MIN_REFERENCE, Layout, usable_cuts
from monitor.rules.rule import Rule

SIZES = (500, 1000, 2000, 5000, 10_000)
"""Numbers of calibration images that are compared with the one at hand."""


def calibration_worth(layout: Layout, rules: Sequence[Rule]) -> Iterator[str]:
    """What the calibration of `layout` allows: a line about levels, then one about each rule.

    The size of a calibration limits the levels (a cut needs MIN_REFERENCE images beyond it) and widens the range in
    which the true rate of a cut may lie: rules that must hold for all of that range see smaller faults later.
    """
    yield _levels(layout)
    yield from (f"{rule.name}: {worth}" for rule in rules if (worth := _of(rule, layout)))


def _levels(layout: Layout) -> str:
    size, usable = layout.calibration_sizes[0], usable_cuts(layout, layout.signals[0])
    have = f"the smallest usable level is {_level(LEVELS[usable[-1]])}" if len(usable) else "no level can be used"
    wanted = [level for i, level in enumerate(LEVELS) if i not in usable][:2]
    more = ", ".join(f"{_level(level)} needs {_more(size, round(MIN_REFERENCE / level) - 1)}" for level in wanted)
    return f"calibrated on {size:,} images: {have}{'; ' + more if more else ''}"


def _of(rule: Rule, layout: Layout) -> str:
    size = min(layout.calibration_sizes)
    try:
        fault = rule.smallest_fault(layout)
    except (KeyError, ValueError) as error:
        return f"cannot judge by this profile: {error.args[0]}"
    if fault is None:
        return rule.promise
    larger = ((n, rule.smallest_fault(_of_size(layout, n))) for n in SIZES if n > size)
    better = next(((n, to) for n, to in larger if to is not None and to <= fault / 2), None)
    gain = f" ({_percent(better[1])} with {_more(size, better[0])})" if better else ""
    return f"{rule.promise}; by this calibration alone it sees faults in {_percent(fault)} of the images or more{gain}"


def _of_size(layout: Layout, size: int) -> Layout:
    return replace(layout, calibration_sizes=(size,) * len(layout.signals))


def _more(size: int, wanted: int) -> str:
    return f"{wanted - size:,} more"


def _level(level: float) -> str:
    return f"{100 * level:g} % (1 image in {round(1 / level)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
