"""What a decoder process sends back is believed only within what the record and the profile allow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from detectors.images.prepare import Preparer
from monitor.core.types import DeadLetter, Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.answers import most_bytes, pack_images, pack_refusal, read_answer
from monitor.ingest.decode.flat import FlatError
from monitor.ingest.decode.pool import DecoderPool
from monitor.ingest.decode.records import Decoder
from monitor.ingest.settings import DecodingSettings, StreamNaming
from tests.pictures import encoded, pictures

SETTINGS = DecodingSettings(workers=1, max_images_per_record=2)
DECODER = Decoder(Preparers(Preparer(32)), StreamNaming(), SETTINGS)
RECORD = Record(Partition("images", 0), 7, 1000, b"cam-1", encoded(next(iter(pictures(3, 1)))[1]))
NESTED = b"\xdd\x00\x40\x00\x00" + b"\x90" * (4 << 20)


def good() -> list[Any]:
    """The values of an honest answer: 3, then those of one image."""
    return list(msgpack.unpackb(pack_images(DECODER(RECORD), 0.1)))


def with_value(at: int, value: object) -> bytes:
    values = good()
    values[at] = value
    return bytes(msgpack.packb(values))


def test_an_honest_answer_is_read() -> None:
    took_s, images = read_answer(pack_images(DECODER(RECORD), 0.5), RECORD, DECODER)
    (expected,) = DECODER(RECORD)
    assert isinstance(images, list)
    (image,) = images
    assert (took_s, image.id, image.stream) == (0.5, expected.id, "cam-1")
    assert image.prepared.pixels.tolist() == expected.prepared.pixels.tolist()
    assert read_answer(pack_refusal("format", "no \udcff picture", 0.5), RECORD, DECODER) == (
        *(0.5, ("format", "no \\udcff picture")),
    )
    assert len(pack_images(DECODER(RECORD) * 2, 0.5)) < most_bytes(DECODER)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no answer": lambda: b"",
    "another type": lambda: b"\x01",
    "objects": lambda: NESTED,
    "objects inside": lambda: b"\x92\xcb" + bytes(8) + NESTED,
    "cut": lambda: pack_images(DECODER(RECORD), 0.1)[:-3],
    "more": lambda: pack_images(DECODER(RECORD), 0.1) + b"\x01",
    "a reason of its own": lambda: pack_refusal("a-label-per-record", "", 0.1),
    "no images": lambda: with_value(2, 0),
    "too many images": lambda: with_value(2, 3),
    "endless time": lambda: with_value(0, float("inf")),
    "long id": lambda: with_value(3, "x" * 201),
    "time beyond the calendar": lambda: with_value(4, 2**60),
    "other pixels": lambda: with_value(5, b"x"),
    "other properties": lambda: with_value(6, b"x" * 8),
    "no number": lambda: with_value(6, b"\xff" * len(good()[6])),
    "digest": lambda: with_value(7, b""),
    "key": lambda: with_value(8, b"x" * 1000),
    "width": lambda: with_value(9, 0),
    "mode": lambda: with_value(11, "x" * 30),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_no_answer(name: str) -> None:
    with pytest.raises(FlatError):
        read_answer(HOSTILE[name](), RECORD, DECODER)


def test_a_process_that_sends_too_much_costs_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = tmp_path / "hostile"
    hostile.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom multiprocessing.connection import Connection\n"
        "parent = Connection(int(sys.argv[3]))\nparent.recv_bytes()\nparent.send_bytes(b'ready')\n"
        "parent.recv_bytes()\nparent.send_bytes(bytes(1 << 20))\nparent.recv_bytes()\n"
    )
    hostile.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hostile))
    pool = DecoderPool(DECODER)
    try:
        letter = pool.submit([RECORD])[0].result(30)
    finally:
        pool.close()
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.error) == (
        *("crashed", f"the decoder process sent more than {most_bytes(DECODER)} bytes 2 times"),
    )
