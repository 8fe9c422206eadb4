"""The running sums of windows are the sums of their buckets."""

from __future__ import annotations

import numpy as np

from monitor.core.buckets import BINS, TAIL, Layout
from monitor.core.table import Table
from monitor.core.windows import EVERY, Windows, tails

LAYOUT = Layout(("ood",), (999,), (False,), (True,), (1.0,))
WINDOW_MS, REACH_MS, STEP_MS = 50_000, 80_000, 10_000


def drawn(rng: np.random.Generator, signals: int) -> Table:
    names = [f"cam-{i}" for i in range(12) if rng.random() < 0.6]
    size = signals * BINS + len(TAIL)
    return Table(names, rng.integers(0, 9, (len(names), size)).astype(np.uint32))


def test_sums_of_many_streams_are_those_of_each_also_where_buckets_are_missing() -> None:
    rng, windows = np.random.default_rng(0), Windows(REACH_MS)
    for start_ms in range(0, 600_000, STEP_MS):
        if rng.random() < 0.2 or 300_000 <= start_ms < 400_000:
            continue
        sealed = {"day": drawn(rng, 1), "night": drawn(rng, 2)}
        if rng.random() < 0.3:
            del sealed["night"]
        windows.add(start_ms, sealed)
        for name, table in (*sealed.items(), (EVERY, tails(list(sealed.values())))):
            if not table:
                continue
            sums = windows.sums(name, table.streams, start_ms, WINDOW_MS)
            one_by_one = [windows.sum(LAYOUT, name, stream, start_ms - WINDOW_MS) for stream in table.streams]
            size = len(TAIL) if name == EVERY else table.counts.shape[1]
            np.testing.assert_array_equal(sums[:, :-1], np.stack([v[-size:] for v in one_by_one])[:, :-1])


def test_of_a_profile_that_judges_no_more_nothing_stays_and_its_sums_are_right_when_it_comes_back() -> None:
    rng, windows = np.random.default_rng(2), Windows(REACH_MS)
    for start_ms in range(0, 600_000, STEP_MS):
        name = "old" if start_ms < 200_000 or start_ms >= 400_000 else "new"
        windows.add(start_ms, {name: (table := drawn(rng, 1))})
        sums = windows.sums(name, table.streams, start_ms, WINDOW_MS)
        one_by_one = [windows.sum(LAYOUT, name, stream, start_ms - WINDOW_MS) for stream in table.streams]
        np.testing.assert_array_equal(sums[:, :-1], np.stack(one_by_one)[:, :-1])
        if start_ms == 390_000:
            assert {fingerprint for fingerprint, _ in windows._running} == {"new"}


def test_tables_add_up_by_stream_and_the_longest_run_is_the_maximum() -> None:
    rng = np.random.default_rng(1)
    one, other = drawn(rng, 1), drawn(rng, 1)
    both = Table.added([one, other])
    assert set(both) == {*one, *other}
    for stream in both:
        parts = np.stack([table[stream] for table in (one, other) if stream in table])
        np.testing.assert_array_equal(both[stream][:-1], parts[:, :-1].sum(axis=0))
        assert both[stream][-1] == parts[:, -1].max()
