"""When a stream was calm, and how few images of each hour are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.core.calm import HOUR_MS, Thinned, covers, merged, quota, unrest
from monitor.core.types import PastAlert


def test_an_alert_disturbs_its_stream_from_before_its_onset_until_after_its_end() -> None:
    alerts = [PastAlert("slow", "a", "1", 1000, 2000), PastAlert("fast", "a", "2", 5000, 6000)]
    found = unrest([*alerts, PastAlert("fast", "b", "3", 9000, 9500)], {"slow": 900}, 100)
    assert found == {"a": [(100, 2900), (4900, 6100)], "b": [(8900, 9600)]}
    assert [covers(found["a"], at) for at in (99, 100, 2899, 2900, 4900, 6100)] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert not covers((), 5)


def test_spans_that_overlap_or_touch_are_one() -> None:
    assert merged([(5, 9), (1, 5), (2, 3), (11, 12)]) == [(1, 9), (11, 12)]


@pytest.mark.parametrize("most", [1, 50, 400, 10_000])
def test_every_hour_gives_as_many_and_all_together_no_more_than_asked(most: int) -> None:
    rng = np.random.default_rng(most)
    sizes = {(f"s{i % 3}", HOUR_MS * (i // 3)): int(rng.integers(1, 90)) for i in range(36)}
    images = [(cell, f"{cell}-{n}") for cell, size in sizes.items() for n in range(size)]
    thinned, again = Thinned[str](most), Thinned[str](most)
    for at in rng.permutation(len(images)):
        cell, name = images[at]
        thinned.offer(cell, name, name)
    for cell, name in images:
        again.offer(cell, name, name)
    chosen = thinned.chosen()
    assert {cell: set(keys) for cell, keys in chosen.items()} == {c: set(keys) for c, keys in again.chosen().items()}
    given = {cell: len(keys) for cell, keys in chosen.items()}
    assert sum(given.values()) <= most or most < len(sizes)
    allowed = max(given.values())
    assert all(count in {allowed, sizes[cell]} for cell, count in given.items())
    if most >= len(sizes):
        assert allowed == quota(list(sizes.values()), most)
        more = sum(min(size, allowed + 1) for size in sizes.values())
        assert more > most or allowed == max(sizes.values())
    else:
        assert sum(given.values()) == most


def test_what_is_held_while_choosing_is_bounded() -> None:
    thinned = Thinned[int](100)
    for n in range(50_000):
        thinned.offer(("s", HOUR_MS * (n % 20)), str(n), n)
        assert sum(map(len, thinned._cells.values())) <= 201
    assert {len(keys) for keys in thinned.chosen().values()} == {5}
