"""The share of bad records is the same however the log is cut into batches and owners."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitor.core.reject_window import RejectWindow

logs = st.lists(st.lists(st.booleans(), max_size=30), max_size=12)


@given(logs, st.integers(1, 40))
def test_an_owner_goes_on_where_the_former_one_stood(batches: list[list[bool]], window: int) -> None:
    whole = RejectWindow(window, 0.999).extended([bad for batch in batches for bad in batch])
    passed = RejectWindow(window, 0.999)
    for batch in batches:
        now = passed.extended(batch)
        if now.exceeded:
            assert now.pack() == b""
            return
        passed = RejectWindow(window, 0.999).unpack(now.pack())
        assert passed == now
    assert passed == whole


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 40), st.sampled_from([0.25, 0.5, 0.9]))
def test_more_than_the_share_of_a_full_window_is_too_much(bad: list[bool], window: int, share: float) -> None:
    last = bad[-window:]
    assert RejectWindow(window, share).extended(bad).exceeded == (
        len(last) == window and last.count(True) > share * window
    )


def test_a_shorter_window_judges_by_the_newest_that_were_kept() -> None:
    packed = RejectWindow(8, 0.5).extended([False] * 5 + [True] * 3).pack()
    assert RejectWindow(4, 0.5).unpack(packed).bad == (False, True, True, True)
    assert not RejectWindow(8, 0.5).unpack(b"").bad
    assert RejectWindow().extended([True] * 9).pack() == b""
