from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from monitor.core.event_time import PartitionClock, Placed, bucket_of, closable, fleet_watermark
from monitor.core.types import Cursor

BUCKET, LATENESS, FOREVER = 10_000, 15_000, 10**15


def cursor(high_ms: int | None, idle: bool) -> Cursor:
    return Cursor(next_offset=0, high_ms=high_ms or 0, idle=idle)


def place_all(times: Sequence[int], high: int | None = None) -> tuple[list[Placed], PartitionClock]:
    clock = PartitionClock(high, BUCKET, LATENESS)
    return [clock.place(t, now_ms=0, max_future_ms=FOREVER) for t in times], clock


def test_an_image_counts_in_the_bucket_of_its_event_time() -> None:
    placed, clock = place_all([9_999, 10_000])
    assert placed == [Placed(0, 9_999), Placed(10_000, 10_000)]
    assert clock.high_ms == 10_000


def test_a_bucket_that_ends_exactly_at_the_watermark_is_over() -> None:
    # high 25,000: the watermark stands at 10,000 and the first bucket ends there
    placed, _ = place_all([25_000, 9_999, 10_000])
    assert placed[1] == Placed(10_000, 9_999, late=True)
    assert placed[2] == Placed(10_000, 10_000)


def test_a_late_image_counts_in_the_oldest_open_bucket_and_leaves_the_clock() -> None:
    placed, clock = place_all([100_000, 1])
    assert placed[1] == Placed(80_000, 1, late=True)
    assert clock.high_ms == 100_000


def test_a_timestamp_too_far_ahead_counts_at_the_highest_event_time() -> None:
    clock = PartitionClock(None, BUCKET, LATENESS)
    assert clock.place(10**12, now_ms=50_000, max_future_ms=1000) == Placed(50_000, 50_000, future=True)
    assert clock.place(51_000, now_ms=50_000, max_future_ms=1000) == Placed(50_000, 51_000)
    assert clock.place(51_001, now_ms=50_000, max_future_ms=1000) == Placed(50_000, 51_000, future=True)
    assert clock.high_ms == 51_000


@given(st.lists(st.integers(0, 200_000), max_size=40), st.integers(0, 40))
def test_a_restart_from_the_cursor_places_the_rest_alike(times: list[int], cut: int) -> None:
    whole, _ = place_all(times)
    first, clock = place_all(times[:cut])
    second, _ = place_all(times[cut:], clock.high_ms)
    assert whole == first + second


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=40))
def test_no_image_is_placed_in_a_bucket_that_its_partition_has_closed(times: list[int]) -> None:
    clock = PartitionClock(None, BUCKET, LATENESS)
    for t in times:
        before = clock.high_ms
        placed = clock.place(t, 0, FOREVER)
        assert closable([placed.bucket_ms], fleet_watermark([cursor(before, False)], LATENESS), BUCKET) == []
        assert placed.late == (placed.bucket_ms != bucket_of(t, BUCKET))


def test_a_partition_without_a_cursor_holds_the_fleet_back() -> None:
    assert fleet_watermark([cursor(50_000, False), None], 1000) is None


def test_the_fleet_waits_for_its_slowest_partition_unless_it_is_idle() -> None:
    assert fleet_watermark([cursor(50_000, False), cursor(30_000, False)], 1000) == 29_000
    assert fleet_watermark([cursor(50_000, False), cursor(30_000, True)], 1000) == 49_000
    assert fleet_watermark([cursor(50_000, False), cursor(None, False)], 1000) is None
    assert fleet_watermark([cursor(50_000, False), cursor(None, True)], 1000) == 49_000


def test_time_stands_still_at_the_highest_watermark_when_all_are_idle() -> None:
    assert fleet_watermark([cursor(50_000, True), cursor(30_000, True), cursor(None, True)], 1000) == 49_000
    assert fleet_watermark([cursor(None, True)], 1000) is None
    assert fleet_watermark([], 1000) is None


def test_only_buckets_that_ended_are_closable_oldest_first() -> None:
    assert closable([30_000, 10_000, 0, 20_000], 30_000, BUCKET) == [0, 10_000, 20_000]
    assert closable([0], None, BUCKET) == []
