"""Failpoints act as armed, where they are armed, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitor.telemetry.failpoints import arm, failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def test_one_acts_at_its_pass_alone() -> None:
    arm("polled:error@2, score:oom@*")
    failpoint("polled")
    with pytest.raises(RuntimeError, match="failpoint polled"):
        failpoint("polled")
    failpoint("polled")
    for _ in range(2):
        with pytest.raises(MemoryError):
            failpoint("score")
    failpoint("after_apply")


def test_one_with_a_text_acts_on_what_holds_it() -> None:
    arm("decode:error@*~XYZ")
    failpoint("decode", b"abc")
    failpoint("decode")
    with pytest.raises(RuntimeError):
        failpoint("decode", b"..XYZ..")


@pytest.mark.parametrize("text", ["nowhere:kill", "polled", "polled:dance"])
def test_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="LAYERWATCH_FAILPOINTS"):
        arm(text)
