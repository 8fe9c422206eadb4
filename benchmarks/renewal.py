"""A drift so slow that no rule sees it, and weekly renewals: how much is lost, by what a candidate must match.

    python benchmarks/renewal.py [--images 1500] [--story NAME ...] [--json FILE]

Every image counts as calm here: nothing but the comparison with earlier versions stands in the way. Stories, by day:

- `nothing changes`: every candidate should be taken
- `fault creeps in`: .5 % more of the images each day show a foreign part; `slowly`: .2 %
- `lens fouls`: every image is smeared, each day a little more, and on the last day as badly as the demo's worst

Policies: `none` takes every candidate, `last` compares with the version before alone, `first` with the one that a
person made, as `profile renew` does. Lost at the end, by the version that is active then: `normal`, the share of clean
images beyond its 5 % cut, less 5 %; `faults`, the share of the foreign parts (or of the images of the last day) that
the first version finds unusual and this one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from detectors import FitOptions, Profile, fit_profile
from detectors.versions.guard import farthest, shifts
from monitor.demo.scene import FOREIGN_KIND, KINDS, draw, jpeg, light_at
from monitor.demo.story import SMEAR_TOP
from monitor.evaluate.settings import MAX_SHIFT

DAYS = 30
HELD_OUT = 600
Day = Callable[[np.random.Generator, float], bytes]
"""A picture of a day."""


@dataclass
class Row:
    story: str
    policy: str
    day: int
    """Of the renewal."""
    first: float
    """How far the candidate has moved from the first version."""
    last: float
    taken: bool
    lost_normal: float
    lost_faults: float


def normal(rng: np.random.Generator, kind: str = "", smear: float = 0.0) -> bytes:
    light = light_at(rng.uniform(0, 1e5), rng.random())
    return jpeg(draw(rng, kind or str(rng.choice(KINDS)), light, smear))


def creeping(a_day: float) -> Day:
    return lambda rng, day: normal(rng, FOREIGN_KIND if rng.random() < a_day * day else "")


def fouling(rng: np.random.Generator, day: float) -> bytes:
    return normal(rng, smear=SMEAR_TOP * day / DAYS)


STORIES: dict[str, Day] = {
    "nothing changes": lambda rng, _: normal(rng),
    "fault creeps in": creeping(0.005),
    "... slowly": creeping(0.002),
    "lens fouls": fouling,
}


def fitted(images: list[bytes], like: Profile | None = None) -> Profile:
    options = FitOptions(device="cpu", heat_maps=False)
    if like:
        made = like.manifest
        options = FitOptions(
            made["detector"], like.backbone.spec, "cpu", detector_options=made["detector_options"], heat_maps=False
        )
    return fit_profile(((str(i), image) for i, image in enumerate(images)), options)


def p_values(profile: Profile, images: list[bytes]) -> np.ndarray:
    parts = [profile.score(images[i : i + 64]).p_values for i in range(0, len(images), 64)]
    return np.concatenate(parts)


def story(name: str, first: Profile, images: int) -> Iterator[Row]:
    rng = np.random.default_rng(11)
    clean = [normal(rng) for _ in range(HELD_OUT)]
    faults = [fouling(rng, DAYS) if name == "lens fouls" else normal(rng, FOREIGN_KIND) for _ in range(HELD_OUT)]
    seen_first = p_values(first, faults)[:, 0] <= 0.05
    active = dict.fromkeys(("none", "last", "first"), first)
    for end in range(7, DAYS + 1, 7):
        week = [STORIES[name](rng, rng.uniform(end - 7, end)) for _ in range(images)]
        candidate = fitted(week, first)
        from_first = farthest(shifts(first, candidate, p_values(first, week)))
        for policy, last in active.items():
            from_last = farthest(shifts(last, candidate, p_values(last, week)))
            refused = {"none": 0.0, "last": from_last, "first": max(from_first, from_last)}[policy] > MAX_SHIFT
            if not refused:
                active[policy] = candidate
            now = active[policy]
            lost_normal = float((p_values(now, clean)[:, 0] <= 0.05).mean()) - 0.05
            lost_faults = float((seen_first & (p_values(now, faults)[:, 0] > 0.05)).mean())
            yield Row(name, policy, end, from_first, from_last, not refused, lost_normal, lost_faults)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1500, help="of the first fit, and of each week")
    parser.add_argument("--story", nargs="*", choices=STORIES, default=list(STORIES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    first = fitted([normal(rng) for _ in range(args.images)])
    print(f"{first.manifest['detector']}, {args.images} images; a candidate may move by {MAX_SHIFT:.0%}")
    print(
        f"{'story':16} {'policy':6} {'day':>3} {'from first':>10} {'from last':>9} {'taken':>5} {'lost normal':>11} "
        f"{'lost faults':>11}"
    )
    rows = []
    for name in args.story:
        for row in story(name, first, args.images):
            rows.append(asdict(row))
            print(
                f"{row.story:16} {row.policy:6} {row.day:3} {row.first:10.1%} {row.last:9.1%} {row.taken!s:>5} "
                f"{row.lost_normal:11.1%} {row.lost_faults:11.1%}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
