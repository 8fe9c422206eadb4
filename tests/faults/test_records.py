"""Records that kill, hang, bloat or mislead what reads them; their neighbours count."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.faults.rig import Rig, normal, wait_for
from tests.pictures import encoded

pytestmark = pytest.mark.kafka
MakeRig = Callable[..., Rig]
LIMITS = {"decoding": {"timeout_s": 1.5, "max_record_bytes": 200_000, "worker_memory_bytes": 300_000_000}}


def black(width: int, height: int) -> bytes:
    """A large PNG in few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def npy(images: int) -> bytes:
    """An array of so many images of one pixel."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((images, 1, 1, 3), np.uint8))
    return buffer.getvalue()


CASES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "poison": (lambda: normal()[0] + b"POISON", "decode:kill~POISON", "crashed"),
    "hang": (lambda: normal()[0] + b"POISON", "decode:hang~POISON", "timeout"),
    "memory": (lambda: black(7000, 7000) + b"POISON", "", "memory"),
    "bomb": (lambda: black(20_000, 20_000), "", "pixels"),
    "truncated": (lambda: normal()[0][:2000], "", "truncated"),
    "oversize": (
        lambda: encoded(np.random.default_rng(1).integers(0, 255, (300, 300, 3), np.uint8)) + b"POISON",
        "",
        "bytes",
    ),
    "empty": (lambda: b"", "", "empty"),
    "no images": (lambda: npy(0), "", "empty"),
    "more images than allowed": (lambda: npy(2000), "", "images"),
    "objects": (lambda: b"\x81\xdd\x00\x02\x00\x00" + b"\x90" * (128 << 10) + b"\x01", "", "msgpack"),
}
"""Name -> (the record, what lets it act, the reason in its dead letter)."""


QUICK = {"poison", "bomb"}  # what hangs costs its time-out four times; tests/ingest/test_decoder_pool.py has one


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.faults) for n in CASES])
def test_a_bad_record_is_rejected_and_its_neighbours_count(make_rig: MakeRig, name: str) -> None:
    make, failpoint, reason = CASES[name]
    rig = make_rig(settings=LIMITS)
    for index in (0, 1):
        values = [*normal()[:20], make(), *normal()[20:40]]
        rig.write(index, values, [rig.start_ms + i * 1000 for i in range(41)])
    daemon = rig.start(failpoint)
    rig.await_counted()
    expected = rig.check_counts()
    assert expected.accepted == 80
    assert {dict(letter.headers)["layerwatch-reason"].decode() for letter in rig.letters()} == {reason}
    assert not daemon.ended()


@pytest.mark.faults
def test_a_row_of_records_that_hang_is_slow_and_not_stuck(make_rig: MakeRig) -> None:
    rig = make_rig(settings=LIMITS | {"pipeline": {"stall_s": 6}})
    values = [*normal()[:10], *(value + b"POISON" for value in normal()[:4]), *normal()[10:20]]
    for index in (0, 1):
        rig.write(index, values, [rig.start_ms + i * 1000 for i in range(24)])
    daemon = rig.start("decode:hang~POISON")
    rig.await_counted()
    rig.check_counts()
    assert not daemon.ended()


def test_late_future_and_shuffled_timestamps_count_where_they_must(rig: Rig) -> None:
    rng = np.random.default_rng(4)
    now_ms = time.time_ns() // 1_000_000
    rig.future_ms = now_ms + 3_600_000
    for index in (0, 1):
        stamps = rig.start_ms + np.arange(160) * 1000 + rng.integers(-30_000, 5_000, 160)
        stamps[[0, 50, 110]] = now_ms + 86_400_000 * np.array([1, 2, 365]) if index else stamps[[0, 50, 110]]
        stamps[0] = rig.start_ms
        rig.write(index, [normal()[i % 80] for i in range(160)], stamps.tolist())
    rig.start()
    rig.await_counted()
    expected = rig.check_counts()
    assert expected.accepted == 320
    late = sum(vector[-4] for streams in expected.buckets.values() for vector in streams.values())
    assert late > 20


@pytest.mark.faults
def test_records_that_were_produced_twice_count_twice_and_say_so(rig: Rig) -> None:
    for index in (0, 1):
        twice = [value for value in normal()[:50] for _ in range(2)]
        rig.write(index, twice, [rig.start_ms + i // 2 * 1000 for i in range(100)])
    rig.start()
    rig.await_counted()
    expected = rig.check_counts()
    assert sum(v[-3] for streams in expected.buckets.values() for v in streams.values()) == 100


def test_a_stream_of_which_half_is_bad_stops_and_is_told_while_the_other_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig(settings={"dead_letters": {"max_share": 0.5, "window": 40}})
    stamps = [rig.start_ms + i * 1000 for i in range(160)]
    rig.write(0, [b"no picture" if i % 4 else normal()[i % 80] for i in range(160)], stamps)
    rig.write(1, [normal()[i % 80] for i in range(160)], stamps)
    daemon = rig.start()
    wait_for("the other to end", lambda: rig.stands(1) == 160)
    (told,) = wait_for("the alert", lambda: rig.hook.own("layerwatch-dead-letters"))
    assert "of the last 40 records are bad" in told["data"]["summary"]
    assert 40 <= rig.stands(0) < 160
    assert not daemon.ended()


@pytest.mark.faults
def test_the_share_of_bad_records_is_judged_across_a_restart(make_rig: MakeRig) -> None:
    rig = make_rig(partitions=1, settings={"dead_letters": {"max_share": 0.5, "window": 40}})
    values = [b"no picture" if i % 4 else normal()[i % 80] for i in range(60)]
    stamps = [rig.start_ms + i * 1000 for i in range(60)]
    rig.write(0, values[:25], stamps[:25])
    first = rig.start()
    rig.await_counted()
    assert first.terminate() == 0
    rig.write(0, values[25:50], stamps[25:50])  # neither of the two reads a window of its own
    second = rig.start()
    wait_for("the alert", lambda: rig.hook.own("layerwatch-dead-letters"))
    assert second.terminate() == 0
    third = rig.start()  # who starts it anew wants it read on
    wait_for("its partition", lambda: third.events("partition.taken"))
    rig.write(0, values[50:], stamps[50:])
    rig.await_counted()
    rig.check_counts()


@pytest.mark.faults
def test_too_little_memory_for_a_batch_halves_it(rig: Rig) -> None:
    rig.tell()
    daemon = rig.start("score:oom@4")
    rig.check_story()
    assert daemon.metric("layerwatch_batches_halved_total") == 1


@pytest.mark.faults
def test_scoring_that_hangs_ends_the_process_for_its_supervisor(make_rig: MakeRig) -> None:
    rig = make_rig(settings={"pipeline": {"stall_s": 3}})
    rig.tell()
    daemon = rig.start("score:hang@4")
    assert daemon.status == 70
    assert daemon.events("watchdog.stalled")[0]["what"] == "apply"
    rig.start()
    rig.check_story()


@pytest.mark.faults
def test_a_full_disk_for_logs_changes_nothing(rig: Rig) -> None:
    rig.tell()
    daemon = rig.start(log="/dev/full")
    rig.check_story()
    assert daemon.terminate() == 0
