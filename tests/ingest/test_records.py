"""Records of every kind become images; anything else is refused with a reason."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detectors.images.prepare import Preparer
from detectors.images.tones import Tones
from monitor.core.alert_document import rfc3339
from monitor.core.types import Partition, Record
from monitor.ingest.by_stream import Preparers
from monitor.ingest.decode.answers import read_answer
from monitor.ingest.decode.records import Decoder, expand
from monitor.ingest.decode.values import DecodeError
from monitor.ingest.decode.worker import answer
from monitor.ingest.decode.wrapped import ValueReader
from monitor.ingest.settings import LAYOUTS, DecodingSettings, NpyLayout, StreamNaming
from tests.files import tiff

DECODER = Decoder(Preparers(Preparer(32)), StreamNaming(event_time_header="at"), DecodingSettings())


def record(value: bytes | None, **headers: bytes) -> Record:
    named = tuple((name.replace("_", "-"), content) for name, content in headers.items())
    return Record(Partition("images", 2), 7, 1_000, b"cam-1", value, named)


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (10, 200, 30)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_encoded_image_is_one_image_of_the_key_s_stream(kind: str) -> None:
    (image,) = DECODER(record(encoded(kind)))
    assert (image.id, image.stream, image.event_time_ms) == ("images/2/7", "cam-1", 1_000)
    assert (image.prepared.width, image.prepared.height) == (20, 10)
    assert image.prepared.pixels.shape == (32, 32, 3)


def test_an_npy_batch_holds_many_images() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 8, 8, 3), dtype=np.uint8))
    images = DECODER(record(buffer.getvalue(), at=b"2026-01-01T00:00:00Z"))
    assert [image.id for image in images] == ["images/2/7/0", "images/2/7/1", "images/2/7/2"]
    assert {image.event_time_ms for image in images} == {1_767_225_600_000}


@pytest.mark.parametrize("text", [b"2026-01-01T00:00:00", b"2026-01-01 09:00+09:00", b"1767225600000"])
def test_an_event_time_is_utc_unless_it_gives_an_offset(text: bytes, tokyo: None) -> None:
    assert DECODER(record(encoded(), at=text))[0].event_time_ms == 1_767_225_600_000


@pytest.mark.parametrize("text", [b"noon", b"1" * 25, b"", "²".encode(), b"\xff"])
def test_what_is_no_event_time_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError, match=r"header at: .* is neither RFC 3339 nor ms") as refused:
        DECODER(record(encoded(), at=text))
    assert refused.value.reason == "event-time"


def test_a_msgpack_batch_brings_ids_and_times() -> None:
    body = {"images": [encoded(), encoded()], "ids": ["a", "b"], "timestamps": [5, 6]}
    images = DECODER(record(msgpack.packb(body), content_type=b"application/msgpack"))
    assert [(image.id, image.event_time_ms) for image in images] == [("a", 5), ("b", 6)]


def test_one_bad_image_refuses_the_whole_record_and_is_named() -> None:
    body = msgpack.packb({"images": [encoded(), b"no image"]})
    with pytest.raises(DecodeError, match="image 1: not one of JPEG") as refused:
        DECODER(record(body))
    assert refused.value.reason == "format"


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "empty"), (b"", "empty"), (b"\x93NUMPY bad", "npy"), (b"\x81\xa1a\x01", "msgpack")]
)
def test_unusable_values_have_a_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        DECODER(record(value))
    assert refused.value.reason == reason


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=True)
    return buffer.getvalue()


def shaped(shape: str, size: int) -> bytes:
    """A uint8 npy file whose header claims that shape."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(size)


@pytest.mark.parametrize(
    ("value", "reason", "text"),
    [
        (npy(np.zeros((0, 8, 8, 3), np.uint8)), "empty", r"no pixels \(shape \(0, 8, 8, 3\)\)"),
        (npy(np.zeros((8, 0), np.uint8)), "empty", r"no pixels \(shape \(8, 0\)\)"),
        (msgpack.packb({"images": []}), "empty", "the record holds no images"),
        (shaped("(-1, 8, 8, 3)", 192), "npy", r"shape \(-1, 8, 8, 3\); no side may be negative"),
        (shaped("(-1, 8, 8, 3)", 0), "npy", "no side may be negative"),
        (shaped("(2, 8, 8, 3)", 192), "npy", r"192 bytes of pixels, but uint8 \(2, 8, 8, 3\) has 384"),
        (shaped("(8, 8)", 100), "npy", r"100 bytes of pixels, but uint8 \(8, 8\) has 64"),
        (shaped("(True, 8)", 8), "npy", r"unreadable npy header|no side may be negative"),
        (npy(np.zeros((8, 8), np.uint8), (3, 0)), "npy", r"npy format 3.0; 1.0 and 2.0 are allowed"),
        (npy(np.zeros((8, 8), np.float32)), "npy", r"an array of float32 \(8, 8\); uint8 and uint16 are allowed"),
        (npy(np.array([[None]])), "npy", r"an array of object .*; uint8 and uint16 are allowed"),
        (npy(np.zeros((8,), np.uint8)), "npy", r"shape \(8,\) has no layout ''; known layouts: HW, HWC, CHW"),
        (npy(np.zeros((16, 8, 9), np.uint8)), "npy", r"9 channels in shape \(16, 8, 9\) as HWC; 1, 3 or 4 .*layout="),
        (npy(np.zeros((8, 8), np.uint16)), "dtype", "uint16 pixels, but the profile was fitted on 8-bit images"),
        (msgpack.packb({"pictures": [b"a"]}), "msgpack", "no key `images`"),
        (msgpack.packb({"images": ["a"]}), "msgpack", "expected bytes, found str at byte 9"),
        (msgpack.packb({"images": [b"a"], "ids": []}), "msgpack", "0 ids for 1 images"),
        (msgpack.packb({"images": [b"a"], "ids": [1.5]}), "msgpack", "expected str or int, found float"),
        (b"\x82\xa6images\x91\xc4\x01a\xa6images\x91\xc4\x01b", "msgpack", "`images` is there twice"),
        (msgpack.packb({"images": [b"a"]}) + b"\x01", "msgpack", "1 bytes follow the end"),
        (msgpack.packb({"images": [b"a"]})[:-1], "msgpack", "the message ends"),
    ],
)
def test_a_refusal_says_what_was_found_and_what_is_allowed(value: bytes, reason: str, text: str) -> None:
    with pytest.raises(DecodeError, match=text) as refused:
        DECODER(record(value))
    assert refused.value.reason == reason


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("declared", ["header", "config"])
def test_an_array_is_read_by_its_declared_layout(layout: NpyLayout, declared: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)  # NHWC
    for dtype in ("|u1", "<u2", ">u2"):
        array = images.astype(dtype)
        array = array if "N" in layout else array[0]
        array = np.moveaxis(array, -1, layout.index("C")) if "C" in layout else array[..., 0]
        if declared == "header":
            taken = record(npy(array), content_type=b"application/x-npy; Layout=" + layout.lower().encode())
            found = expand(taken, StreamNaming(), ValueReader(DecodingSettings(npy_layout="NHW")))
        else:
            found = expand(record(npy(array)), StreamNaming(), ValueReader(DecodingSettings(npy_layout=layout)))
        expected = images if "N" in layout else images[:1]
        expected = expected if "C" in layout else expected[..., 0]
        assert len(found) == len(expected)
        for image, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(image.image), wanted)


def test_what_of_an_image_is_not_used_reaches_the_daemon() -> None:
    decoder = Decoder(Preparers(Preparer(32, tones=Tones.of(1000))), StreamNaming(), DecodingSettings())
    bright = tiff(np.full((8, 8), 2000, np.uint16))
    for value, notes in ((encoded("JPEG") * 2, ("further_pictures",)), (bright, ("above_white",))):
        _, images = read_answer(answer(decoder, record(value)), record(value), decoder)
        assert isinstance(images, list)
        assert [image.prepared.notes for image in images] == [notes]


@settings(max_examples=300, deadline=None)
@given(
    value=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"\x93NUMPY" + tail)),
    kind=st.sampled_from([b"", b"application/x-npy", b"application/msgpack", b"image/png"]),
)
def test_no_bytes_raise_anything_but_a_decode_error(value: bytes, kind: bytes) -> None:
    try:
        images = expand(record(value, content_type=kind), StreamNaming(), ValueReader(DecodingSettings()))
    except DecodeError:
        return
    assert images


@pytest.mark.parametrize(
    "at", [b"1" * 25, b"-" + b"9" * 25, b"1" * 5000, b"1767225600000000", b"253402300800000", b"\xb2", b"tomorrow"]
)
def test_an_event_time_that_is_none_refuses_the_record_and_harms_no_decoder(at: bytes) -> None:
    taken = record(encoded(), at=at)
    _, refused = read_answer(answer(DECODER, taken), taken, DECODER)
    assert refused[0] == "event-time"
    assert "neither RFC 3339 nor ms" in str(refused[1]) or "outside the years 1 to 9999" in str(refused[1])


@pytest.mark.parametrize("time_ms", [2**64 - 1, -(2**63), 253_402_300_800_000])
def test_times_of_a_batch_and_of_the_log_have_the_same_limits(time_ms: int) -> None:
    batch = record(msgpack.packb({"images": [encoded()], "timestamps": [time_ms]}))
    for taken in (batch, replace(record(encoded()), timestamp_ms=time_ms)):
        with pytest.raises(DecodeError, match="outside the years 1 to 9999") as refused:
            DECODER(taken)
        assert refused.value.reason == "event-time"


def test_the_last_times_of_the_calendar_are_times() -> None:
    for at in (b"253402300799999", b"-62135596800000", b"0001-01-01T00:00:00Z", b"9999-12-31T23:59:59Z"):
        (image,) = DECODER(record(encoded(), at=at))
        assert rfc3339(image.event_time_ms)
